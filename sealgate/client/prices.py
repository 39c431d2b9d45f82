"""A price list, and what usage costs by it. Exact: fractions of the figures as written, rounded only when shown.

    currency = "EUR"

    [[price]]                    # for all; a price that names more goes before one that names less
    request = "0.001"
    unit = "0.0002"

    [[price]]
    model = "wine"               # and, or, tenant and operation
    unit = "0.0005"
    epsilon = "1.50"
    cpu_second = "0.01"
    kilowatt_hour = "0.30"

Each row of usage has one price entry; what that does not name costs nothing. Trusts: whoever wrote the file. Never:
prices a row that no entry is for, silently: its cost is said to be unknown.
"""

from __future__ import annotations

import re
import tomllib
from fractions import Fraction
from pathlib import Path

import msgspec

from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_NAME, MAX_PRICE_LIST, MAX_PRICES
from sealgate.toml_words import in_words

_AMOUNT = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?\Z")
_CURRENCY = re.compile(r"[A-Z]{3}\Z")
_NAMES = ("tenant", "model", "operation")
_SHOWN = 1_000_000  # parts of a currency's unit that are shown
_PER: dict[str, int] = {
    "request": 1,
    "row": 1,
    "unit": 1,
    "epsilon": 1_000_000,
    "cpu_second": 1_000_000,
    "kilowatt_hour": 3_600_000_000_000,
}
"""How many of what is counted are one of what is priced: millionths, microseconds, microjoules."""


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[[price]]`: whom it is for ("" is everybody), and what one of each costs, as decimal text."""

    tenant: str = ""
    model: str = ""
    operation: str = ""
    request: str = "0"
    row: str = "0"
    unit: str = "0"
    epsilon: str = "0"
    cpu_second: str = "0"
    kilowatt_hour: str = "0"

    def matches(self, names: dict[str, str]) -> bool:
        """Whether it is for usage of these names."""
        return all(getattr(self, name) in ("", names[name]) for name in _NAMES)

    @property
    def particular(self) -> int:
        """How many names it gives."""
        return sum(bool(getattr(self, name)) for name in _NAMES)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    currency: str
    price: tuple[Price, ...] = ()


class PriceList:
    """A list that was read and makes sense: of two entries for one usage, one names more than the other."""

    def __init__(self, currency: str, prices: tuple[Price, ...]) -> None:
        self.currency = currency
        self._prices = sorted(prices, key=lambda price: -price.particular)

    def cost(self, names: dict[str, str], counted: dict[str, int | None]) -> Fraction | None:
        """What this usage costs; None if no entry is for it, or if one prices what is not known of it."""
        price = next((one for one in self._prices if one.matches(names)), None)
        if price is None:
            return None
        total = Fraction(0)
        for what, per in _PER.items():
            each, count = Fraction(getattr(price, what)), counted.get(what)
            if not each:
                continue
            if count is None:
                return None
            total += each * count / per
        return total


def shown(cost: Fraction) -> str:
    """To millionths, halves to the even one."""
    whole, part = divmod(round(cost * _SHOWN), _SHOWN)
    return f"{whole}.{part:06d}"


def load_prices(path: Path) -> PriceList:
    """Read a list; raises ConfigurationError that says what to mend."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_PRICE_LIST + 1)
        if len(raw) > MAX_PRICE_LIST:
            raise ConfigurationError(f"{path} is larger than {MAX_PRICE_LIST} bytes: not what it should be")
        read = msgspec.convert(tomllib.loads(raw.decode()), _File)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise ConfigurationError(f"{path}: {in_words(error, _File)}") from error
    if not _CURRENCY.match(read.currency):
        raise ConfigurationError(f"{path}: currency must be three capital letters (ISO 4217), such as EUR")
    if not 1 <= len(read.price) <= MAX_PRICES:
        raise ConfigurationError(f"{path}: there must be from 1 to {MAX_PRICES} entries [[price]]")
    for price in read.price:
        _require_sound(path, price)
    _require_one_each(path, read.price)
    return PriceList(read.currency, read.price)


def _require_sound(path: Path, price: Price) -> None:
    for name in _NAMES:
        if len(getattr(price, name)) > MAX_NAME:
            raise ConfigurationError(f"{path}: a {name} in [[price]] is too long")
    for what in _PER:
        if not _AMOUNT.match(getattr(price, what)):
            raise ConfigurationError(
                f'{path}: {what} must be decimal text such as "0.0002", not {getattr(price, what)!r}'
            )


def _require_one_each(path: Path, prices: tuple[Price, ...]) -> None:
    """Two entries that name as many things and can both be for one usage leave open which one counts."""
    for place, one in enumerate(prices):
        for other in prices[place + 1 :]:
            both = one.particular == other.particular
            if both and all(
                "" in (getattr(one, name), getattr(other, name)) or getattr(one, name) == getattr(other, name)
                for name in _NAMES
            ):
                raise ConfigurationError(
                    f"{path}: two entries [[price]] can be for the same usage; let one name more than the other"
                )
