"""`[masking]`: a rule for each column that is not taken as it is.

Trusts: the person who wrote it. Never: looks at the rows.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

from sealgate.certificate.decimals import decimal_text
from sealgate.certificate.schema import Masked
from sealgate.errors import ConfigurationError, DecodeError
from sealgate.toml_words import in_words
from training.configuration import Configuration
from training.limits import MAX_KEPT_CHARACTERS
from training.masking.personal import KINDS

KEEP = "keep"
_OPTIONS = {
    KEEP: (),
    "drop": (),
    "hash": (),
    "bin": ("width", "start", "low", "high"),
    "top": ("low", "high"),
    "month": (),
    "year": (),
    "prefix": ("characters",),
    "redact": ("kinds",),
}
_KINDS_OF_DATA = ("table", "text")


class ColumnRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[masking.columns.NAME]`. `width` and `start` are of bins, `low` and `high` cut off ends, `characters` are how
    many of a prefix stay, `kinds` are what is looked for in a text (everything that is known, if empty)."""

    action: str
    width: Decimal | None = None
    start: Decimal | None = None
    low: Decimal | None = None
    high: Decimal | None = None
    characters: int | None = None
    kinds: tuple[str, ...] | None = None


class MaskingSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[masking]`: the file of the key for hashes, the columns whose combination could point at a person, the rules."""

    key: str = ""
    quasi_identifiers: tuple[str, ...] = ()
    columns: dict[str, ColumnRule] = {}


def masking_section(configuration: Configuration) -> MaskingSection:
    """The section, checked against the rest of the configuration; raises ConfigurationError."""
    try:
        found = msgspec.convert(configuration.masking, MaskingSection)
    except msgspec.ValidationError as error:
        raise ConfigurationError(in_words(error, MaskingSection, under=("masking",))) from error
    if configuration.masking and configuration.data.kind not in _KINDS_OF_DATA:
        raise ConfigurationError(f"[masking] is for data of kind {' and '.join(_KINDS_OF_DATA)}")
    for name, rule in found.columns.items():
        _check_rule(name, rule)
    if bool(found.key) != any(rule.action == "hash" for rule in found.columns.values()):
        raise ConfigurationError('[masking] key = "FILE" belongs to columns with action = "hash", and those need it')
    data = configuration.data
    actions = {name: rule.action for name, rule in found.columns.items()}
    if actions.get(data.target, KEEP) != KEEP:
        raise ConfigurationError(f"[masking] '{data.target}' is the target and must stay what it is")
    if actions.get(data.person, KEEP) not in (KEEP, "hash"):
        raise ConfigurationError(f"[masking] '{data.person}' says whose row it is: it can be kept or hashed")
    used = {*configuration.columns, *configuration.categories, *configuration.dates, *found.quasi_identifiers}
    if data.kind == "text":
        used.add(configuration.text.get("column", "text"))
    dropped = sorted(name for name in used if actions.get(name) == "drop")
    if dropped:
        raise ConfigurationError(f"[masking] '{dropped[0]}' is dropped and cannot be used")
    return found


def _check_rule(name: str, rule: ColumnRule) -> None:
    where = f"[masking.columns] '{name}'"
    if rule.action not in _OPTIONS:
        raise ConfigurationError(f"{where}: action must be one of: {', '.join(_OPTIONS)}")
    given = [option for option in ColumnRule.__struct_fields__[1:] if getattr(rule, option) is not None]
    foreign = [option for option in given if option not in _OPTIONS[rule.action]]
    if foreign:
        raise ConfigurationError(f"{where}: {foreign[0]} does not belong to {rule.action}")
    numbers = (rule.width, rule.start, rule.low, rule.high)
    for holds, what in (
        (rule.action != "bin" or (rule.width is not None and rule.width > 0), "bins need a width above zero"),
        (rule.action != "top" or rule.low is not None or rule.high is not None, "top needs low, high or both"),
        (rule.low is None or rule.high is None or rule.low < rule.high, "low must be below high"),
        (all(one is None or one.is_finite() for one in numbers), "a number is not finite"),
        (
            rule.action != "prefix" or (rule.characters is not None and 0 < rule.characters <= MAX_KEPT_CHARACTERS),
            f"prefix needs characters, from 1 to {MAX_KEPT_CHARACTERS}",
        ),
        (set(rule.kinds or ()) <= set(KINDS), f"kinds are some of: {', '.join(KINDS)}"),
    ):
        if not holds:
            raise ConfigurationError(f"{where}: {what}")


def masked_parts(section: MaskingSection) -> tuple[Masked, ...]:
    """What the certificate tells of each rule."""
    return tuple(
        Masked(column=name, action=rule.action, detail=_detail(rule))
        for name, rule in section.columns.items()
        if rule.action != KEEP
    )


def _detail(rule: ColumnRule) -> str:
    if rule.action == "hash":
        return "HMAC-SHA-256 under a key that is not in the bundle"
    if rule.action == "redact":
        return f"looked for: {', '.join(rule.kinds or KINDS)}"
    options = [(option, getattr(rule, option)) for option in _OPTIONS[rule.action]]
    try:
        return ", ".join(
            f"{option} {value if isinstance(value, int) else decimal_text(value)}"
            for option, value in options
            if value is not None
        )
    except DecodeError as error:
        raise ConfigurationError("[masking] a number has too many digits") from error
