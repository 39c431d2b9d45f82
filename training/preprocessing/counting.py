"""Private sums of whole numbers: the only way in which preprocessing looks at the private rows.

What a row adds is a vector of integers whose norm is bounded; sums of integers are exact, and the noise is an exact
sample of the discrete Laplace or the discrete Gaussian distribution. So nothing here depends on how floating-point
numbers are rounded (Mironov 2012; Casacuberta et al. 2022 show what goes wrong otherwise).

Laplace noise of scale b times the L1 norm is 1/b differentially private on integers, too. Discrete Gaussian noise is at
least as private as the continuous one whose deviation it exceeds (`training.dp_sgd.noise` says why).

Trusts: that `sensitivity` bounds what one row adds. Never: draws from a generator that can be seeded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sealgate.certificate.accounting.statistics import statistic_cost
from sealgate.certificate.accounting.thresholds import DEVIATION_MARGIN, threshold_of
from sealgate.certificate.decimals import MICRO, decimal_text, parse_decimal
from sealgate.certificate.gaussian import gaussian_mu
from sealgate.certificate.schema import Statistic
from sealgate.errors import CertificateError, ConfigurationError
from training.dp_sgd.discrete import discrete_gaussian, discrete_laplace
from training.dp_sgd.noise import SMOOTHING
from training.limits import EPSILON_MARGIN_MICRO
from training.randomness import Keystream

UNITS = 1 << 20  # of one, in sums of scaled numbers
COUNT_UNITS = 1 << 10  # of one, in counts
_RELATIVE = 2.0**-20  # by which deviations are made larger: more than float64 loses in computing them


@dataclass(frozen=True, kw_only=True)
class Release:
    """One private sum and its public constants. `delta` "0" is Laplace noise, anything else Gaussian.

    `norm_l1` and `norm_l2` bound what one row adds, in ones. `contributions` is 0 for a plain sum; for a set of names
    it is how many of them a row may count for, and names below `threshold` are not told.
    """

    what: str
    delta: str
    multiplier_micro: int
    norm_l1: float
    norm_l2: float
    contributions: int = 0
    threshold: int = 0

    @property
    def statistic(self) -> Statistic:
        """What the certificate says of it, its cost rounded up."""
        kind = "laplace" if self._laplace else "gaussian"
        once, twice = statistic_cost(
            f"{kind}-threshold" if self.contributions else kind,
            self.multiplier_micro,
            self.delta,
            contributions=self.contributions or 1,
            threshold=self.threshold,
        )
        return Statistic(
            what=self.what,
            mechanism=f"{kind}-threshold" if self.contributions else kind,
            multiplier_micro=self.multiplier_micro,
            epsilon_micro=once + EPSILON_MARGIN_MICRO,
            epsilon_replace_one_micro=twice + EPSILON_MARGIN_MICRO,
            delta=self.delta,
            contributions=self.contributions or 1,
            threshold=self.threshold,
        )

    @property
    def _laplace(self) -> bool:
        return self.delta == "0" or (self.contributions == 1)

    @property
    def deviation(self) -> float:
        """The noise's standard deviation, in ones."""
        norm = math.sqrt(2) * self.norm_l1 if self._laplace else self.norm_l2
        return self.multiplier_micro / MICRO * norm

    def noisy(self, sums: NDArray[np.int64], *, units: int, stream: Keystream) -> NDArray[np.int64]:
        """The sums, counted in 1/units, with this release's noise."""
        multiplier = self.multiplier_micro / MICRO
        if self._laplace:
            scale = math.ceil(multiplier * self.norm_l1 * units * (1 + _RELATIVE))
            return sums + discrete_laplace(stream, scale=scale, count=len(sums))
        wanted = multiplier * self.norm_l2 * units
        deviation = math.ceil(math.hypot(wanted, SMOOTHING) * (1 + _RELATIVE))
        if self.contributions and deviation > DEVIATION_MARGIN * wanted:
            raise ConfigurationError(f"[preprocessing] {self.what}: the noise is too small for its grid")
        return sums + discrete_gaussian(stream, deviation=deviation, count=len(sums))


def plan_sum(what: str, *, epsilon_micro: int, delta: str, norm_l1: float, norm_l2: float) -> Release:
    """A sum of at most this epsilon; raises ConfigurationError."""
    return _least_noise(
        Release(what=what, delta=delta, multiplier_micro=1, norm_l1=norm_l1, norm_l2=norm_l2), epsilon_micro
    )


def plan_names(what: str, *, epsilon_micro: int, delta: str, contributions: int) -> Release:
    """Names with counts above a threshold, each row counting for at most `contributions` of them."""
    if parse_decimal(delta) <= 0:
        raise ConfigurationError(f"[preprocessing] {what}: names that no list gives need a delta above zero")
    release = Release(
        what=what,
        delta=delta,
        multiplier_micro=1,
        norm_l1=float(contributions),
        norm_l2=math.sqrt(contributions),
        contributions=contributions,
    )
    return _least_noise(release, epsilon_micro)


def _least_noise(release: Release, target_micro: int) -> Release:
    """The release with the least noise that costs at most the target; raises ConfigurationError."""
    epsilon = (target_micro - EPSILON_MARGIN_MICRO) / MICRO
    if epsilon <= 0:
        raise ConfigurationError(f"[preprocessing] {release.what}: epsilon must be above zero")
    delta = float(release.delta)
    # Half of delta is for the noise of Gaussian counts, half for their threshold.
    spent = delta / 2 if release.contributions else delta
    start = 1 / epsilon if release._laplace else 1 / gaussian_mu(epsilon, spent)
    multiplier = math.ceil(start * MICRO)
    for _ in range(60):
        found = Release(
            what=release.what,
            delta=release.delta,
            multiplier_micro=multiplier,
            norm_l1=release.norm_l1,
            norm_l2=release.norm_l2,
            contributions=release.contributions,
            threshold=_threshold(release, multiplier),
        )
        try:
            if found.statistic.epsilon_micro <= target_micro:
                return found
        except CertificateError as error:
            raise ConfigurationError(f"[preprocessing] {release.what}: {error}") from error
        multiplier = math.ceil(multiplier * 1.0002)
    raise ConfigurationError(f"[preprocessing] {release.what}: no noise gives this epsilon")


def _threshold(release: Release, multiplier_micro: int) -> int:
    """The least whole count whose tail fits into the delta, or into half of it; 0 for a plain sum."""
    if not release.contributions:
        return 0
    share = parse_decimal(release.delta) if release._laplace else parse_decimal(release.delta) / 2
    return threshold_of(
        "laplace-threshold" if release._laplace else "gaussian-threshold",
        multiplier_micro,
        contributions=release.contributions,
        delta=decimal_text(share),
    )
