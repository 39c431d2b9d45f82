"""Price lists: exact, the particular before the general, and refused where they leave a question open."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.client.prices import PriceList, load_prices, shown
from sealgate.errors import ConfigurationError

NAMES = {"tenant": "clinic", "model": "wine", "operation": "infer"}
COUNTED: dict[str, int | None] = {
    "request": 10,
    "row": 40,
    "unit": 40,
    "epsilon": 1_500_000,
    "cpu_second": 2_000_000,
    "kilowatt_hour": 1_800_000_000_000,
}


def listed(folder: Path, text: str, *, currency: str = 'currency = "EUR"') -> PriceList:
    path = folder / "prices.toml"
    path.write_text(f"{currency}\n{text}")
    return load_prices(path)


def test_each_thing_has_its_unit(tmp_path: Path) -> None:
    for what, cost in (
        ("request", 10),
        ("row", 40),
        ("unit", 40),
        ("epsilon", Fraction(3, 2)),
        ("cpu_second", 2),
        ("kilowatt_hour", Fraction(1, 2)),
    ):
        assert listed(tmp_path, f'[[price]]\n{what} = "1"').cost(NAMES, COUNTED) == cost


def test_the_particular_goes_before_the_general(tmp_path: Path) -> None:
    prices = listed(
        tmp_path,
        '[[price]]\nrequest = "1"\n[[price]]\ntenant = "clinic"\nmodel = "wine"\nrequest = "3"\n'
        '[[price]]\nmodel = "wine"\nrequest = "2"',
    )
    assert prices.cost(NAMES, COUNTED) == 30
    assert prices.cost(NAMES | {"tenant": "other"}, COUNTED) == 20
    assert prices.cost(NAMES | {"model": "other"}, COUNTED) == 10


def test_what_is_not_known_has_no_price_unless_it_is_free(tmp_path: Path) -> None:
    prices = listed(tmp_path, '[[price]]\nmodel = "wine"\ncpu_second = "1"\n[[price]]\nmodel = "free"\nunit = "1"')
    unknown = COUNTED | {"cpu_second": None}
    assert prices.cost(NAMES, unknown) is None
    assert prices.cost(NAMES | {"model": "free"}, unknown) == 40
    assert prices.cost(NAMES | {"model": "no entry"}, COUNTED) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**12), st.integers(0, 10**15))
def test_nothing_is_rounded_before_it_is_shown(millionths: int, units: int) -> None:
    from sealgate.client.prices import Price

    price = f"{millionths // 10**6}.{millionths % 10**6:06d}"
    cost = PriceList("EUR", (Price(unit=price),)).cost(NAMES, COUNTED | {"unit": units})
    assert cost == Fraction(millionths * units, 10**6)
    assert shown(cost) == f"{millionths * units // 10**6}.{millionths * units % 10**6:06d}"


@pytest.mark.parametrize(
    ("text", "currency", "says"),
    [
        ("", 'currency = "EUR"', "entries"),
        ('[[price]]\nunit = "1"', 'currency = "euro"', "capital letters"),
        ('[[price]]\nunit = "1"', "", "currency"),
        ("[[price]]\nunit = 0.1", 'currency = "EUR"', "unit must be text in quotes, not a number"),
        ('[[price]]\nunit = "-1"', 'currency = "EUR"', "decimal text"),
        ('[[price]]\nunit = "1e9"', 'currency = "EUR"', "decimal text"),
        ('[[price]]\nunit = "1"\ncolour = "red"', 'currency = "EUR"', "colour"),
        ('[[price]]\nunit = "1"\n[[price]]\nunit = "2"', 'currency = "EUR"', "same usage"),
        ('[[price]]\nmodel = "a"\n[[price]]\ntenant = "b"', 'currency = "EUR"', "same usage"),
        ('[[price]]\nmodel = "' + "a" * 500 + '"', 'currency = "EUR"', "too long"),
        ("[[price", 'currency = "EUR"', "prices.toml"),
    ],
)
def test_lists_that_leave_a_question_open_are_refused(tmp_path: Path, text: str, currency: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        listed(tmp_path, text, currency=currency)


def test_two_models_may_each_have_a_price(tmp_path: Path) -> None:
    prices = listed(tmp_path, '[[price]]\nmodel = "wine"\nunit = "1"\n[[price]]\nmodel = "beer"\nunit = "2"')
    assert prices.cost(NAMES | {"model": "beer"}, COUNTED) == 80


def test_a_file_that_is_not_there_or_too_large_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_prices(tmp_path / "missing.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * 300_000)
    with pytest.raises(ConfigurationError, match="larger"):
        load_prices(tmp_path / "large.toml")
