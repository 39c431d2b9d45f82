"""Every bound of training, in one place."""

from __future__ import annotations

from fractions import Fraction

MAX_CONFIGURATION = 1024 * 1024  # bytes of a CONFIG.toml
MAX_DATA_FILE = 4 * 1024**3
MAX_CSV_ROW = 16 * 1024**2  # bytes of one line of a CSV file, its texts included
MAX_ROWS = 10_000_000
MAX_CELLS = 400_000_000  # rows times columns, as float64 3.2 GB
MAX_FAULTS_SHOWN = 5  # columns, or values, that are wrong and said in one line
MIN_MASKING_KEY = 32  # bytes of the key for hashed columns
MAX_MASKING_KEY = 4096
MAX_KEPT_CHARACTERS = 64  # of a prefix
MAX_PRIVATE_NAMES = 100_000  # categories or words of one private release
MIN_ROWS = 8  # after the held-out rows are set aside

BASELINE_STEPS = 400
BASELINE_ROWS = 4096  # rows of one step of the comparison without privacy
BASELINE_NUMBERS = 4 * 1024 * 1024  # and fewer rows, where a model holds much for each
BASELINE_LEAST_ROWS = 64
EPSILON_MARGIN_MICRO = 10  # stated above the computed figure: rounding differs between machines
OPEN_STEPS = 300  # of parts of a network's model that see nothing private
NEWTON_STEPS = 60  # of the solver behind objective perturbation; ten are usual
SIGMA_GRID_MICRO = 1000  # sigma is calibrated to three decimals
PROGRESS_POINTS = 12  # how often the progress bar's epsilon is computed
FIXED_ROWS = 256  # rows of one batch of the fixed part of a model
EVALUATION_ROWS = 4096  # rows of one batch when a model is measured

# The audit gate: enough lanes to tell ten per cent less noise at epsilon 3, few enough for seconds.
AUDIT_LANES = 20_000
AUDIT_MAX_LANES = 4096  # lanes of one run
AUDIT_WORK = 300_000  # rate times the square of the lanes of one run: twice the numbers in a step's gradients
AUDIT_LANE_STEPS = 400  # longer runs are audited over their first so many steps, against the claim for so many
AUDIT_CANARY_SIZE = 1e6  # clip norms: a gradient that nothing but clipping can make harmless
AUDIT_REPLAY_ROWS = 8192
AUDIT_MIN_REPLAY_ROWS = 256
AUDIT_REPLAY_STEPS = 100
AUDIT_MIN_DRAWS = 100  # canaries that a step of the replay draws, on average
AUDIT_CONSTANT_ROWS = 100_000
AUDIT_CONSTANT_LANES = 64
AUDIT_CONSTANT_TIMES = 12  # at most, for one number of rows, until the row in question was drawn
AUDIT_OTHERS = 5  # made-up examples of the run's own architecture, and one more at a time
AUDIT_NEIGHBOURS = 12

# The choice of a gradient mode. Two sizes of the check: a dimension that is not the examples cannot fit both.
CHECK_ROWS = (3, 5)
MEASURED_ROWS = 64
MEASURED_ROUNDS = 2
MAX_PART_NUMBERS = 16 * 1024 * 1024  # of activations and gradients at the same time: 64 to 128 MB
AUDIT_STATISTIC_VALUES = 20_000  # of the noise of each private statistic
AUDIT_RUNS = 2500  # of a mechanism that releases once, with or without one example; for each of two examples
AUDIT_PILOT_RUNS = 1000  # of them, that teach the attacker
MAX_AUGMENTATIONS = 64  # variants of an image in one step
MAX_SHIFT = 16  # pixels
AUDIT_BLACK_BOX_CANARIES = 600
AUDIT_GUESSED = 300  # of them, half said to be in and half out
AUDIT_SHADOWS = 16
WATCHED_POINTS = 25  # how often the loss of public rows is computed
TIMED_STEPS = 4  # of a forecast: the first is left out, the fastest of the others counts
TIMED_NUMBERS = 32 * 1024 * 1024  # in the rows of one timed step, where the model is widest
TIMED_RELEASE_ROWS = 20_000

# The owner's fingerprint: enough triggers that a third of them convinces, few enough not to spoil a small model.
FINGERPRINT_TRIGGERS = 32
FINGERPRINT_PARAMETERS_EACH = 64  # trained weights for each trigger; smaller models lose too much of what they learned
FINGERPRINT_MARGIN = 4.0  # log-odds by which a trigger's label leads: what survives rounding and further training
FINGERPRINT_NUDGE = 0.5  # of the gradient once a step, and at most so long
FINGERPRINT_FINISH_STEPS = 1000
FINGERPRINT_CHANCE = Fraction(1, 1_000_000)  # of a false accusation, at most

# Several processes of one run.
MAX_PROCESSES = 64
PROCESS_SILENCE_S = 3600  # the longest step; a process that is stopped is noticed after so long
PROCESS_JOIN_S = 20  # for a process to go, when its run has ended
