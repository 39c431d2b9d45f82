"""How long records are kept: the rules of `retention.toml`, per tenant and purpose.

A rule that names tenant and purpose goes before rules that name one of them; where the rules of a tenant and a purpose
meet, the longer holds; where none fits, `default_days` does. Records of no tenant (openings, policies, workers, keys)
are needed to understand all others, so they are kept as long as the longest rule says. What says why something is
missing or must not be, or what is served (KEPT), is kept for as long as the log is.

Pure. Trusts: whoever may write the file. Never: accepts an unknown field, or two rules for the same.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from audit.holds import Hold
from audit.limits import MAX_RETENTION_DAYS, MAX_RETENTION_FILE, MAX_RETENTION_RULES
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_NAME
from sealgate.toml_words import in_words

KEPT = frozenset(
    {"hold.placed", "hold.released", "retention.pruned", "erasure.completed", "erasure.refused", "model.change"}
)
"""Kinds that are never pruned. They are few, and name nobody. The newest change of the models says what is unloaded."""

DAY_US = 24 * 3600 * 1_000_000

SHIPPED = """\
# How long the records of the audit log are kept, in days. `sealgate privacy prune STATE` deletes those whose time is
# over; nothing is deleted by itself. A rule that names tenant and purpose goes before one that names either, and the
# longer of those before `default_days`. Records of no tenant are kept as long as the longest rule says.

default_days = 184      # six months

[[rule]]
purpose = "treatment"   # and `tenant`, to say it of one tenant's purpose
days = 2192             # health: six years
"""

_Name = Annotated[str, msgspec.Meta(pattern=rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}\Z")]
_Days = Annotated[int, msgspec.Meta(ge=1, le=MAX_RETENTION_DAYS)]


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[[rule]]`: at least one of tenant and purpose."""

    days: _Days
    tenant: _Name | None = None
    purpose: _Name | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of `retention.toml`."""

    default_days: _Days = 184
    rule: tuple[Rule, ...] = ()


class Indexed(msgspec.Struct, frozen=True, kw_only=True):
    """What retention asks of a record: where it stands and what its index row, or its leaf, says."""

    index: int
    ts_us: int
    kind: str
    tenant: str
    actor: str
    purpose: str


class Retention:
    """The rules of one file. `digest` is of its bytes."""

    def __init__(self, rules: Sequence[Rule], *, default_days: int, digest: str) -> None:
        self.rules = tuple(rules)
        self.default_days = default_days
        self.digest = digest
        self._days = {(rule.tenant, rule.purpose): rule.days for rule in rules}
        every = [default_days, *self._days.values()]
        self.longest_days, self.shortest_days = max(every), min(every)

    def days(self, *, tenant: str, purpose: str) -> int:
        """How long records of a tenant ("" for none) and purpose are kept."""
        if not tenant:
            return self.longest_days
        exact = self._days.get((tenant, purpose))
        if exact is not None:
            return exact
        either = [self._days[key] for key in ((tenant, None), (None, purpose)) if key in self._days]
        return max(either, default=self.default_days)

    def is_due(self, record: Indexed, *, holds: Sequence[Hold], now_us: int) -> bool:
        """Whether the record's time is over and nothing holds it."""
        if record.kind in KEPT or record.ts_us > now_us - self.shortest_days * DAY_US:
            return False
        over = record.ts_us <= now_us - self.days(tenant=record.tenant, purpose=record.purpose) * DAY_US
        return over and not any(hold.covers(tenant=record.tenant, actor=record.actor) for hold in holds)


def load_retention(path: Path) -> Retention:
    """The rules in the file; those that are shipped where there is none. Raises ConfigurationError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RETENTION_FILE + 1)
    except FileNotFoundError:
        data = SHIPPED.encode()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    return parse_retention(data, name=str(path))


def parse_retention(data: bytes, *, name: str = "retention.toml") -> Retention:
    """The rules in these bytes; raises ConfigurationError with one line that names the file and what is wrong."""
    if len(data) > MAX_RETENTION_FILE:
        raise ConfigurationError(f"{name}: larger than {MAX_RETENTION_FILE} bytes")
    try:
        file = msgspec.convert(tomllib.loads(data.decode()), _File)
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{name}: not UTF-8 text") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError, ValueError) as error:
        raise ConfigurationError(f"{name}: {in_words(error, _File)}") from error
    if len(file.rule) > MAX_RETENTION_RULES:
        raise ConfigurationError(f"{name}: more than {MAX_RETENTION_RULES} rules")
    seen = set()
    for rule in file.rule:
        if rule.tenant is None and rule.purpose is None:
            raise ConfigurationError(f"{name}: a rule names a tenant, a purpose, or both; for all others: default_days")
        if (rule.tenant, rule.purpose) in seen:
            raise ConfigurationError(
                f"{name}: two rules for tenant {rule.tenant or 'any'}, purpose {rule.purpose or 'any'}"
            )
        seen.add((rule.tenant, rule.purpose))
    return Retention(file.rule, default_days=file.default_days, digest=hashlib.sha256(data).hexdigest())
