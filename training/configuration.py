"""CONFIG.toml of `sealgate train`: a lab note that a program can read. Every number in it is a public constant.

Numbers are parsed as exact decimals, never as floats, because they end in signed bytes. Unknown keys are errors: a
misspelt `clip_nrom` must not silently mean the default. Long, because it is the list of what can be said. Trusts: the
person who wrote it. Never: looks at the data.
"""

from __future__ import annotations

import datetime
import tomllib
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec

from sealgate.certificate.architectures import FAMILIES
from sealgate.certificate.decimals import MICRO, decimal_text
from sealgate.certificate.manifest import ARITHMETICS, NAME, SENSITIVITIES, VERSION
from sealgate.errors import ConfigurationError, DecodeError
from sealgate.limits import MAX_CLASSES, MAX_COLUMNS, MAX_ROWS_PER_UNIT, MAX_TRAINING_STEPS
from sealgate.toml_words import in_words
from training.limits import MAX_AUGMENTATIONS, MAX_CONFIGURATION, MAX_SHIFT

PACKAGE = "package:"  # begins the name of a folder inside an installed Python package

MECHANISMS = {
    "dp-sgd": ("", "every family"),
    "adassp": ("linear-regression", "a linear-regression on a table"),
    "objective-perturbation": ("logistic-regression", "a logistic-regression with two classes on a table"),
    "gap-aggregation": ("embedding-bag", "an embedding-bag on a network"),
}
"""Mechanisms with the family that each is for, and in words."""
NETWORKS = "gap-aggregation"  # the mechanism that sees edges between rows
NOISES = ("gaussian", "discrete-gaussian")  # as `training.dp_sgd.noise` calls them
# As `training.dp_sgd` calls them: that package needs torch, and reading a configuration does not.
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "rmsprop")
SCHEDULES = ("constant", "cosine")
AVERAGES = ("mean", "ema")
GRADIENTS = ("auto", "book-keeping", "hooks", "ew", "ghost", "functorch", "vmap", "loop")


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all sections."""


class ModelSection(_Section, frozen=True):
    """`[model]`: what is made and what it may be used for."""

    name: str
    version: str
    description: str
    family: str
    sensitivity: str
    purposes: tuple[str, ...]
    units_per_row: int = 1
    explain_units_per_row: int | None = None  # None: the manifest's multiple of units_per_row
    warm_up: tuple[int, ...] = ()  # rows of requests to expect: a worker runs the model on so many before it serves it
    arithmetic: str = "float64"
    module: str = ""  # "package.module:Class" to train in place of the declared architecture


class DataSection(_Section, frozen=True):
    """`[data]`. `public_population` is the publicly known order of the number of rows, not their count."""

    source: str
    target: str
    public_population: int
    kind: str = "table"
    person: str = ""  # the column that says whose row it is, where the unit of privacy is a person
    classes: dict[str, str] = {}  # value of the target in the data -> name of the class
    target_range: tuple[Decimal, Decimal] | None = None
    held_out: Decimal = Decimal("0.2")
    split: str = "1"  # names one of the possible splits; public, and no secret
    heldout_csv: str = ""
    public_rows: str = ""  # rows of the same columns that are no secret: their loss is shown while training


class PrivacySection(_Section, frozen=True):
    """`[privacy]`: either `epsilon` (sigma is calibrated) or `sigma` (epsilon follows).

    `rate`, `steps`, `clip_norm` and `noise` belong to the mechanism dp-sgd, `row_norm` to the others, and
    `regularisation` to objective-perturbation.
    """

    delta: Decimal
    mechanism: str = "dp-sgd"
    rate: str = ""
    steps: int = 0
    clip_norm: Decimal = Decimal(0)
    epsilon: Decimal | None = None
    sigma: Decimal | None = None
    noise: str = "gaussian"
    rows_per_person: int = 1  # where the unit of privacy is a person: at most so many of one's rows count
    row_norm: Decimal | None = None
    regularisation: Decimal | None = None


class OptimizerSection(_Section, frozen=True):
    """`[optimizer]`: what happens after the noise; costs no privacy."""

    learning_rate: Decimal = Decimal(0)
    kind: str = "sgd"
    momentum: Decimal = Decimal(0)
    first_decay: Decimal = Decimal("0.9")  # of adam and adamw
    second_decay: Decimal = Decimal("0.999")  # of adam, adamw and rmsprop
    weight_decay: Decimal = Decimal(0)  # of adamw
    schedule: str = "constant"
    warmup_steps: int = 0
    average: str = "mean"
    average_steps: int = 0
    average_decay: Decimal = Decimal(0)  # of an exponential average


class LossSection(_Section, frozen=True):
    """`[loss]`: "cross-entropy" for classes, "mse" or "huber" for values; empty takes the first that fits."""

    kind: str = ""
    transition: Decimal = Decimal(1)  # of huber, on the model's scale, where targets lie in [-1, 1]


class AugmentationSection(_Section, frozen=True):
    """`[augmentation]`: each image enters a step in so many random variants whose mean gradient is clipped."""

    multiplicity: int = 1
    shift: int = 0  # pixels
    flip: bool = False  # left and right


class EngineSection(_Section, frozen=True):
    """`[engine]`: how the arithmetic is done; nothing of it changes what is private."""

    gradients: str = "auto"
    arithmetic: str = "float64"
    checkpoint_every: int = 0  # steps; 0 keeps none


class SelectionSection(_Section, frozen=True):
    """`[selection]`: how these numbers were chosen. "dp-selected" is choosing them on the private rows, by the best of
    a random number of runs among the choices of `[selection.grid]`; the whole of it is part of epsilon."""

    how: str
    note: str
    trials: str = "geometric"  # how the number of runs is distributed: "geometric" or "logarithmic"
    mean_trials: Decimal = Decimal(10)
    score_sigma: Decimal = Decimal(50)
    grid: dict[str, tuple[Decimal, ...]] = {}


class Configuration(_Section, frozen=True):
    """The whole file. `architecture` holds the family's own options; each form of data (`training.forms`) reads its
    own section. `columns` gives each feature's public range [low, high], or [low, high, center, scale]; `categories`
    and `dates` the public values of a column, and a column's first and last day."""

    model: ModelSection
    data: DataSection
    privacy: PrivacySection
    selection: SelectionSection
    optimizer: OptimizerSection = OptimizerSection()
    loss: LossSection = LossSection()
    augmentation: AugmentationSection = AugmentationSection()
    engine: EngineSection = EngineSection()
    architecture: dict[str, Any] = {}
    image: dict[str, Any] = {}
    center: dict[str, Any] = {}
    sequence: dict[str, Any] = {}
    text: dict[str, Any] = {}
    tokens: dict[str, Any] = {}
    graph: dict[str, Any] = {}
    network: dict[str, Any] = {}
    pretrained: dict[str, str] = {}
    masking: dict[str, Any] = {}
    preprocessing: dict[str, Any] = {}
    columns: dict[str, tuple[Decimal, ...]] = {}
    categories: dict[str, tuple[str, ...]] = {}
    dates: dict[str, tuple[datetime.date, datetime.date]] = {}

    @property
    def rate(self) -> Fraction:
        return Fraction(self.privacy.rate)

    @property
    def delta(self) -> str:
        return decimal_text(self.privacy.delta)

    @property
    def divisor_micro(self) -> int:
        """E[B] in millionths: the rate times the public population."""
        return self.data.public_population * MICRO * self.rate.numerator // self.rate.denominator


def load_configuration(path: Path) -> Configuration:
    """Read and check CONFIG.toml; raises ConfigurationError with one line that says what to mend."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIGURATION + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_CONFIGURATION:
        raise ConfigurationError(f"{path} is larger than {MAX_CONFIGURATION} bytes")
    try:
        parsed = tomllib.loads(data.decode(), parse_float=Decimal)
        configuration = _beside(path, msgspec.convert(parsed, Configuration))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise ConfigurationError(f"{path}: {in_words(error, Configuration)}") from error
    try:
        check_configuration(configuration)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    return configuration


def _beside(path: Path, configuration: Configuration) -> Configuration:
    """A `[pretrained] folder` that is a path is meant from where the file stands."""
    folder = configuration.pretrained.get("folder", PACKAGE)
    if folder.startswith(PACKAGE):
        return configuration
    return msgspec.structs.replace(
        configuration, pretrained={**configuration.pretrained, "folder": str(path.parent / folder)}
    )


def micro(value: Decimal, name: str) -> int:
    """A decimal as whole millionths; raises ConfigurationError if it is not."""
    if not value.is_finite() or abs(value) > 10**9 or value * MICRO != int(value * MICRO):
        raise ConfigurationError(f"{name} must be a number below 10^9 with at most six decimals")
    return int(value * MICRO)


def check_configuration(configuration: Configuration) -> None:
    """Raise ConfigurationError unless the parts fit together."""
    _check_model(configuration)
    _check_data(configuration)
    _check_privacy(configuration)
    if len(configuration.columns) > MAX_COLUMNS:
        raise ConfigurationError(f"[columns] names more than {MAX_COLUMNS} features")
    private = configuration.preprocessing.get("categories", {})
    twice = sorted(set(configuration.categories) & set(private if isinstance(private, dict) else {}))
    if twice:
        raise ConfigurationError(f"[categories] '{twice[0]}' stands in [preprocessing.categories], too")
    if configuration.preprocessing.get("vocabulary") and configuration.text.get("words"):
        raise ConfigurationError("[text] words stand in the way of [preprocessing.vocabulary]; take one of them")
    if (configuration.categories or configuration.dates or private) and configuration.data.kind != "table":
        raise ConfigurationError("[categories] and [dates] belong to tables")
    for name, numbers in configuration.columns.items():
        if len(numbers) not in (2, 4):
            raise ConfigurationError(f"[columns] '{name}' must be [low, high] or [low, high, center, scale]")
        for what, other in (("target", configuration.data.target), ("person", configuration.data.person)):
            if name == other:
                raise ConfigurationError(f"[columns] '{name}' is the {what} and cannot be a feature")
        _check_decimals(f"[columns] '{name}'", numbers)
        if not numbers[0] < numbers[1] or (len(numbers) == 4 and numbers[3] <= 0):
            raise ConfigurationError(f"[columns] '{name}': low must be below high, and scale above zero")


def _check_decimals(where: str, numbers: tuple[Decimal, ...]) -> None:
    for number in numbers:
        try:
            decimal_text(number)
        except DecodeError as error:
            raise ConfigurationError(f"{where}: {number} has too many digits or is not finite") from error


def _check_model(configuration: Configuration) -> None:
    model = configuration.model
    for holds, what in (
        (NAME.match(model.name), "name must be lowercase letters, digits, '.', '_' or '-'"),
        (VERSION.match(model.version), "version must look like 1.0.0"),
        (model.family in FAMILIES, f"family must be one of: {', '.join(FAMILIES)}"),
        (model.sensitivity in SENSITIVITIES, f"sensitivity must be one of: {', '.join(SENSITIVITIES)}"),
        (model.purposes, "purposes must name at least one purpose"),
        (model.arithmetic in ARITHMETICS, f"arithmetic must be one of: {', '.join(ARITHMETICS)}"),
    ):
        if not holds:
            raise ConfigurationError(f"[model] {what}")


def _check_data(configuration: Configuration) -> None:
    data = configuration.data
    if bool(data.classes) == (data.target_range is not None):
        raise ConfigurationError(
            '[data] give classes = { "value" = "name", ... } to classify, or target_range = [low, high] for a value'
        )
    family = configuration.model.family
    if (family == "linear-regression" and data.classes) or (family == "logistic-regression" and not data.classes):
        raise ConfigurationError(
            f"[data] a {family} needs {'target_range = [low, high]' if data.classes else 'classes'}, and nothing else"
        )
    if data.classes and not 2 <= len(data.classes) <= MAX_CLASSES:
        raise ConfigurationError(f"[data] classes must be at least two and at most {MAX_CLASSES}")
    if len(set(data.classes.values())) != len(data.classes):
        raise ConfigurationError("[data] two classes have the same name")
    if data.target_range is not None:
        _check_decimals("[data] target_range", data.target_range)
        if not data.target_range[0] < data.target_range[1]:
            raise ConfigurationError("[data] target_range: low must be below high")
    if data.public_population <= 0:
        raise ConfigurationError("[data] public_population must be above zero")
    _check_decimals("[data] held_out", (data.held_out,))
    if not 0 < data.held_out < 1:
        raise ConfigurationError("[data] held_out must lie between 0 and 1, for example 0.2")


def _check_privacy(configuration: Configuration) -> None:
    privacy = configuration.privacy
    if privacy.mechanism not in MECHANISMS:
        raise ConfigurationError(f"[privacy] mechanism must be one of: {', '.join(MECHANISMS)}")
    if (privacy.epsilon is None) == (privacy.sigma is None):
        raise ConfigurationError("[privacy] give either epsilon or sigma, not both")
    for name, number in (
        ("epsilon", privacy.epsilon),
        ("sigma", privacy.sigma),
        ("row_norm", privacy.row_norm),
        ("regularisation", privacy.regularisation),
    ):
        if number is not None and micro(number, f"[privacy] {name}") <= 0:
            raise ConfigurationError(f"[privacy] {name} must be above zero")
    _check_decimals("[privacy] delta", (privacy.delta,))
    if not 0 < privacy.delta * configuration.data.public_population < 1:
        raise ConfigurationError("[privacy] delta must be above zero and below one over public_population")
    if privacy.mechanism == NETWORKS or configuration.data.kind == "network":
        _check_network(configuration)
    elif privacy.mechanism == "dp-sgd":
        _check_sgd(configuration)
    else:
        _check_one_release(configuration)
    if configuration.selection.how not in ("fixed", "public-data", "dp-selected"):
        raise ConfigurationError(
            '[selection] how must be "fixed", "public-data" or "dp-selected": anything else costs privacy'
        )
    if (configuration.selection.how == "dp-selected") != bool(configuration.selection.grid):
        raise ConfigurationError('[selection] "dp-selected" needs a [selection.grid], and nothing else does')


def _check_sgd(configuration: Configuration) -> None:
    """DP-SGD: it has a rate, steps and an optimizer."""
    privacy, optimizer = configuration.privacy, configuration.optimizer
    if privacy.row_norm is not None or privacy.regularisation is not None:
        raise ConfigurationError("[privacy] row_norm and regularisation do not belong to dp-sgd")
    try:
        rate = Fraction(privacy.rate)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigurationError('[privacy] rate must be a fraction such as "1/4"') from error
    if not 0 < rate <= 1:
        raise ConfigurationError("[privacy] rate must lie above 0 and at most at 1")
    if configuration.divisor_micro <= 0:
        raise ConfigurationError("[privacy] rate times [data] public_population must be at least a millionth")
    if micro(privacy.clip_norm, "[privacy] clip_norm") <= 0:
        raise ConfigurationError("[privacy] clip_norm must be above zero")
    if not 0 < privacy.steps <= MAX_TRAINING_STEPS:
        raise ConfigurationError(f"[privacy] steps must lie between 1 and {MAX_TRAINING_STEPS}")
    if privacy.noise not in NOISES:
        raise ConfigurationError(f"[privacy] noise must be one of: {', '.join(NOISES)}")
    if not 1 <= privacy.rows_per_person <= MAX_ROWS_PER_UNIT:
        raise ConfigurationError(f"[privacy] rows_per_person must lie between 1 and {MAX_ROWS_PER_UNIT}")
    _check_decimals("[optimizer] learning_rate", (optimizer.learning_rate,))
    _check_decimals("[optimizer] momentum", (optimizer.momentum,))
    if optimizer.learning_rate <= 0 or not 0 <= optimizer.momentum < 1:
        raise ConfigurationError("[optimizer] learning_rate must be above 0, momentum in [0, 1)")
    if not 0 <= optimizer.average_steps <= privacy.steps:
        raise ConfigurationError("[optimizer] average_steps must lie between 0 and the steps")
    check_engine(configuration)


def _check_one_release(configuration: Configuration) -> None:
    """Mechanisms that release once: they belong to one family each, and have nothing of DP-SGD."""
    privacy, data = configuration.privacy, configuration.data
    family, what = MECHANISMS[privacy.mechanism]
    if configuration.model.family != family or (data.classes and len(data.classes) != 2) or data.kind != "table":
        raise ConfigurationError(f"[privacy] {privacy.mechanism} trains {what}, and nothing else")
    if data.person:
        raise ConfigurationError(f"[privacy] {privacy.mechanism} protects rows, not persons; use dp-sgd")
    if privacy.epsilon is None:
        raise ConfigurationError(f"[privacy] {privacy.mechanism} needs epsilon, not sigma")
    if configuration.loss != LossSection():
        raise ConfigurationError(f"[loss] is not {privacy.mechanism}'s")
    _check_no_steps(configuration)
    if privacy.regularisation is not None and privacy.mechanism != "objective-perturbation":
        raise ConfigurationError("[privacy] regularisation belongs to objective-perturbation")
    if configuration.selection.how == "dp-selected":
        raise ConfigurationError(f"[selection] {privacy.mechanism} has nothing to choose: how must be fixed")


def _check_no_steps(configuration: Configuration) -> None:
    """Nothing of DP-SGD stands there, where there are no steps that it could be about."""
    privacy = configuration.privacy
    if (configuration.augmentation, configuration.engine) != (AugmentationSection(), EngineSection()):
        raise ConfigurationError(f"[augmentation] and [engine] are not {privacy.mechanism}'s")
    unused = (privacy.rate, privacy.steps, privacy.clip_norm, configuration.optimizer)
    if unused != ("", 0, Decimal(0), OptimizerSection()) or privacy.noise != "gaussian" or privacy.rows_per_person != 1:
        raise ConfigurationError(
            f"[privacy] rate, steps, clip_norm, noise and [optimizer] are not {privacy.mechanism}'s"
        )


def _check_network(configuration: Configuration) -> None:
    """Networks: one mechanism is for them; its steps, which it has where the unit is a node, are those of DP-SGD."""
    data, privacy, nodes = configuration.data, configuration.privacy, configuration.network.get("unit") == "node"
    together = (privacy.mechanism, data.kind, configuration.model.family)
    for holds, what in (
        (
            together == (NETWORKS, "network", MECHANISMS[NETWORKS][0]),
            f'[data] kind = "network" and [privacy] mechanism = "{NETWORKS}" go together: {MECHANISMS[NETWORKS][1]}',
        ),
        (not data.person, "[data] person: a network's unit of privacy is an edge or a node; see [network] unit"),
        (not configuration.model.module, "[model] module: what reads a network's aggregates is not exchangeable"),
        (
            not (configuration.center or configuration.preprocessing or configuration.masking),
            "[center], [preprocessing] and [masking] count rows, and are not for networks",
        ),
        (privacy.epsilon is not None, f"[privacy] {NETWORKS} needs epsilon, not sigma"),
        (privacy.noise == "gaussian", f"[privacy] noise: {NETWORKS} has gaussian noise only"),
        (configuration.selection.how != "dp-selected", "[selection] a search scores rows; how must be another here"),
    ):
        if not holds:
            raise ConfigurationError(what)
    if nodes:
        _check_sgd(configuration)
    else:
        _check_no_steps(configuration)


def check_engine(configuration: Configuration) -> None:
    """Raise ConfigurationError unless optimizer, loss, augmentation and engine are what the engine knows."""
    optimizer, loss, engine = configuration.optimizer, configuration.loss, configuration.engine
    augmentation, classes = configuration.augmentation, bool(configuration.data.classes)
    decays = (optimizer.first_decay, optimizer.second_decay, optimizer.average_decay)
    for holds, what in (
        (optimizer.kind in OPTIMIZERS, f"[optimizer] kind must be one of: {', '.join(OPTIMIZERS)}"),
        (optimizer.schedule in SCHEDULES, f"[optimizer] schedule must be one of: {', '.join(SCHEDULES)}"),
        (optimizer.average in AVERAGES, f"[optimizer] average must be one of: {', '.join(AVERAGES)}"),
        (all(0 <= decay < 1 for decay in decays), "[optimizer] decays must lie in [0, 1)"),
        (0 <= optimizer.weight_decay < 10**6, "[optimizer] weight_decay must be at least 0"),
        (
            not optimizer.momentum or optimizer.kind in ("sgd", "momentum"),
            "[optimizer] momentum belongs to sgd and momentum; adam has first_decay",
        ),
        (
            0 <= optimizer.warmup_steps <= configuration.privacy.steps,
            "[optimizer] warmup_steps must be at most the steps",
        ),
        (
            (optimizer.average == "ema") == bool(optimizer.average_decay),
            '[optimizer] average = "ema" needs average_decay in (0, 1), and nothing else does',
        ),
        (
            loss.kind in ("", "cross-entropy") if classes else loss.kind in ("", "mse", "huber"),
            "[loss] kind must be cross-entropy for classes, mse or huber for values",
        ),
        (0 < loss.transition <= 10**6, "[loss] transition must be above 0"),
        (
            1 <= augmentation.multiplicity <= MAX_AUGMENTATIONS and 0 <= augmentation.shift <= MAX_SHIFT,
            f"[augmentation] multiplicity must be at most {MAX_AUGMENTATIONS}, shift at most {MAX_SHIFT}",
        ),
        (
            augmentation == AugmentationSection() or configuration.data.kind == "image",
            "[augmentation] belongs to images",
        ),
        (engine.gradients in GRADIENTS, f"[engine] gradients must be one of: {', '.join(GRADIENTS)}"),
        (engine.arithmetic in ARITHMETICS, f"[engine] arithmetic must be one of: {', '.join(ARITHMETICS)}"),
        (
            configuration.privacy.noise != "discrete-gaussian" or engine.arithmetic == "float64",
            "[privacy] noise: discrete noise is exact about arithmetic, which float32 is not; "
            '[engine] arithmetic must be "float64"',
        ),
        (
            engine.checkpoint_every <= 1 or not configuration.data.public_rows,
            "[data] public_rows: their loss tells of steps that a crash would undo and a resumed run do again; "
            "[engine] checkpoint_every must be 1, or left out",
        ),
        (engine.checkpoint_every >= 0, "[engine] checkpoint_every must be at least 0"),
    ):
        if not holds:
            raise ConfigurationError(what)
