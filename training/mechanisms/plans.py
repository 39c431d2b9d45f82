"""From a configuration to a plan: which mechanism, with which constants, at the least noise that meets its target.

Trusts: the configuration, which was checked. Never: looks at the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import torch

from sealgate.certificate.accounting.account import Account
from sealgate.certificate.accounting.selection import BestOfRuns
from sealgate.certificate.architectures import MlpSpec
from sealgate.certificate.decimals import MICRO
from sealgate.certificate.recompute import GaussianSteps
from sealgate.errors import ConfigurationError
from training.accountant import calibrate, calibrate_run
from training.configuration import Configuration, micro
from training.dp_sgd.checkpoint import Checkpoints
from training.dp_sgd.units import Augmentation
from training.examples import Examples
from training.forms.network import network_section, node_vectors
from training.losses import Loss
from training.mechanisms.adassp import plan_adassp
from training.mechanisms.gap import GapPlan, SeenNetwork, calibrated
from training.mechanisms.objective import plan_objective
from training.mechanisms.plan import Plan
from training.mechanisms.selection import SearchPlan
from training.mechanisms.sgd import SgdPlan
from training.preprocessing.sections import with_placeholders
from training.private_sgd import PrivateSgd

_SHAPES = {"logarithmic": 0, "geometric": 1}
_CHOICES = ("learning_rate", "momentum", "clip_norm", "average_steps")
_MAX_CHOICES = 4096


def plan_of(configuration: Configuration, *, classes: int) -> Plan:
    """The plan that `[privacy]` asks for; raises ConfigurationError."""
    privacy = configuration.privacy
    if privacy.mechanism == "dp-sgd":
        if configuration.selection.how == "dp-selected":
            return _search(configuration, classes=classes)
        return sgd_plan(configuration, _steps(configuration), classes=classes)
    if privacy.epsilon is None:
        raise ConfigurationError(f"[privacy] {privacy.mechanism} needs epsilon, not sigma")
    target = micro(privacy.epsilon, "[privacy] epsilon")
    if privacy.mechanism == "gap-aggregation":
        return _aggregation(configuration, target_micro=target, classes=classes)
    norm = _row_norm(configuration)
    if privacy.mechanism == "adassp":
        return plan_adassp(target_micro=target, delta=configuration.delta, row_norm_micro=norm)
    ridge = privacy.regularisation
    return plan_objective(
        target_micro=target,
        delta=configuration.delta,
        row_norm_micro=norm,
        population=configuration.data.public_population,
        regularisation_micro=None if ridge is None else micro(ridge, "[privacy] regularisation"),
    )


def _steps(configuration: Configuration) -> GaussianSteps:
    """The steps of DP-SGD: sigma as given, or calibrated to the target epsilon."""
    privacy = configuration.privacy
    rate, delta = configuration.rate, configuration.delta
    if privacy.sigma is not None:
        sigma = micro(privacy.sigma, "[privacy] sigma")
        return GaussianSteps(sigma_micro=sigma, rate=rate, steps=privacy.steps, delta=delta)
    assert privacy.epsilon is not None
    target = micro(privacy.epsilon, "[privacy] epsilon")
    return calibrate(target_micro=target, rate=rate, steps=privacy.steps, delta=delta)


def _aggregation(configuration: Configuration, *, target_micro: int, classes: int) -> GapPlan:
    """Aggregation perturbation for the unit that `[network]` names."""
    found, features = network_section(configuration), len(configuration.columns)
    encoder, edges = None, found.unit == "edge"
    if features and found.width:
        encoder = MlpSpec(inputs=features, hidden=(found.width,), activation="tanh", classes=classes)

    def sgd_of(steps: GaussianSteps) -> SgdPlan:
        return sgd_plan(configuration, steps, classes=classes)

    sgd = None
    if not edges:  # sigma is found below
        steps, rate = configuration.privacy.steps, configuration.rate
        sgd = sgd_of(GaussianSteps(sigma_micro=MICRO, rate=rate, steps=steps, delta=configuration.delta))
    plan = GapPlan(
        unit=found.unit,
        hops=found.hops,
        max_degree=found.degree,
        sigma_micro=MICRO,
        encoder=encoder,
        own_vector=edges and bool(features),
        loss=loss_of(configuration, classes=classes),
        delta=configuration.delta,
        sum_norm_micro=micro(found.sum_norm, "[network] sum_norm"),
        sgd=sgd,
    )
    return calibrated(plan, target_micro=target_micro, sgd_of=None if edges else sgd_of)


def on_network(plan: Plan, configuration: Configuration, examples: Examples) -> Plan:
    """The plan with the network that the rows belong to; as it is where they belong to none."""
    network = examples.network
    if network is None or not isinstance(plan, GapPlan):
        return plan
    edges = torch.from_numpy(network.edges - 1)
    return plan.on(SeenNetwork(node_vectors(configuration, network), edges))


def sgd_plan(configuration: Configuration, steps: GaussianSteps, *, classes: int) -> SgdPlan:
    """DP-SGD with these steps and the other constants of the configuration."""
    data, privacy, optimizer = configuration.data, configuration.privacy, configuration.optimizer
    unit = "user" if data.person else {"graph": "graph", "network": "node"}.get(data.kind, "example")
    constants = PrivateSgd(
        rate=configuration.rate,
        steps=steps.steps,
        divisor=configuration.divisor_micro / MICRO,
        clip_norm=float(privacy.clip_norm),
        sigma=steps.sigma_micro / MICRO,
        learning_rate=float(optimizer.learning_rate),
        momentum=float(optimizer.momentum),
        average_steps=optimizer.average_steps,
        optimizer=optimizer.kind,
        first_decay=float(optimizer.first_decay),
        second_decay=float(optimizer.second_decay),
        weight_decay=float(optimizer.weight_decay),
        schedule=optimizer.schedule,
        warmup_steps=optimizer.warmup_steps,
        average=optimizer.average,
        average_decay=float(optimizer.average_decay),
        noise=privacy.noise,
        unit_rows=privacy.rows_per_person if data.person else 1,
        augmentation=_augmentation(configuration),
        arithmetic=configuration.engine.arithmetic,
        gradients=configuration.engine.gradients,
    )
    return SgdPlan(
        account=steps,
        constants=constants,
        loss=loss_of(configuration, classes=classes),
        unit=unit,
        divisor_micro=configuration.divisor_micro,
        clip_norm_micro=micro(privacy.clip_norm, "[privacy] clip_norm"),
    )


def with_checkpoints(
    plan: Plan, configuration: Configuration, *, path: Path, resume: bool, identity: Callable[[], str]
) -> tuple[Plan, Checkpoints | None]:
    """The plan with its checkpoints, if `[engine] checkpoint_every` asks for them; raises ConfigurationError."""
    every = configuration.engine.checkpoint_every
    if not every:
        return plan, None
    if not isinstance(plan, SgdPlan) or configuration.center:
        raise ConfigurationError(
            "[engine] checkpoint_every: neither a search nor a private centre can be resumed without spending twice"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{path.parent} cannot be made: {error.strerror}") from error
    checkpoints = Checkpoints(path, identity=identity(), every=every, resume=resume)
    return replace(plan, checkpoints=checkpoints), checkpoints


def loss_of(configuration: Configuration, *, classes: int) -> Loss:
    """The loss that `[loss]` names, or the usual one."""
    kind, transition = configuration.loss.kind, float(configuration.loss.transition)
    return Loss(kind=kind, classes=classes, transition=transition) if kind else Loss.usual(classes)


def _augmentation(configuration: Configuration) -> Augmentation | None:
    wanted = configuration.augmentation
    if (wanted.multiplicity, wanted.shift, wanted.flip) == (1, 0, False):
        return None
    return Augmentation(multiplicity=wanted.multiplicity, shift=wanted.shift, flip=wanted.flip)


def _row_norm(configuration: Configuration) -> int:
    """B: as given, or what no row with an intercept can exceed, by the public ranges of the columns."""
    given = configuration.privacy.row_norm
    if given is not None:
        return micro(given, "[privacy] row_norm")
    square = 1.0
    for numbers in configuration.columns.values():
        low, high = numbers[:2]
        center, scale = numbers[2:] if len(numbers) == 4 else ((low + high) / 2, (high - low) / 2)
        square += float(max(abs(low - center), abs(high - center)) / scale) ** 2
    # A date lies in [-1, 1], and a column of categories has one value at a time.
    square += len(configuration.dates) + len(with_placeholders(configuration).categories)
    return math.ceil(math.sqrt(square) * MICRO)


def _search(configuration: Configuration, *, classes: int) -> SearchPlan:
    """The search that `[selection]` describes; the least sigma at which the whole of it meets the target."""
    selection, privacy = configuration.selection, configuration.privacy
    if configuration.data.person:
        raise ConfigurationError("[selection] a search scores rows, so its unit cannot be a person; choose otherwise")
    if selection.trials not in _SHAPES:
        raise ConfigurationError(f"[selection] trials must be one of: {', '.join(_SHAPES)}")
    mean = Fraction(micro(selection.mean_trials, "[selection] mean_trials"), MICRO)

    def account_at(sigma_micro: int) -> BestOfRuns:
        run = GaussianSteps(
            sigma_micro=sigma_micro, rate=configuration.rate, steps=privacy.steps, delta=configuration.delta
        )
        score = micro(selection.score_sigma, "[selection] score_sigma")
        return BestOfRuns(run=run, score_sigma_micro=score, mean_trials=mean, shape=_SHAPES[selection.trials])

    if privacy.sigma is not None:
        account: Account = account_at(micro(privacy.sigma, "[privacy] sigma"))
    else:
        assert privacy.epsilon is not None
        account = calibrate_run(account_at, target_micro=micro(privacy.epsilon, "[privacy] epsilon"))
    assert isinstance(account, BestOfRuns)
    base = sgd_plan(configuration, account.run, classes=classes)
    return SearchPlan(account=account, choices=tuple(_with(base, one) for one in _grid(configuration)))


def _grid(configuration: Configuration) -> list[dict[str, Decimal]]:
    grid = configuration.selection.grid
    unknown = set(grid) - set(_CHOICES)
    if unknown or not grid or not all(grid.values()):
        raise ConfigurationError(f"[selection.grid] needs lists of numbers for some of: {', '.join(_CHOICES)}")
    if not 1 < math.prod(map(len, grid.values())) <= _MAX_CHOICES:
        raise ConfigurationError(f"[selection.grid] must make between 2 and {_MAX_CHOICES} choices")
    if "momentum" in grid and configuration.optimizer.kind not in ("sgd", "momentum"):
        raise ConfigurationError(
            f"[selection.grid] momentum: {configuration.optimizer.kind} has none, so all choices would be the same"
        )
    return [dict(zip(grid, numbers, strict=True)) for numbers in product(*grid.values())]


def _with(base: SgdPlan, choice: dict[str, Decimal]) -> SgdPlan:
    """The same run with these numbers instead; raises ConfigurationError for numbers that cannot be used."""
    for name, number in choice.items():
        above = number >= 0 if name in ("momentum", "average_steps") else number > 0
        if not above or (name == "momentum" and number >= 1):
            raise ConfigurationError(f"[selection.grid] {name} = {number} is out of range")
    changes: dict[str, Any] = {name: float(number) for name, number in choice.items()}
    if "average_steps" in changes:
        changes["average_steps"] = min(int(changes["average_steps"]), base.steps)
    clip = choice.get("clip_norm")
    return replace(
        base,
        constants=replace(base.constants, **changes),
        clip_norm_micro=base.clip_norm_micro if clip is None else micro(clip, "[selection.grid] clip_norm"),
    )
