"""Epsilon against oracles that share no code with the accountant: the Gaussian closed form, Opacus' PRV, and order."""

from __future__ import annotations

import math
import time
import warnings
from fractions import Fraction

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from sealgate.certificate.recompute import COARSE, GaussianSteps, epsilon_micro, recompute
from sealgate.errors import CertificateError


def steps(sigma="4", rate="1/4", count=60, delta="0.0001") -> GaussianSteps:
    return GaussianSteps(sigma_micro=int(float(sigma) * 1e6), rate=Fraction(rate), steps=count, delta=delta)


def gaussian_epsilon(sigma: float, count: int, delta: float, sensitivity: float = 1.0) -> float:
    """The exact epsilon of the composed Gaussian mechanism without sampling (Balle and Wang 2018, theorem 8)."""
    mu = sensitivity * math.sqrt(count) / sigma

    def excess(epsilon: float) -> float:
        return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - delta)

    return float(brentq(excess, 0, 100))


@pytest.mark.parametrize(("sigma", "count"), [("10", 1), ("10", 30), ("3", 4), ("40", 500)])
def test_without_sampling_it_is_the_closed_form(sigma, count):
    exact = gaussian_epsilon(float(sigma), count, 1e-5)
    ours = epsilon_micro(steps(sigma, "1", count, "0.00001")) / 1e6
    assert exact <= ours <= exact + 0.002


def test_replacing_a_row_is_twice_the_sensitivity_without_sampling():
    exact = gaussian_epsilon(10, 30, 1e-5, sensitivity=2.0)
    ours = epsilon_micro(steps("10", "1", 30, "0.00001"), replace_one=True) / 1e6
    assert exact <= ours <= exact + 0.005


@pytest.mark.parametrize(("sigma", "rate", "count"), [("1.1", "1/100", 1000), ("4", "1/4", 60), ("0.8", "1/200", 300)])
def test_a_second_accountant_agrees(sigma, rate, count):
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(float(sigma), float(Fraction(rate)), count)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = accountant.get_epsilon(delta=1e-5)
    ours = epsilon_micro(steps(sigma, rate, count, "0.00001")) / 1e6
    assert abs(ours - other) < 0.02


def test_an_rdp_accountant_never_says_less():
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    event = dp_event.PoissonSampledDpEvent(0.25, dp_event.GaussianDpEvent(4.0))
    rdp = RdpAccountant().compose(event, 60).get_epsilon(1e-4)
    ours = epsilon_micro(steps()) / 1e6
    assert ours < rdp < ours * 1.4


def test_more_of_anything_costs_more():
    base = epsilon_micro(steps())
    assert epsilon_micro(steps(count=61)) > base
    assert epsilon_micro(steps(rate="13/50")) > base
    assert epsilon_micro(steps(sigma="3.999")) > base
    assert epsilon_micro(steps(delta="0.00009")) > base
    assert epsilon_micro(steps(), replace_one=True) > base
    assert epsilon_micro(steps(), discretisation=COARSE) >= base


def test_replacing_a_row_is_never_stated_cheaper_than_removing_it():
    """At the edge of the accountant's precision its looser bound may be the add-remove one."""
    found = recompute(steps("317.123929", "1/24", 685_779, "0.00000000001"))
    assert found.replace_one_micro >= found.add_remove_micro


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (steps(sigma="0.1"), "parameters-out-of-range"),
        (steps(sigma="0"), "parameters-out-of-range"),
        (steps(rate="0"), "parameters-out-of-range"),
        (steps(rate="3/2"), "parameters-out-of-range"),
        (steps(rate=f"1/{10**13}"), "parameters-out-of-range"),
        (steps(count=0), "parameters-out-of-range"),
        (steps(count=10**7), "parameters-out-of-range"),
        (steps(sigma="0.3", rate="1", count=10**6), "epsilon-out-of-range"),
        (steps(sigma="0.5", rate="1", count=1200), "epsilon-out-of-range"),
        (steps(delta="1"), "delta"),
        (steps(delta="0.00001x"), "delta"),
        (steps(delta="9" * 10_000), "delta"),
    ],
)
def test_what_cannot_be_recomputed_is_refused_in_bounded_time(wrong, code):
    begin = time.process_time()
    with pytest.raises(CertificateError) as caught:
        recompute(wrong)
    assert caught.value.code == code
    assert time.process_time() - begin < 20


def test_the_costliest_accepted_parameters_stay_within_bounds():
    begin = time.process_time()
    found = recompute(steps("0.3", "1/100", 1000, "0.00001"))
    assert 20_000_000 < found.add_remove_micro < 100_000_000
    assert found.discretisation == COARSE
    assert time.process_time() - begin < 60
