"""Which rule holds for which record, and what a mistake in the file looks like."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from audit.holds import Hold
from audit.retention import DAY_US, KEPT, SHIPPED, Indexed, load_retention, parse_retention
from sealgate.errors import ConfigurationError

RULES = b"""
default_days = 100
[[rule]]
purpose = "treatment"
days = 2192
[[rule]]
tenant = "lab"
days = 30
[[rule]]
tenant = "lab"
purpose = "research"
days = 10
"""
NOW = 5000 * DAY_US


def record(days: float, **fields: str) -> Indexed:
    base = {"kind": "inference.denied", "tenant": "clinic", "actor": "a", "purpose": "research"}
    return Indexed(index=7, ts_us=NOW - int(days * DAY_US), **{**base, **fields})


@pytest.mark.parametrize(
    ("tenant", "purpose", "days"),
    [
        ("clinic", "research", 100),
        ("clinic", "treatment", 2192),
        ("lab", "research", 10),  # both named: before either
        ("lab", "treatment", 2192),  # the longer of the two
        ("lab", "", 30),
        ("", "research", 2192),  # no tenant: the longest
        ("", "", 2192),
    ],
)
def test_which_rule_holds(tenant: str, purpose: str, days: int) -> None:
    rules = parse_retention(RULES)
    assert rules.days(tenant=tenant, purpose=purpose) == days
    for age, due in ((days - 0.001, False), (days, True)):
        assert rules.is_due(record(age, tenant=tenant, purpose=purpose), holds=[], now_us=NOW) is due


@pytest.mark.parametrize("kind", sorted(KEPT))
def test_what_explains_the_log_is_never_due(kind: str) -> None:
    assert not parse_retention(RULES).is_due(record(4999, kind=kind), holds=[], now_us=NOW)


@pytest.mark.parametrize(
    ("tenant", "actor", "due"),
    [("", "", False), ("clinic", "", False), ("clinic", "a", False), ("clinic", "b", True), ("lab", "", True)],
)
def test_what_is_held_is_not_due(tenant: str, actor: str, due: bool) -> None:
    hold = Hold(name="case", tenant=tenant, actor=actor, position=1, placed_us=0)
    assert parse_retention(RULES).is_due(record(4000), holds=[hold], now_us=NOW) is due


def test_the_shipped_rules(tmp_path: Path) -> None:
    shipped = load_retention(tmp_path / "none.toml")
    assert shipped.days(tenant="clinic", purpose="treatment") >= 6 * 365 + 1  # six years, leap days and all
    assert shipped.days(tenant="clinic", purpose="billing") >= 184  # six months
    (tmp_path / "retention.toml").write_text(SHIPPED)
    assert load_retention(tmp_path / "retention.toml").digest == shipped.digest
    assert parse_retention(b"").days(tenant="x", purpose="y") == 184


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[[rule]]\ndays = 3", "names a tenant, a purpose, or both"),
        (b"[[rule]]\npurpose='a'\ndays=3\n[[rule]]\npurpose='a'\ndays=4", "two rules for tenant any, purpose a"),
        (b"[[rule]]\npurpose='a'", "days"),
        (b"[[rule]]\npurpose='a b'\ndays=3", "purpose"),
        (b"default_days = 0", "default_days"),
        (b"default_days = 1.5", "default_days"),
        (b"default_days = 99999999999999999999999", "default_days"),
        (b"default_day = 3", "default_day"),
        (b"x = [", "retention.toml"),
        (b"\xff", "UTF-8"),
        (b"#" * 300_000, "larger"),
        (b"x = " + b"[" * 5000, "retention.toml"),
        (b"".join(b"[[rule]]\ndays=1\npurpose='a%d'\n" % n for n in range(5000)), "more than"),
    ],
)
def test_a_mistake_is_one_line(text: bytes, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        parse_retention(text)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    path = tmp_path / "retention.toml"
    path.write_text(SHIPPED)
    path.chmod(0)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_retention(path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_retention(tmp_path)
