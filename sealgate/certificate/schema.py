"""The certificate's fields: what a trainer states about how a model came to be. Integers and texts, never floats.

Epsilon, sigma and norms are millionths; rates are fractions; delta is a decimal text. The certificate is a claim: what
makes it worth something is that `claims.py` and `recompute.py` check it and that a known publisher signed it.
"""

from __future__ import annotations

import msgspec

from sealgate.certificate.mechanisms import Mechanism, Noise, Part


class Accounting(Part, frozen=True):
    """Which accountant gave the figure, and what a second, independent one says."""

    accountant: str  # "dp-accounting-pld", or "dp-accounting-rdp" where that does not reach
    version: str
    discretisation: str  # of privacy losses, decimal text; "0" where none is needed
    second_accountant: str  # "opacus-prv", "analytic-gaussian", "opacus-rdp"
    second_version: str
    second_epsilon_micro: int


class Statistic(Part, frozen=True):
    """One statistic of the private rows that preprocessing used, with its own cost.

    `mechanism` is "laplace" or "gaussian" with noise of `multiplier_micro` sensitivities; or either with "-threshold":
    names, of which a row counts for at most `contributions`, told where their noisy count reaches `threshold`. A
    verifier recomputes these. "stated" is a mechanism of which it has the publisher's word only.
    """

    what: str
    mechanism: str
    multiplier_micro: int  # 0 for "stated"
    epsilon_micro: int
    epsilon_replace_one_micro: int
    delta: str
    contributions: int = 1
    threshold: int = 0


class Masked(Part, frozen=True):
    """What was done to a column before anything else saw it; the publisher's word, as the choice of rows is."""

    column: str
    action: str  # "drop", "hash", "bin", "top", "month", "year", "prefix", "redact"
    detail: str


class Preprocessing(Part, frozen=True):
    """Bounds, scales, categories. `statistics` is "public-constants": written down before anybody saw the data; or
    "dp": the sums of `parts` come on top of what the mechanism costs (basic composition)."""

    statistics: str
    epsilon_micro: int
    epsilon_replace_one_micro: int = 0
    delta: str = "0"
    parts: tuple[Statistic, ...] = ()
    masked: tuple[Masked, ...] = ()


class Initialisation(Part, frozen=True):
    """Outside the guarantee. `pretraining` is "none" or names the public data."""

    method: str
    randomness: str
    pretraining: str


class Dataset(Part, frozen=True):
    """`commitment` is a Merkle root over salted rows: it can be opened by who holds the salt, and tells nothing else.

    `public_population` is the publicly known order of size, not the private count.
    """

    commitment_kind: str
    commitment: str
    public_population: int
    split: str


class Search(Part, frozen=True):
    """The best of a random number of runs, each with one of `choices` drawn uniformly (Papernot and Steinke 2022).

    The number of runs is truncated negative binomial: `shape` 0 is logarithmic, 1 geometric. `score` says what was
    counted over the rows to compare runs; each row changes it by at most one, and `noise` is added in that unit.
    """

    choices: int
    trials_mean_micro: int
    shape: int
    score: str
    noise: Noise


class Selection(Part, frozen=True):
    """How hyper-parameters were chosen: "fixed", "public-data", or "dp-selected" by a `search` whose cost is part of
    the certificate's epsilon; `epsilon_micro` is how much of it."""

    how: str
    epsilon_micro: int
    note: str
    search: Search | None = None


class Release(Part, frozen=True):
    """Something besides the weights that people saw. `covered` says whether epsilon covers it."""

    what: str
    where: str
    covered: bool


class Measured(Part, frozen=True):
    """How well one model did on rows that were held out: accuracy, with `right` of `rows`, or R2 (`right` is 0).

    The bounds are those of a 95 % interval for other rows of the same kind: Wilson's for accuracy, normal for R2.
    `epsilon_micro` is what that model costs by itself.
    """

    epsilon_micro: int
    measure: str
    rows: int
    right: int
    value_micro: int
    low_micro: int
    high_micro: int


class AuditProbe(Part, frozen=True):
    """One question to the trainer: `verdict` is "held" or anything else, which is refused; `found` are its figures."""

    name: str
    verdict: str
    found: str


class Audit(Part, frozen=True):
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


class Environment(Part, frozen=True):
    """What ran: digest of the training code, and the versions of the packages that did the arithmetic.

    `gradients` names how per-example gradients of DP-SGD were computed; all ways give the same numbers.
    """

    code_digest: str
    packages: dict[str, str]
    python: str
    gradients: str = ""


class Derivation(Part, frozen=True):
    """That this model was made from another's weights alone, by a computation without data: post-processing.

    `how` is "int8" or "bf16". The digests are those of the original's weights, manifest and signed certificate, of
    which the latter two lie in the bundle. `original` is how well the original did on the rows that the first of
    `measured` was measured on, if any; sizes are bytes of the two files of weights.
    """

    how: str
    weights_digest: str
    manifest_digest: str
    certificate_digest: str
    bytes_before: int
    bytes_after: int
    original: Measured | None = None


class Certificate(Part, frozen=True):
    """The predicate of the signed statement."""

    schema: int  # 2
    model: str
    version: str
    issued: str  # YYYY-MM-DD
    mechanism: Mechanism
    unit: str  # "example": one row; "user": all rows of a person; "graph", "node", "edge"
    adjacency: str  # "add-remove"
    epsilon_micro: int
    epsilon_replace_one_micro: int
    delta: str  # of everything together
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
    measured: tuple[Measured, ...] = ()  # this model; then others of a sweep over epsilon, whose weights are gone
    derivation: Derivation | msgspec.UnsetType = msgspec.UNSET  # left out where the model is as it was trained

    @property
    def derived(self) -> Derivation | None:
        """How the model was made from another one; None for a model as it was trained."""
        return self.derivation or None


class Composed(Part, frozen=True):
    """One member, as it stood when the pipeline was signed. `people` is "" where it counts as everybody's."""

    name: str
    model: str
    version: str
    publisher_key: str  # hex SHA-256, as in publishers.toml
    certificate_digest: str
    weights_digest: str
    people: str
    epsilon_micro: int
    epsilon_replace_one_micro: int
    delta: str


class Composition(Part, frozen=True):
    """The predicate of a pipeline's signed statement: what its members cost together (`composition.py`)."""

    schema: int  # 1
    model: str
    version: str
    issued: str
    unit: str
    adjacency: str
    epsilon_micro: int
    epsilon_replace_one_micro: int
    delta: str
    members: tuple[Composed, ...]
    weights_digest: str  # of all members' weights and the manifest: what evidence calls the model's digest
    manifest_digest: str
    not_protected: tuple[str, ...]
