"""What a run writes down about itself in its certificate, from the configuration and what was executed.

Never: a number that was computed from private rows, except the measured quality, which is on the card and is named
among the releases.
"""

from __future__ import annotations

import datetime

from sealgate.certificate.architectures import (
    Architecture,
    FrozenEncoderSpec,
    LinearRegressionSpec,
    LogisticRegressionSpec,
)
from sealgate.certificate.bundle import sha256_hex
from sealgate.certificate.claims import NOISE_SOURCE, SCHEMA
from sealgate.certificate.decimals import decimal_text
from sealgate.certificate.manifest import parse_manifest
from sealgate.certificate.recompute import accountant_version
from sealgate.certificate.schema import (
    Accounting,
    Certificate,
    Dataset,
    Initialisation,
    Measured,
    Preprocessing,
    Release,
    Selection,
)
from training.accountant import Cost
from training.configuration import Configuration
from training.dp_sgd.noise import DISCRETE
from training.environment import environment
from training.mechanisms.plan import Plan
from training.split import COMMITMENT
from training.sweep import sweep_release

NOT_PROTECTED = (
    "what the model learned about the population as a whole, which may be true of people who were not in the data",
    "the rows held out for measuring, which were not used for training and whose accuracy is published",
    "the requests that the model will answer: epsilon is about training data only",
    "a publisher that lies about how it trained: the certificate is its signed word, checked for consistency",
)


def initialisation_of(architecture: Architecture) -> Initialisation:
    """How the weights began, and which of them are public and stay what they were."""
    linear = isinstance(architecture.trained_part(), LinearRegressionSpec | LogisticRegressionSpec)
    pretraining = "none"
    if isinstance(architecture, FrozenEncoderSpec):
        pretraining = f"{architecture.pretraining}, public and frozen, digest {architecture.frozen_digest}"
    return Initialisation(
        method="zeros" if linear else "uniform by fan-in, biases zero",
        randomness=NOISE_SOURCE,
        pretraining=pretraining,
    )


_PER_UNIT = {
    "example": "more than one row per person: the guarantee is for one row",
    "graph": "more than one graph per person: the guarantee is for one graph",
    "edge": "the nodes themselves, whose features and targets count as public: the bundle holds what was made of them; "
    "and more than one edge of a node: the guarantee is for one edge",
    "node": "more than one node per person: the guarantee is for one node with its edges, where no node has more "
    "neighbours than declared",
    "user": "that somebody is a person of the data at all, beyond the bound: the guarantee is for all rows of one",
}
_FLOATING_POINT = "attacks on floating-point arithmetic: the noise is continuous float64, not the discrete Gaussian"
_ROUNDED = "attacks on the arithmetic of gradients and on log, sine and cosine that are wrong beyond their last place"


def not_protected(plan: Plan) -> tuple[str, ...]:
    """What epsilon does not protect, for this mechanism and unit."""
    discrete = plan.audited is not None and plan.audited.constants.noise == DISCRETE
    weakness = _ROUNDED if plan.audited is plan else _FLOATING_POINT  # DP-SGD alone, or with other releases
    return (*NOT_PROTECTED, _PER_UNIT[plan.unit], *(() if discrete else (weakness,)))


def _gradients(plan: Plan) -> str:
    """How per-example gradients were computed in the runs of this plan; empty where there were none."""
    steps = plan.audited
    if steps is None:
        return ""
    modes = ", ".join(sorted({one.mode for one in steps.chosen}))
    sharded = ", weights sharded" if steps.sharded else ""
    return f"{modes} on {steps.processes} processes{sharded}" if steps.processes > 1 else modes


def certificate_of(
    configuration: Configuration,
    *,
    plan: Plan,
    cost: Cost,
    coordinates: int,
    steps_executed: int,
    fresh: bool,
    commitment: str,
    weights: bytes,
    manifest: bytes,
    issued_us: int,
    measured: tuple[Measured, ...],
) -> Certificate:
    """The certificate of a finished run. `fresh` says that all randomness came from the operating system.

    `measured` has this model first, then those of a sweep.
    """
    data, search = configuration.data, plan.search(fresh=fresh)
    issued = datetime.datetime.fromtimestamp(issued_us / 1e6, tz=datetime.UTC).date()
    return Certificate(
        schema=SCHEMA,
        model=configuration.model.name,
        version=configuration.model.version,
        issued=issued.isoformat(),
        mechanism=plan.part(coordinates=coordinates, steps_executed=steps_executed, fresh=fresh),
        unit=plan.unit,
        adjacency="add-remove",
        epsilon_micro=cost.epsilon_micro,
        epsilon_replace_one_micro=cost.epsilon_replace_one_micro,
        delta=configuration.delta,
        accounting=Accounting(
            accountant=plan.account.accountant,
            version=accountant_version(),
            discretisation=cost.discretisation,
            second_accountant=cost.second_accountant,
            second_version=cost.second_version,
            second_epsilon_micro=cost.second_epsilon_micro,
        ),
        preprocessing=Preprocessing(statistics="public-constants", epsilon_micro=0),
        initialisation=initialisation_of(parse_manifest(manifest).architecture),
        dataset=Dataset(
            commitment_kind=COMMITMENT,
            commitment=commitment,
            public_population=data.public_population,
            split=f"by a hash of each row and the word '{data.split}', {decimal_text(data.held_out)} held out",
        ),
        selection=Selection(
            how=configuration.selection.how,
            epsilon_micro=0 if search is None else cost.epsilon_micro - cost.one_run_micro,
            note=configuration.selection.note,
            search=search,
        ),
        releases=(
            Release(
                what="quality of this model on held-out rows",
                where="terminal, card.md and this certificate",
                covered=False,
            ),
            Release(
                what="quality of the same model without privacy, on held-out rows", where="terminal", covered=False
            ),
            Release(what="numbers of rows trained on and held out", where="terminal", covered=False),
            Release(what="epsilon and steps while training", where="terminal", covered=True),
            *_watched(configuration),
            *_masked(configuration),
            *((sweep_release(measured[1:], delta=configuration.delta),) if measured[1:] else ()),
        ),
        audit=None,
        environment=environment(gradients=_gradients(plan)),
        weights_digest=sha256_hex(weights),
        manifest_digest=sha256_hex(manifest),
        not_protected=not_protected(plan),
        measured=measured,
    )


def _masked(configuration: Configuration) -> tuple[Release, ...]:
    """What masking counted in the rows, on the terminal of whoever owns them."""
    if not configuration.masking:
        return ()
    what = "how often masking found what it looked for, and how many rows are alike"
    return (Release(what=what, where="terminal", covered=False),)


def _watched(configuration: Configuration) -> tuple[Release, ...]:
    """The loss that people saw while training, if they did: of public rows under weights that epsilon covers."""
    if not configuration.data.public_rows:
        return ()
    return (Release(what="loss of public rows while training", where="terminal", covered=True),)
