"""The certificate's fields: what a trainer states about how a model came to be. Integers and texts, never floats.

Epsilon, sigma and norms are millionths; rates are fractions; delta is a decimal text. The certificate is a claim: what
makes it worth something is that `claims.py` and `recompute.py` check it and that a known publisher signed it.
"""

from __future__ import annotations

import msgspec


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all parts: immutable, no unknown fields, keywords only."""


class Rate(_Part, frozen=True):
    """A sampling probability as a fraction in (0, 1]."""

    numerator: int
    denominator: int


class Sampling(_Part, frozen=True):
    """How rows enter a step. `constants` says where rate, steps and divisor come from: only "public" is accepted."""

    sampler: str  # "poisson": each row enters each step independently with probability `rate`
    rate: Rate
    steps_declared: int
    steps_executed: int
    divisor_micro: int  # what the noisy sum is divided by: rate times the public population, never the batch's size
    constants: str


class Clipping(_Part, frozen=True):
    """`kind` is "per-example-flat": the whole gradient of one row is scaled to at most `norm_micro` in L2."""

    kind: str
    norm_micro: int


class Noise(_Part, frozen=True):
    """Gaussian noise of standard deviation sigma times the clip norm on each step's sum.

    `source` is where randomness comes from, `seed` is "fresh" (never written down) or anything else, which is refused.
    """

    sigma_micro: int
    source: str  # "os-csprng/aes-256-ctr"
    seed: str
    transform: str  # "box-muller-4"
    arithmetic: str  # "float64-continuous": not the discrete Gaussian, and said so


class Accounting(_Part, frozen=True):
    """Which accountant gave the figure, and what a second, independent one says."""

    accountant: str  # "dp-accounting-pld"
    version: str
    discretisation: str  # decimal text
    second_accountant: str  # "opacus-prv"
    second_version: str
    second_epsilon_micro: int


class Preprocessing(_Part, frozen=True):
    """`statistics` is "public-constants": bounds and scales were written down before anybody saw the data."""

    statistics: str
    epsilon_micro: int


class Initialisation(_Part, frozen=True):
    """Outside the guarantee. `pretraining` is "none" or names the public data."""

    method: str
    randomness: str
    pretraining: str


class Dataset(_Part, frozen=True):
    """`commitment` is a Merkle root over salted rows: it can be opened by who holds the salt, and tells nothing else.

    `public_population` is the publicly known order of size, not the private count.
    """

    commitment_kind: str
    commitment: str
    public_population: int
    split: str


class Selection(_Part, frozen=True):
    """How hyper-parameters were chosen: "fixed", "public-data" or "dp-selected" with its cost."""

    how: str
    epsilon_micro: int
    note: str


class Release(_Part, frozen=True):
    """Something besides the weights that people saw. `covered` says whether epsilon covers it."""

    what: str
    where: str
    covered: bool


class AuditProbe(_Part, frozen=True):
    """One question to the trainer: `verdict` is "held" or anything else, which is refused; `found` are its figures."""

    name: str
    verdict: str
    found: str


class Audit(_Part, frozen=True):
    """An attack on the training code with this run's constants, on made-up rows: see `audits.py` for the methods.

    `epsilon_lower_micro` is the greatest epsilon that the attack excludes with confidence `confidence_ppm` millionths,
    from `canaries` of them over `steps` steps.
    """

    method: str
    epsilon_lower_micro: int
    confidence_ppm: int
    canaries: int
    steps: int
    probes: tuple[AuditProbe, ...]
    code_digest: str


class Environment(_Part, frozen=True):
    """What ran: digest of the training code, and the versions of the packages that did the arithmetic."""

    code_digest: str
    packages: dict[str, str]
    python: str


class Certificate(_Part, frozen=True):
    """The predicate of the signed statement."""

    schema: int
    model: str
    version: str
    issued: str  # YYYY-MM-DD
    mechanism: str  # "dp-sgd"
    unit: str  # "example": one row
    adjacency: str  # "add-remove"
    epsilon_micro: int
    epsilon_replace_one_micro: int
    delta: str
    sampling: Sampling
    clipping: Clipping
    noise: Noise
    accounting: Accounting
    preprocessing: Preprocessing
    initialisation: Initialisation
    dataset: Dataset
    selection: Selection
    releases: tuple[Release, ...]
    audit: Audit | None
    environment: Environment
    weights_digest: str
    manifest_digest: str
    not_protected: tuple[str, ...]
