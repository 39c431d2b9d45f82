"""Measured quality in certificates: intervals against another implementation, and figures that do not fit."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.measured import interval_text, wilson
from sealgate.certificate.schema import Measured
from sealgate.errors import CertificateError
from tests.sealgate.certificate.conftest import figures


def accuracy(right: int, rows: int) -> Measured:
    low, high = wilson(right, rows)
    return Measured(
        epsilon_micro=figures().add_remove_micro,
        measure="accuracy",
        rows=rows,
        right=right,
        value_micro=round(right * 1e6 / rows),
        low_micro=round(low * 1e6),
        high_micro=round(high * 1e6),
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows))))
def test_wilsons_interval_is_scipys(observed):
    right, rows = observed
    found = binomtest(right, rows).proportion_ci(method="wilson")
    assert wilson(right, rows) == pytest.approx((found.low, found.high), abs=1e-9)
    assert wilson(right, rows)[0] <= right / rows <= wilson(right, rows)[1]


def test_no_share_of_nothing():
    for right, rows in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no share"):
            wilson(right, rows)


def test_a_bundle_with_its_quality_verifies(forge, tmp_path):
    measured = (accuracy(103, 114), msgspec.structs.replace(accuracy(90, 114), epsilon_micro=1_000_000))
    forge.certificate = msgspec.structs.replace(forge.certificate, measured=measured)
    assert verify_bundle(forge.write(tmp_path / "toy"), forge.publishers).certificate.measured == measured
    assert interval_text(measured[0]) == "90.4 % (95 % interval 83.5 % to 94.5 %)"


@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon_micro": 1},
        {"rows": 0},
        {"right": 115},
        {"right": 102},
        {"low_micro": 880_000},
        {"high_micro": 940_000},
        {"value_micro": 1_100_000},
        {"measure": "beauty"},
        {"measure": "R2"},
        {"low_micro": 990_000, "high_micro": 1_000_000},
    ],
    ids=str,
)
def test_a_quality_that_does_not_fit_is_refused(forge, tmp_path, changes):
    wrong = msgspec.structs.replace(accuracy(103, 114), **changes)
    forge.certificate = msgspec.structs.replace(forge.certificate, measured=(wrong,))
    with pytest.raises(CertificateError) as caught:
        verify_bundle(forge.write(tmp_path / "toy"), forge.publishers)
    assert caught.value.code == "certificate-malformed"


def test_more_than_anybody_reads_is_refused(forge, tmp_path):
    forge.certificate = msgspec.structs.replace(forge.certificate, measured=(accuracy(103, 114),) * 258)
    with pytest.raises(CertificateError):
        verify_bundle(forge.write(tmp_path / "toy"), forge.publishers)
