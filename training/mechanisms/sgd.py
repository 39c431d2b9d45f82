"""DP-SGD as a plan: its constants from the configuration, its account, and the engine that runs it, on one process or
several.

Trusts: public constants. Never: takes a step itself; that is `training.private_sgd`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from sealgate.ambient import Entropy, random_bytes
from sealgate.certificate.claims import DISCRETE as DISCRETE_ARITHMETIC
from sealgate.certificate.claims import FRESH, NOISE_SOURCE, ROUNDED
from sealgate.certificate.mechanisms import Clipping, DpSgd, Noise, Rate, Sampling
from sealgate.certificate.recompute import GaussianSteps
from sealgate.certificate.schema import Search
from sealgate.errors import ConfigurationError
from training.dp_sgd.checkpoint import Checkpoints
from training.dp_sgd.choice import Choice
from training.dp_sgd.noise import DISCRETE, ROUNDED_BITS, Grid
from training.errors import TrainingError
from training.limits import MAX_PROCESSES
from training.losses import Loss
from training.mechanisms.plan import OnStep, Plan
from training.private_sgd import PrivateSgd, train_privately
from training.processes import train_on_processes


@dataclass(frozen=True, kw_only=True)
class SgdPlan:
    """The constants of a run of DP-SGD, with those that end in the certificate as whole numbers."""

    account: GaussianSteps
    constants: PrivateSgd
    loss: Loss
    unit: str
    divisor_micro: int
    clip_norm_micro: int
    checkpoints: Checkpoints | None = None
    processes: int = 1
    sharded: bool = False  # each process holds its share of the weights
    chosen: list[Choice] = field(default_factory=list, repr=False, compare=False)  # filled by `train`

    @property
    def steps(self) -> int:
        """See Plan."""
        return self.account.steps

    @property
    def audited(self) -> SgdPlan:
        """See Plan."""
        return self

    def part(self, *, coordinates: int, steps_executed: int, fresh: bool) -> DpSgd:
        """See Plan."""
        rate = self.account.rate
        return DpSgd(
            sampling=Sampling(
                sampler="poisson",
                rate=Rate(numerator=rate.numerator, denominator=rate.denominator),
                steps_declared=self.account.steps,
                steps_executed=steps_executed,
                divisor_micro=self.divisor_micro,
                constants="public",
            ),
            clipping=Clipping(
                kind="per-user-flat" if self.unit == "user" else "per-example-flat",
                norm_micro=self.clip_norm_micro,
                rows_per_unit=self.constants.unit_rows,
            ),
            noise=self._noise(coordinates, fresh=fresh),
        )

    def _noise(self, coordinates: int, *, fresh: bool) -> Noise:
        discrete, bits = self.constants.noise == DISCRETE, ROUNDED_BITS
        if discrete:
            clip_norm = self.constants.clip_norm
            grid = Grid.of(sigma=self.constants.sigma, clip_norm=clip_norm, coordinates=coordinates)
            bits = round(math.log2(clip_norm / grid.unit))
        return Noise(
            sigma_micro=self.account.sigma_micro,
            source=NOISE_SOURCE,
            seed=FRESH if fresh else "fixed",
            transform="exact-discrete-gaussian" if discrete else "box-muller",
            arithmetic=DISCRETE_ARITHMETIC if discrete else ROUNDED,
            grid_bits=bits,
        )

    def search(self, *, fresh: bool) -> Search | None:
        """See Plan: there was none."""
        return None

    def train(
        self,
        module: nn.Module,
        inputs: tuple[torch.Tensor, ...],
        targets: torch.Tensor,
        *,
        groups: torch.Tensor | None,
        entropy: Entropy,
        on_step: OnStep,
    ) -> int:
        """See Plan."""
        if self.processes > 1:
            if entropy is not random_bytes:
                raise TrainingError("processes draw from the operating system alone", code="processes-unsupported")
            return train_on_processes(
                module,
                inputs,
                targets,
                count=self.processes,
                constants=self.constants,
                loss=self.loss,
                groups=groups,
                on_step=on_step,
                on_choice=self.chosen.append,
                sharded=self.sharded,
                checkpoints=self.checkpoints,
            )
        return train_privately(
            module,
            inputs,
            targets,
            constants=self.constants,
            loss=self.loss,
            groups=groups,
            entropy=entropy,
            on_step=on_step,
            checkpoints=self.checkpoints,
            on_choice=self.chosen.append,
        )


def on_processes(plan: Plan, count: int, *, sharded: bool, fingerprint: bool) -> Plan:
    """The plan on so many processes; raises ConfigurationError for what cannot be run on more than one."""
    if count == 1 and not sharded:
        return plan
    for holds, what in (
        (1 < count <= MAX_PROCESSES or count == 1, f"N must lie between 1 and {MAX_PROCESSES}"),
        (count > 1, "--shard needs more than one process to share the weights among"),
        (isinstance(plan, SgdPlan), "only dp-sgd without a search has steps that processes can share; leave it out"),
        (
            not fingerprint,
            "a fingerprint is put in between the steps of one process; leave it or --fingerprint out",
        ),
    ):
        if not holds:
            raise ConfigurationError(f"--processes: {what}")
    assert isinstance(plan, SgdPlan)
    return replace(plan, processes=count, sharded=sharded)
