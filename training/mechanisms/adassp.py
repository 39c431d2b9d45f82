"""AdaSSP: linear regression from noisy sufficient statistics (Wang 2018, algorithm 2). Nothing to tune, no steps.

Released are the least eigenvalue of X'X, X'X itself (its upper triangle, mirrored) and X'y, each with Gaussian noise;
the ridge that keeps the solution stable follows from the noisy eigenvalue. The algorithm splits a (epsilon, delta) in
three; here the three releases are one Gaussian mechanism whose mu^2 is split, which the same noise serves better.

Rows carry an intercept and are scaled to norm at most B together with their target, as a weight would: the estimate of
a true line does not move. Trusts: rows in the model's space, targets in [-1, 1]. Never: looks at the rows to choose a
bound, or releases anything but the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import nn

from sealgate.ambient import Entropy
from sealgate.certificate.accounting.described import adassp_releases
from sealgate.certificate.accounting.releases import GaussianReleases
from sealgate.certificate.decimals import MICRO
from sealgate.certificate.gaussian import gaussian_mu
from sealgate.certificate.mechanisms import AdaSsp
from sealgate.certificate.schema import Search
from sealgate.errors import CertificateError, ConfigurationError
from sealgate.limits import MAX_SIGMA_MICRO, MIN_SIGMA_MICRO
from training.limits import EPSILON_MARGIN_MICRO
from training.mechanisms.noises import gaussian_values, noise_part
from training.mechanisms.plan import OnStep, fill, only_layer
from training.randomness import Keystream

SHARES = (Fraction(3, 100), Fraction(65, 100), Fraction(32, 100))
"""Of mu^2: for the least eigenvalue, X'X and X'y. They and `RIDGE` were chosen on twelve public tables that no figure
is given for (`benchmarks/tabular_constants.py`); their neighbours do nearly as well."""
RIDGE = 0.5
"""Of the ridge in the paper, which bounds the noise in X'X with certainty `_FAILURE` and shrinks more than it helps."""

TARGET_BOUND_MICRO = MICRO  # targets are scaled to [-1, 1]
_FAILURE = 0.05  # the ridge is large enough with at least this much certainty less than one


@dataclass(frozen=True, kw_only=True)
class AdaSspPlan:
    """The public constants: B, and a sigma for each release in its own sensitivity."""

    row_norm_micro: int
    eigenvalue_micro: int
    gram_micro: int
    moments_micro: int
    delta: str
    unit: str = "example"
    steps: int = 1
    audited: None = None

    @property
    def account(self) -> GaussianReleases:
        """What it costs."""
        return adassp_releases(
            eigenvalue=self.eigenvalue_micro, gram=self.gram_micro, moments=self.moments_micro, delta=self.delta
        )

    def part(self, *, coordinates: int, steps_executed: int, fresh: bool) -> AdaSsp:
        """See Plan."""
        return AdaSsp(
            row_norm_micro=self.row_norm_micro,
            target_bound_micro=TARGET_BOUND_MICRO,
            eigenvalue=noise_part(self.eigenvalue_micro, fresh=fresh),
            gram=noise_part(self.gram_micro, fresh=fresh),
            moments=noise_part(self.moments_micro, fresh=fresh),
        )

    def search(self, *, fresh: bool) -> Search | None:
        """See Plan: nothing is tuned."""
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
        layer = only_layer(module)
        solution = solve_adassp(self, inputs[0].double(), targets.double(), entropy=entropy)
        fill(layer, solution)
        on_step(1)
        return 1


def plan_adassp(*, target_micro: int, delta: str, row_norm_micro: int) -> AdaSspPlan:
    """The least noise whose stated epsilon is at most the target; raises ConfigurationError."""
    mu = gaussian_mu((target_micro - EPSILON_MARGIN_MICRO) / MICRO, float(delta))
    for _ in range(100):
        sigmas = [math.ceil(MICRO / math.sqrt(float(share) * mu * mu)) for share in SHARES]
        if not all(MIN_SIGMA_MICRO <= sigma <= MAX_SIGMA_MICRO for sigma in sigmas):
            break
        plan = AdaSspPlan(
            row_norm_micro=row_norm_micro,
            eigenvalue_micro=sigmas[0],
            gram_micro=sigmas[1],
            moments_micro=sigmas[2],
            delta=delta,
        )
        try:
            if plan.account.epsilon().add_remove_micro + EPSILON_MARGIN_MICRO <= target_micro:
                return plan
        except CertificateError as error:
            raise ConfigurationError(f"[privacy]: {error}") from error
        mu *= 0.9999  # the accountant rounds up a little
    raise ConfigurationError("[privacy] no noise that AdaSSP can be run with gives this epsilon")


def solve_adassp(plan: AdaSspPlan, rows: torch.Tensor, targets: torch.Tensor, *, entropy: Entropy) -> torch.Tensor:
    """The weights, intercept last: float64 [n, d] and [n] -> [d + 1]."""
    gram, moments = sums_of(rows, targets, bound=plan.row_norm_micro / MICRO)
    return solution_of(plan, gram, moments, entropy=entropy)


def sums_of(rows: torch.Tensor, targets: torch.Tensor, *, bound: float) -> tuple[torch.Tensor, torch.Tensor]:
    """X'X and X'y of rows with an intercept, scaled to norm at most `bound`: [n, d], [n] -> [k, k], [k]. Private."""
    rows = torch.cat((rows, torch.ones(len(rows), 1, dtype=rows.dtype)), dim=1)  # [n, k]
    factors = (bound / rows.norm(dim=1).clamp_min(1e-300)).clamp_max(1.0)  # [n]
    rows, targets = rows * factors[:, None], targets * factors  # |targets| <= 1 still
    return rows.T @ rows, rows.T @ targets


def solution_of(
    plan: AdaSspPlan, gram: torch.Tensor, moments: torch.Tensor, *, entropy: Entropy, share_of_ridge: float = RIDGE
) -> torch.Tensor:
    """The three releases and what follows from them: [k, k], [k] -> [k]."""
    stream, width, bound = Keystream(entropy), len(moments), plan.row_norm_micro / MICRO
    scales = [sigma / MICRO for sigma in (plan.eigenvalue_micro, plan.gram_micro, plan.moments_micro)]
    least = float(torch.linalg.eigvalsh(gram)[0])
    seen = least + scales[0] * bound**2 * float(gaussian_values(stream, 1)[0])
    # A lower bound of the least eigenvalue, with high probability.
    floor = max(0.0, seen - scales[0] * bound**2 * math.sqrt(2 * math.log(1 / _FAILURE)))
    upper = torch.triu(gaussian_values(stream, width * width).reshape(width, width))
    noisy = gram + scales[1] * bound**2 * (upper + torch.triu(upper, 1).T)
    noise_bound = scales[1] * bound**2 * math.sqrt(width * math.log(2 * width**2 / _FAILURE))
    ridge = share_of_ridge * max(0.0, noise_bound - floor)
    wanted = moments + scales[2] * bound * TARGET_BOUND_MICRO / MICRO * gaussian_values(stream, width)
    values, vectors = torch.linalg.eigh(noisy + ridge * torch.eye(width, dtype=gram.dtype))
    # The noise may leave an eigenvalue that is nothing but noise: it is not divided by.
    values = values.clamp_min(scales[1] * bound**2)
    solution: torch.Tensor = vectors @ ((vectors.T @ wanted) / values)
    return solution
