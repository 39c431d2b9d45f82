"""Objective perturbation: logistic regression from a convex objective with a random linear term (Kifer et al. 2012).

A solver comes only close to the minimum, and how close could tell something: the weights get noise for that, too, and
the share of delta that it needs is in the account (Iyengar et al. 2019, approximate minima). Why the whole is private
stands in `sealgate.certificate.accounting.objective`. Nothing is tuned, and training takes a few Newton steps.

Trusts: rows in the model's space, labels 0 and 1. Never: releases weights whose gradient it could not bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sealgate.ambient import Entropy
from sealgate.certificate.accounting.objective import PerturbedObjective
from sealgate.certificate.decimals import MICRO, decimal_text
from sealgate.certificate.gaussian import gaussian_mu
from sealgate.certificate.mechanisms import ObjectivePerturbation
from sealgate.certificate.schema import Search
from sealgate.errors import CertificateError, ConfigurationError
from sealgate.limits import MAX_SIGMA_MICRO, MIN_SIGMA_MICRO
from training.errors import TrainingError
from training.limits import EPSILON_MARGIN_MICRO, EVALUATION_ROWS, NEWTON_STEPS
from training.mechanisms.noises import gaussian_values, noise_part
from training.mechanisms.plan import OnStep, fill, only_layer
from training.randomness import Keystream

CURVATURE_SHARE = 0.2
"""Of epsilon, or of 1 if that is less: what the determinant costs where lambda is not given. Chosen on six public
tables that no figure is given for (`benchmarks/tabular_constants.py`)."""
OUTPUT_SHARE = 0.05  # of delta hides how close the solver came
_ENDLESS = 700.0  # exp of it is a number; what is left of a residual beyond is below 10^-300
_TOLERANCE_PER_ROW = 4e-15  # of B: what float64 sums of that many rows can reach with room to spare


@dataclass(frozen=True, kw_only=True)
class ObjectivePlan:
    """The public constants; see the account for what each of them is."""

    account: PerturbedObjective
    unit: str = "example"
    steps: int = 1
    audited: None = None

    def part(self, *, coordinates: int, steps_executed: int, fresh: bool) -> ObjectivePerturbation:
        """See Plan."""
        account = self.account
        return ObjectivePerturbation(
            loss="logistic",
            row_norm_micro=account.row_norm_micro,
            regularisation_micro=account.regularisation_micro,
            gradient_tolerance=account.gradient_tolerance,
            noise=noise_part(account.sigma_micro, fresh=fresh),
            output=noise_part(account.output_sigma_micro, fresh=fresh),
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
        solution = solve_objective(self, inputs[0].double(), targets.double(), entropy=entropy)
        fill(layer, solution)
        on_step(1)
        return 1


def plan_objective(
    *, target_micro: int, delta: str, row_norm_micro: int, population: int, regularisation_micro: int | None = None
) -> ObjectivePlan:
    """The least noise whose stated epsilon is at most the target; raises ConfigurationError."""
    norm, target = row_norm_micro / MICRO, (target_micro - EPSILON_MARGIN_MICRO) / MICRO
    if regularisation_micro is None:
        regularisation_micro = math.ceil(norm**2 / 4 / math.expm1(CURVATURE_SHARE * min(target, 1.0)) * MICRO)
    left = target - math.log1p(norm**2 / 4 / (regularisation_micro / MICRO))
    if left <= 0:
        raise ConfigurationError(
            "[privacy] regularisation is too small for this epsilon: its curvature alone costs more"
        )
    tolerance = _tolerance(norm, population)
    # mu of the output noise whose delta at epsilon zero is the share; erf is linear there, and the account checks it.
    output_mu = OUTPUT_SHARE * float(delta) * math.sqrt(2 * math.pi)
    output_micro = math.ceil(2 * float(tolerance) / (regularisation_micro / MICRO) / output_mu * MICRO)
    sigma_micro = math.ceil(MICRO / gaussian_mu(left, (1 - 1.01 * OUTPUT_SHARE) * float(delta)))
    if not (MIN_SIGMA_MICRO <= sigma_micro <= MAX_SIGMA_MICRO and output_micro <= MAX_SIGMA_MICRO):
        raise ConfigurationError("[privacy] no noise that this objective can be solved with gives this epsilon")
    account = PerturbedObjective(
        row_norm_micro=row_norm_micro,
        regularisation_micro=regularisation_micro,
        sigma_micro=sigma_micro,
        gradient_tolerance=decimal_text(tolerance),
        output_sigma_micro=output_micro,
        delta=delta,
    )
    try:
        if account.epsilon().add_remove_micro + EPSILON_MARGIN_MICRO > target_micro:
            raise ConfigurationError("[privacy] no noise that this objective can be solved with gives this epsilon")
    except CertificateError as error:
        raise ConfigurationError(f"[privacy]: {error}") from error
    return ObjectivePlan(account=account)


def _tolerance(norm: float, population: int) -> Decimal:
    """What sums over about `population` rows of this norm can be brought below, with one digit."""
    wanted = Decimal(_TOLERANCE_PER_ROW * norm * max(population, 1000))
    return wanted.quantize(Decimal(10) ** wanted.adjusted(), rounding=ROUND_CEILING)


def solve_objective(plan: ObjectivePlan, rows: torch.Tensor, labels: torch.Tensor, *, entropy: Entropy) -> torch.Tensor:
    """The weights, intercept last: float64 [n, d] and [n] of 0 and 1 -> [d + 1]. Raises TrainingError `diverged`."""
    account = plan.account
    bound, ridge = account.row_norm_micro / MICRO, account.regularisation_micro / MICRO
    rows = torch.cat((rows, torch.ones(len(rows), 1, dtype=rows.dtype)), dim=1)  # [n, k]
    rows = rows * (bound / rows.norm(dim=1).clamp_min(1e-300)).clamp_max(1.0)[:, None]
    stream = Keystream(entropy)
    slope = account.sigma_micro / MICRO * bound * gaussian_values(stream, rows.shape[1])
    weights = _minimum(rows, labels, ridge=ridge, slope=slope, tolerance=float(account.gradient_tolerance))
    return weights + account.output_sigma_micro / MICRO * gaussian_values(stream, rows.shape[1])


def _minimum(
    rows: torch.Tensor, labels: torch.Tensor, *, ridge: float, slope: torch.Tensor, tolerance: float
) -> torch.Tensor:
    """Newton's method with halved steps: w with |gradient| <= tolerance, rounding included; raises TrainingError."""
    columns = rows.T.contiguous()  # [k, n]
    weights = torch.zeros(rows.shape[1], dtype=rows.dtype)

    def gradient(at: torch.Tensor) -> torch.Tensor:
        terms = columns * (torch.sigmoid(rows @ at) - labels)  # [k, n]
        return torch.from_numpy(terms.numpy().sum(axis=1)) + ridge * at + slope

    here = gradient(weights)
    for _ in range(NEWTON_STEPS):
        if float(here.norm()) <= tolerance and gradient_bound(weights, rows, labels, ridge, slope) <= tolerance:
            return weights
        likely = torch.sigmoid(rows @ weights)
        hessian = (columns * (likely * (1 - likely))) @ rows + ridge * torch.eye(len(weights), dtype=rows.dtype)
        step, length = torch.linalg.solve(hessian, here), 1.0
        there = gradient(weights - step)
        while float(there.norm()) > (1 - length / 4) * float(here.norm()) and length > 2.0**-20:
            length /= 2
            there = gradient(weights - length * step)
        weights, here = weights - length * step, there
    raise TrainingError(
        "the objective's minimum was not met closely enough; raise [data] public_population to the rows' true order",
        code="diverged",
    )


def gradient_bound(
    weights: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor, ridge: float, slope: torch.Tensor
) -> float:
    """What the norm of the objective's gradient cannot exceed: in numpy's longest type, and all rounding added.

    A row's term is its residual r = sigmoid(z) - label times the row. |d log r / dz| <= 1, so r is relatively off by at
    most as much as z is absolutely, and by a few roundings; pairwise sums are off by log2(n) roundings of their size.
    """
    real = np.longdouble
    unit = float(np.finfo(real).eps)
    at, total = weights.numpy().astype(real), np.zeros(len(weights), dtype=real)
    size, length = np.zeros(len(weights), dtype=real), float(weights.norm())
    for part, wanted in zip(torch.split(rows, EVALUATION_ROWS), torch.split(labels, EVALUATION_ROWS), strict=True):
        given = part.numpy().astype(real)  # [m, k]
        residuals = _residuals((given * at).sum(axis=1), wanted.numpy())
        off = (part.norm(dim=1).numpy() * length * (len(at) + 2) + 64) * unit  # [m], relative
        terms = np.ascontiguousarray((given * residuals[:, None]).T)  # [k, m]
        total += terms.sum(axis=1)
        size += (abs(terms) * off).sum(axis=1) + abs(terms).sum(axis=1) * (len(rows) // EVALUATION_ROWS + 1) * unit
    whole = total + real(ridge) * at + slope.numpy()
    size += 4 * unit * (abs(ridge * at) + abs(slope.numpy()))
    return float(np.sqrt((whole**2).sum()) + np.sqrt((size**2).sum())) * (1 + 1e-12)


def _residuals(margins: NDArray[np.longdouble], labels: NDArray[np.float64]) -> NDArray[np.longdouble]:
    """sigmoid(z) - label without cancellation: for label 1 it is -sigmoid(-z)."""
    signs = np.where(labels > 0.5, -1.0, 1.0)
    found: NDArray[np.longdouble] = signs / (1 + np.exp(np.minimum(-signs * margins, _ENDLESS)))
    return found
