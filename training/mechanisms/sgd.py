"""DP-SGD as a plan: its constants from the configuration, its account, and the engine that runs it.

Trusts: public constants. Never: takes a step itself; that is `training.private_sgd`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import nn

from sealgate.ambient import Entropy
from sealgate.certificate.claims import DISCRETE as DISCRETE_ARITHMETIC
from sealgate.certificate.claims import FRESH, NOISE_SOURCE, ROUNDED
from sealgate.certificate.mechanisms import Clipping, DpSgd, Noise, Rate, Sampling
from sealgate.certificate.recompute import GaussianSteps
from sealgate.certificate.schema import Search
from training.dp_sgd.checkpoint import Checkpoints
from training.dp_sgd.choice import Choice
from training.dp_sgd.noise import DISCRETE, ROUNDED_BITS, Grid
from training.losses import Loss
from training.mechanisms.plan import OnStep
from training.private_sgd import PrivateSgd, train_privately


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
