"""Every bound of the policy package, in one place. Sizes are bytes."""

from __future__ import annotations

MAX_POLICY_FILE = 1024 * 1024  # one file of a policy directory
MAX_POLICY_FILES = 256  # files of a policy directory that are read
MAX_CURRENT = 4096  # the file that names the policy in force
MAX_MANIFEST_TEXT = 300  # characters of a description or an owner
MAX_SCENARIOS = 2048  # of one policy directory
MAX_SCENARIO_TEXT = 120  # characters of a scenario's name
MAX_GRID = 20_000  # generated questions that two policies are compared by
MAX_POLICIES = 1024  # policies of all files together
MAX_NESTING = 100  # brackets that are open at once, in a policy or the schema: the engine's parser has no bound
MAX_OPERATORS = 1000  # of one policy, likewise
MAX_TREE = 126  # levels of a parsed policy: the engine takes 128 with what stands around it
MAX_NAMED_POLICIES = 32  # determining policies that one record names
MAX_TENANTS = 10_000
MAX_CLIENTS = 10_000  # certificate mappings
MAX_BUDGETS = 10_000
MAX_PURPOSES = 256  # of one tenant or one caller
MAX_ROUND_DIGITS = 15  # decimal places that a policy may ask to keep
MAX_TOP_K = 10_000
MAX_NOISE_EPSILON_MICRO = 10**8  # a hundred for one row: above it noise hides nothing, it is a typing mistake
MAX_NOISE_ROWS = 4096  # rows of one noised request
NOISE_ROWS = 32  # of one noised request, unless the permit says another number
MAX_BUDGET_MODELS = 1024  # models of one privacy budget
MAX_CACHED_DECISIONS = 4096  # the least recently used is dropped
MAX_AMOUNT = 2**53 - 1  # of requests or units: exact in JSON, and far from 64-bit overflow when added
MAX_EPSILON_MICRO = 10**12  # a million; an epsilon above it is a typing mistake
UNITS_PER_REQUEST = 256  # units held back for a request whose true cost is still sealed, unless the budget says more
