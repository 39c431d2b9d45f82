"""The lines between a certificate's constants and its epsilon; every method is asked for its own figure."""

from __future__ import annotations

import math
import re

import msgspec
import pytest

from sealgate.certificate.accounting.curves import curve_of
from sealgate.certificate.accounting.described import account_of
from sealgate.certificate.attack_words import attack_lines, rate_text, unit_word
from sealgate.certificate.recomputation import another_method, recomputation_lines
from sealgate.certificate.schema import Preprocessing, Statistic
from tests.sealgate.certificate.accounting.test_described import ADASSP, OBJECTIVE
from tests.sealgate.certificate.conftest import a_certificate


def with_statistics():
    part = Statistic(
        what="mean",
        mechanism="stated",
        multiplier_micro=0,
        epsilon_micro=500_000,
        epsilon_replace_one_micro=900_000,
        delta="0.00001",
    )
    return msgspec.structs.replace(
        a_certificate(),
        preprocessing=Preprocessing(
            statistics="dp",
            epsilon_micro=500_000,
            epsilon_replace_one_micro=900_000,
            delta="0.00001",
            parts=(part,),
        ),
    )


def test_every_constant_of_dp_sgd_has_its_line():
    lines = dict(recomputation_lines(a_certificate()))
    assert lines["rate"] == "1/4: each row enters each step with this probability (poisson)"
    assert lines["divisor"] == "1/4 x 1000 (public population) = 250"
    assert lines["steps"] == "60 executed; accounted for all 60 declared"
    assert lines["sensitivity"] == "one row adds at most 1 to a sum (per-example-flat)"
    assert lines["noise"].startswith("sigma 4 x 1 = 4 on every coordinate of a sum")
    assert lines["delta"] == "0.0001, below 1 / 1000 = 0.001"


def test_how_gradients_were_computed_is_said_where_the_certificate_says_it():
    assert "gradients" not in dict(recomputation_lines(a_certificate()))
    environment = msgspec.structs.replace(a_certificate().environment, gradients="book-keeping on 2 processes")
    lines = dict(recomputation_lines(msgspec.structs.replace(a_certificate(), environment=environment)))
    assert lines["gradients"] == "by book-keeping on 2 processes; all ways give the same numbers"


@pytest.mark.parametrize("mechanism", [None, ADASSP, OBJECTIVE], ids=["dp-sgd", "adassp", "objective"])
def test_two_methods_come_close(mechanism):
    certificate = a_certificate()
    if mechanism is not None:
        certificate = msgspec.structs.replace(certificate, mechanism=mechanism)
    figures = [
        float(found[1])
        for _, detail in recomputation_lines(certificate)
        if (found := re.match(r"epsilon ([0-9.]+) added or removed", detail))
    ]
    assert len(figures) == 3  # recomputed, recomputed in another way, stated
    assert figures[0] * 0.999 <= figures[1] <= figures[0] * 1.3


def test_statistics_are_counted_by_both_methods():
    certificate = with_statistics()
    account = account_of(certificate)
    found = another_method(account)
    assert found is not None
    alone = another_method(account.account)
    assert alone is not None
    assert found[1] == alone[1] + 500_000
    assert ("statistic", "mean: as the publisher states it; epsilon 0.5 at delta 0.00001") in list(
        recomputation_lines(certificate)
    )


def test_the_curve_beside_statistics_is_the_looser_one():
    account = account_of(with_statistics())
    with_them, alone = curve_of(account), curve_of(account.account)
    for rate in (0.001, 0.01, 0.1):
        assert alone.tpr_at(rate) < with_them.tpr_at(rate) <= math.exp(0.5) * alone.tpr_at(rate) + 2e-5


def test_attacks_in_words():
    lines = attack_lines(curve_of(account_of(a_certificate())), unit="user")
    assert len(lines) == 3
    assert lines[0].startswith("who wrongly accuses 0.1 % of the persons that were not in the data finds at most ")
    found = [float(re.search(r"at most ([0-9.]+) %", line)[1]) for line in lines]
    assert found == sorted(found)
    assert all(one > rate for one, rate in zip(found, (0.1, 1, 10), strict=True))
    assert [unit_word(unit) for unit in ("example", "user", "edge")] == ["row", "person", "edge"]


@pytest.mark.parametrize(
    ("rate", "text"), [(0.001, "0.1 %"), (0.1234, "12.3 %"), (0.9999, "more than 99.9 %"), (1.0, "up to 100 %")]
)
def test_rates_in_words(rate, text):
    assert rate_text(rate) == text
