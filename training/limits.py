"""Every bound of training, in one place."""

from __future__ import annotations

MAX_CONFIGURATION = 1024 * 1024  # bytes of a CONFIG.toml
MAX_DATA_FILE = 4 * 1024**3
MAX_ROWS = 10_000_000
MAX_CELLS = 400_000_000  # rows times columns, as float64 3.2 GB
MAX_KEY_FILE = 64 * 1024
MIN_ROWS = 8  # after the held-out rows are set aside

# Per-example gradients of one physical batch, in numbers: larger batches are worked off in parts of this size.
MAX_GRADIENT_NUMBERS = 1024 * 1024

BASELINE_STEPS = 400
BASELINE_ROWS = 4096  # rows of one step of the comparison without privacy
EPSILON_MARGIN_MICRO = 10  # stated above the computed figure: rounding differs between machines
SIGMA_GRID_MICRO = 1000  # sigma is calibrated to three decimals
PROGRESS_POINTS = 12  # how often the progress bar's epsilon is computed
EVALUATION_ROWS = 65_536  # rows of one batch when a model is measured
