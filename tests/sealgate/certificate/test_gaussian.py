"""The closed form against the accountant, against arithmetic of many digits, and against itself."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.certificate.gaussian import _log_cdf, gaussian_delta, gaussian_epsilon, gaussian_mu
from sealgate.certificate.recompute import GaussianSteps, epsilon_micro


def exact_delta(mu: str, epsilon: str) -> Decimal:
    """The two normal probabilities to 60 digits, by their Taylor series."""
    getcontext().prec = 60
    pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")

    def cdf(x: Decimal) -> Decimal:
        term, total, k = x, x, 0
        while abs(term) > Decimal(10) ** -55:
            k += 1
            term = term * -x * x / (2 * k)
            total += term / (2 * k + 1)
        return Decimal("0.5") + total / (2 * pi).sqrt()

    m, e = Decimal(mu), Decimal(epsilon)
    return cdf(m / 2 - e / m) - e.exp() * cdf(-m / 2 - e / m)


@pytest.mark.parametrize(("mu", "epsilon"), [("1", "1"), ("0.5", "2"), ("2", "0"), ("0.25", "0.1"), ("3", "8")])
def test_delta_to_many_digits(mu, epsilon):
    assert gaussian_delta(float(mu), float(epsilon)) == pytest.approx(float(exact_delta(mu, epsilon)), rel=1e-9)


@pytest.mark.parametrize(("sigma", "delta"), [(1, "0.00001"), (4, "0.000001"), (25, "0.001")])
def test_the_accountant_says_the_same(sigma, delta):
    steps = GaussianSteps(sigma_micro=sigma * 10**6, rate=Fraction(1), steps=1, delta=delta)
    assert 0 <= epsilon_micro(steps) / 1e6 - gaussian_epsilon(1 / sigma, float(delta)) < 2e-4


@given(epsilon=st.floats(0.01, 20), delta=st.sampled_from([1e-3, 1e-5, 1e-8]))
@settings(max_examples=40)
def test_epsilon_and_mu_are_each_others_inverse(epsilon, delta):
    mu = gaussian_mu(epsilon, delta)
    assert gaussian_delta(mu, epsilon) <= delta
    assert gaussian_epsilon(mu, delta) == pytest.approx(epsilon, abs=1e-6)


@pytest.mark.parametrize("x", [-5.0, -24.99, -25.01, -40.0, -300.0, 0.0, 9.0])
def test_tails_against_scipy(x):
    from scipy.special import log_ndtr

    assert _log_cdf(x) == pytest.approx(float(log_ndtr(x)), rel=1e-11, abs=1e-16)


def test_the_ends():
    assert gaussian_delta(0.0, 1.0) == 0.0
    assert gaussian_epsilon(1e-9, 1e-5) == 0.0
    assert gaussian_epsilon(1e3, 1e-5) == math.inf
    assert gaussian_epsilon(30.0, 1e-5) > 450
