"""Gaussian releases together against the closed form and Opacus' accountant; sensitivities against random matrices."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest

from sealgate.certificate.accounting.described import adassp_releases
from sealgate.certificate.accounting.releases import GaussianReleases, share
from sealgate.certificate.recompute import GaussianSteps
from sealgate.errors import CertificateError

STEPS = GaussianSteps(sigma_micro=2_000_000, rate=Fraction(1, 20), steps=200, delta="0.00001")


def test_releases_add_up_like_one():
    account = adassp_releases(eigenvalue=20_000_000, gram=6_000_000, moments=8_000_000, delta="0.00001")
    assert account.mu_squared == Fraction(1, 400) + Fraction(1, 36) + Fraction(1, 64)
    found = account.epsilon()
    assert 0 <= found.add_remove_micro - account.closed_form_micro() < 200
    assert 0 <= found.replace_one_micro - account.closed_form_micro(replace_one=True) < 200


def test_sampled_steps_beside_releases_as_opacus_has_them():
    from opacus.accountants import PRVAccountant

    account = GaussianReleases(
        mu_squared=share(5_000_000), mu_squared_replace_one=share(5_000_000, square=4), delta="0.00001", steps=(STEPS,)
    )
    accountant = PRVAccountant()
    accountant.history = [(2.0, 0.05, 200), (5.0, 1.0, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = accountant.get_epsilon(delta=1e-5)
    found = account.epsilon()
    assert abs(found.add_remove_micro / 1e6 - other) < 0.03
    assert found.add_remove_micro > STEPS.epsilon().add_remove_micro
    with pytest.raises(ValueError, match="closed form"):
        account.closed_form_micro()


def test_no_row_moves_the_statistics_further_than_their_sensitivity():
    """Random and extreme rows of norm at most B, targets within one: added, and replaced."""
    generator = np.random.default_rng(1)
    bound, most = 1.5, np.zeros(6)
    for trial in range(300):
        width = int(generator.integers(1, 6))
        base = generator.normal(size=(int(generator.integers(1, 20)), width))
        one, two = (row / np.linalg.norm(row) * bound for row in generator.normal(size=(2, width)))
        if trial % 3 == 0:
            two = -one
        upper = np.triu_indices(width)

        def statistics(*rows, base=base, upper=upper):
            gram = base.T @ base + sum((np.outer(row, row) for row in rows), np.zeros((base.shape[1],) * 2))
            return float(np.linalg.eigvalsh(gram)[0]), gram[upper]

        eigen = [statistics()[0], statistics(one)[0], statistics(two)[0]]
        gram = [statistics()[1], statistics(one)[1], statistics(two)[1]]
        moments = [np.zeros(width), one, -two if trial % 2 else two]
        found = [
            abs(eigen[1] - eigen[0]),
            abs(eigen[1] - eigen[2]),
            float(np.linalg.norm(gram[1] - gram[0])),
            float(np.linalg.norm(gram[1] - gram[2])),
            float(np.linalg.norm(moments[1] - moments[0])),
            float(np.linalg.norm(moments[1] - moments[2])),
        ]
        most = np.maximum(most, found)
    b2 = bound**2
    assert (most <= np.array([b2, b2, b2, 2**0.5 * b2, bound, 2 * bound]) + 1e-9).all()
    assert most[2] > 0.99 * b2
    assert most[5] > 1.99 * bound


@pytest.mark.parametrize("sigma", [0, 200_000, 10**11])
def test_a_sigma_out_of_range(sigma):
    with pytest.raises(CertificateError) as caught:
        share(sigma)
    assert caught.value.code == "parameters-out-of-range"


def test_so_little_noise_that_nothing_is_protected():
    with pytest.raises(CertificateError) as caught:
        GaussianReleases(mu_squared=Fraction(150), mu_squared_replace_one=Fraction(201), delta="0.00001").epsilon()
    assert caught.value.code == "epsilon-out-of-range"
