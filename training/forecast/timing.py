"""How long a run takes and how much memory, by a few real steps on made-up rows of the declared shapes.

The steps are those of the engine, with the run's own expected number of rows in each as long as they fit; above that a
smaller number is scaled up. Trusts: the architecture's word about its inputs. Never: opens the data, or keeps what it
trained.
"""

from __future__ import annotations

import math
import resource
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

import torch
from torch import nn

from sealgate.ambient import Entropy, monotonic_ns, random_bytes
from sealgate.certificate.architectures import Spec
from sealgate.certificate.decimals import MICRO
from sealgate.certificate.manifest import Manifest
from secure_runtime.models.architectures import parts_of
from training.auditing.specimens import made_up_inputs, made_up_targets
from training.configuration import Configuration
from training.dp_sgd.choice import Choice
from training.experiment import fresh_module
from training.forecast.figures import steps_of
from training.limits import FIXED_ROWS, TIMED_NUMBERS, TIMED_RELEASE_ROWS, TIMED_STEPS
from training.mechanisms.gap import GapPlan
from training.mechanisms.plan import Plan
from training.mechanisms.selection import SearchPlan
from training.mechanisms.sgd import SgdPlan
from training.private_sgd import train_privately
from training.randomness import Keystream


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of the whole run without the audit and the comparison, and what they are made of; memory in bytes."""

    training_s: float
    step_s: float  # 0 for a mechanism without steps
    fixed_s: float  # of the fixed part of a model, once over all rows
    gradients: str  # the mode that was chosen, or ""
    memory: int
    runs: float  # of a search, on average


def timing_of(
    configuration: Configuration, manifest: Manifest, plan: Plan, *, entropy: Entropy = random_bytes
) -> Timing | None:
    """Measure; a few seconds for models of usual size. None for aggregates over a network: its ties, which decide how
    long they take, are not declared. Raises TrainingError if the model cannot be trained."""
    if isinstance(plan, GapPlan):
        return None
    population = configuration.data.public_population
    module = fresh_module(configuration, manifest, entropy)
    fixed, trained = parts_of(module)
    fixed_s = 0.0 if fixed is None else _fixed_seconds(fixed, manifest.architecture, population)
    spec, steps = manifest.architecture.trained_part(), steps_of(plan)
    runs = float(plan.account.mean_trials) if isinstance(plan, SearchPlan) else 1.0
    if steps is None:
        step_s, gradients = 0.0, ""
        training_s = _release_seconds(plan, spec, trained, population, entropy=entropy)
    else:
        step_s, gradients = _step_seconds(steps, spec, trained, entropy=entropy)
        training_s = step_s * steps.steps * runs
    rows = (_numbers(manifest.architecture) + 2 * _numbers(spec)) * population * 8
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Timing(
        training_s=training_s + fixed_s,
        step_s=step_s,
        fixed_s=fixed_s,
        gradients=gradients,
        memory=used + rows,
        runs=runs,
    )


def _step_seconds(plan: SgdPlan, spec: Spec, module: nn.Module, *, entropy: Entropy) -> tuple[float, str]:
    """Seconds of one step with the expected number of rows, and the gradient mode."""
    constants = plan.constants
    expected = plan.divisor_micro / MICRO * constants.unit_rows
    variants = constants.augmentation.multiplicity if constants.augmentation else 1
    rows = max(1, min(round(expected), TIMED_NUMBERS // max(1, spec.row_numbers() * variants)))
    stream = Keystream(entropy)
    inputs = made_up_inputs(spec, rows, stream, dtype=constants.dtype)
    targets = made_up_targets(spec, rows, stream, dtype=constants.dtype)
    chosen: list[Choice] = []
    moments: list[int] = []
    bare = replace(constants.bare(steps=TIMED_STEPS), rate=Fraction(1), unit_rows=1)
    train_privately(
        module,
        inputs,
        targets,
        constants=bare,
        loss=plan.loss,
        entropy=entropy,
        on_step=lambda _step: moments.append(monotonic_ns()),
        on_choice=chosen.append,
    )
    taken = min(later - earlier for earlier, later in pairwise(moments)) / 1e9
    return taken * max(1.0, expected / rows), chosen[0].mode if chosen else ""


def _release_seconds(plan: Plan, spec: Spec, module: nn.Module, population: int, *, entropy: Entropy) -> float:
    """Seconds of a mechanism that releases once; its work grows with the rows."""
    rows = min(population, TIMED_RELEASE_ROWS)
    stream = Keystream(entropy)
    inputs = made_up_inputs(spec, rows, stream, dtype=torch.float64)
    targets = made_up_targets(spec, rows, stream, dtype=torch.float64)
    begin = monotonic_ns()
    plan.train(module, inputs, targets, groups=None, entropy=entropy, on_step=lambda _step: None)
    return (monotonic_ns() - begin) / 1e9 * population / rows


def _fixed_seconds(fixed: nn.Module, spec: Spec, population: int) -> float:
    rows = max(1, min(FIXED_ROWS, population, spec.rows_at_once(FIXED_ROWS)))
    dtype = next((one.dtype for one in fixed.parameters()), torch.float64)
    inputs = made_up_inputs(spec, rows, Keystream(random_bytes), dtype=dtype)
    with torch.no_grad():
        fixed(*inputs)
        begin = monotonic_ns()
        fixed(*inputs)
    return (monotonic_ns() - begin) / 1e9 * population / rows


def _numbers(spec: Spec) -> int:
    """Numbers in one row of all inputs together."""
    return sum(math.prod(shape) for shape in spec.input_shapes())
