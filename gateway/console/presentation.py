"""Records, times and amounts in the words of the pages. Pure.

Trusts nothing: what it returns is text, and templates escape it. Never: markup, or a word that says more than the
record does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

import msgspec

from audit.query import Entry, RecordFilter
from gateway.errors import Problem
from gateway.limits import CONSOLE_ROWS
from policy.usage import Usage
from sealgate.protocol.obligations import epsilon_text
from sealgate.transparency.record import KINDS, Record
from sealgate.transparency.reports.form import Cell, Table, Unit

VERDICTS: dict[str, tuple[str, str]] = {
    "inference.completed": ("allowed", "Answered"),
    "inference.authorized": ("begun", "Permitted"),
    "inference.denied": ("denied", "Denied"),
    "inference.failed": ("failed", "Failed"),
    "inference.aborted": ("failed", "Cut off"),
    "auth.failed": ("denied", "Not authenticated"),
    "audit.query": ("reading", "Log read"),
    "audit.export": ("reading", "Log exported"),
    "audit.review": ("reading", "Reviewed"),
    "policy.change": ("change", "Policy changed"),
    "credential.revoke": ("change", "Credential revoked"),
    "credential.restore": ("change", "Credential restored"),
    "budget.grant": ("change", "Budget granted"),
    "budget.exhausted": ("denied", "Budget exhausted"),
    "model.load": ("change", "Model loaded"),
    "model.refuse": ("failed", "Model refused"),
    "model.change": ("change", "Models changed"),
    "key.rotate": ("change", "Request keys published"),
    "worker.start": ("change", "Worker started"),
    "worker.stop": ("change", "Worker stopped"),
    "subject.report": ("reading", "Asked about a person"),
    "erasure.completed": ("change", "Name erased"),
    "erasure.refused": ("denied", "Erasure refused"),
    "hold.placed": ("change", "Hold placed"),
    "hold.released": ("change", "Hold released"),
    "retention.pruned": ("change", "Records pruned"),
    "log.opened": ("change", "Log opened"),
    "log.closed": ("change", "Log closed"),
    "log.carried": ("other", "Carried over"),
}
"""How a kind looks and what it is called."""

TABS = (
    ("", "Everything"),
    ("inference.completed", "Answered"),
    ("inference.denied", "Denied"),
    ("inference.failed", "Failed"),
    ("inference.aborted", "Cut off"),
    ("auth.failed", "Not authenticated"),
    ("policy.change", "Policy changes"),
)
READINGS = (("audit.query", "Read"), ("audit.export", "Exported"), ("audit.review", "Reviewed"))
SPANS = (("hour", 3600, "Last hour"), ("day", 86400, "Last day"), ("week", 604800, "Last week"))

_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("What happened", ("kind", "outcome", "reason", "ts_us", "id", "log", "operation")),
    ("Who and what for", ("tenant", "actor", "authn", "purpose")),
    ("Model", ("model", "model_digest", "certificate_digest", "units", "eps_micro", "budget_after_micro")),
    ("Why it was decided so", ("policy_digest", "policy_ids")),
    (
        "Evidence",
        (
            *("req_commit", "resp_commit", "runtime_instance", "runtime_seq", "runtime_sig", "evidence_digest"),
            *("assurance", "degraded", "intent_seq", "grant", "salt", "v"),
        ),
    ),
)
_LABELS = {
    "ts_us": "time",
    "id": "record id",
    "actor": "caller (pseudonym)",
    "authn": "authenticated by",
    "model_digest": "weights (SHA-256)",
    "certificate_digest": "certificate (SHA-256)",
    "eps_micro": "epsilon",
    "budget_after_micro": "epsilon left after",
    "policy_digest": "policy (SHA-256)",
    "policy_ids": "policies that decided",
    "req_commit": "sealed request (SHA-256)",
    "resp_commit": "sealed answer (SHA-256)",
    "runtime_instance": "worker",
    "runtime_seq": "worker's counter",
    "runtime_sig": "worker's signature",
    "evidence_digest": "attestation evidence (SHA-256)",
    "intent_seq": "ends record",
    "degraded": "reduced isolation",
    "v": "version of the form",
}
_FILTERS = ("tenant", "actor", "model", "purpose", "kind", "outcome", "reason")
_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9]{2}:[0-9]{2}(?::[0-9]{2})?)?Z?")
_HEX = re.compile(r"[A-Za-z0-9_+/=-]{32,}")
_MAX_US = 253402300799_000_000  # the end of the year 9999


@dataclass(frozen=True, kw_only=True)
class Row:
    """A record in a list."""

    index: int
    record: Record
    look: str
    word: str
    time: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field of a record: `name` as in the leaf, `label` and `text` for people. The browser's check makes the same
    text out of the bytes that it verified."""

    name: str
    label: str
    text: str

    @property
    def mono(self) -> bool:
        """Whether it is a digest, a signature or an id."""
        return is_digest(self.text)


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """A budget's limit as a bar of 100: `used` and `held` are widths, rounded so that anything used shows."""

    usage: Usage
    used: int
    held: int
    amounts: dict[str, str]
    renews: str

    @property
    def spoken(self) -> str:
        """The bar in words."""
        said = self.amounts
        return f"{said['used']} of {said['limit']} used, {said['held']} held, {said['left']} left"


def gauge_of(usage: Usage) -> Gauge:
    """A budget's limit as it is drawn."""
    limit = max(1, usage.limit)
    used = min(100, -(-usage.used * 100 // limit))
    taken = min(100, -(-(usage.used + usage.held) * 100 // limit))
    if usage.left:
        used, taken = min(used, 99), min(taken, 99)
    amounts = {
        name: epsilon_text(value) if usage.what == "epsilon" else f"{value:,}"
        for name, value in (
            ("used", usage.used),
            ("held", usage.held),
            ("left", usage.left),
            ("limit", usage.limit),
        )
    }
    return Gauge(usage=usage, used=used, held=taken - used, amounts=amounts, renews=moment(usage.renews_us) or "never")


def table_of(table: Table) -> dict[str, object]:
    """A report's table with its cells as text, no longer than a page can be. Numbers are marked, so that they line
    up."""
    shown = table.rows[:CONSOLE_ROWS]
    return {
        "title": table.title,
        "columns": [(column.name, column.unit in ("number", "epsilon")) for column in table.columns],
        "rows": [
            [_cell(value, column.unit) for value, column in zip(row, table.columns, strict=True)] for row in shown
        ],
        "left_out": table.left_out + len(table.rows) - len(shown),
    }


def _cell(value: Cell, unit: Unit) -> str:
    if value is None:
        return "\u2013"
    if isinstance(value, int):
        if unit == "time":
            return moment(value)
        return epsilon_text(value) if unit == "epsilon" and value >= 0 else f"{value:,}"
    return value


def row_of(entry: Entry) -> Row:
    """A record for a list."""
    record = entry.record
    look, word = VERDICTS[record.kind]
    detail = ", ".join(f"{name} {value}" for name, value in sorted(record.detail.items()) if value)
    return Row(index=entry.index, record=record, look=look, word=word, time=moment(record.ts_us), detail=detail)


def grouped(record: Record) -> list[tuple[str, list[Field]]]:
    """All that the record says, in groups; fields at their default were never written."""
    said = msgspec.to_builtins(record)
    groups = [
        (title, [_field(name, said[name]) for name in names if name in said and name != "detail"])
        for title, names in _GROUPS
    ]
    details = [
        Field(name=f"detail.{name}", label=name.replace("_", " "), text=value)
        for name, value in sorted(record.detail.items())
    ]
    return [(title, fields) for title, fields in [*groups, ("Details", details)] if fields]


def meaning_of(kind: str) -> str:
    """What a kind of record means, as a sentence."""
    text = KINDS.get(kind, "")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def moment(ts_us: int | None) -> str:
    """A time as people read it, UTC; "" for none."""
    if ts_us is None or not 0 <= ts_us <= _MAX_US:
        return ""
    return datetime.fromtimestamp(ts_us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def machine_time(ts_us: int) -> str:
    """The same for `<time datetime>`."""
    return moment(ts_us).replace(" ", "T") + "Z"


def is_digest(text: str) -> bool:
    """Whether a text looks like a digest, a signature or an id."""
    return _HEX.fullmatch(text) is not None


def short(digest: str) -> str:
    """The first characters of a digest or an id."""
    return digest if len(digest) <= 14 else f"{digest[:12]}\u2026"


def address(path: str, parameters: Mapping[str, object], **changes: object) -> str:
    """A link: the parameters with changes; what is empty is left out."""
    given = {name: value for name, value in {**parameters, **changes}.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


# What was asked ------------------------------------------------------------------------------------------------------


def wanted_of(query: Mapping[str, str]) -> RecordFilter:
    """The filter in a page's query. Raises Problem."""
    chosen = {name: query[name] for name in _FILTERS if query.get(name)}
    return RecordFilter(
        **chosen,
        from_us=time_of(query.get("from", "")),
        to_us=time_of(query.get("to", "")),
        oldest_first=query.get("order") == "oldest",
    )


def filters_of(query: Mapping[str, str]) -> dict[str, str]:
    """The same as text, for links and for the record of the reading."""
    return {name: query[name] for name in (*_FILTERS, "from", "to", "order") if query.get(name)}


def minute_of(ts_us: int) -> str:
    """A time as forms and links write it."""
    return machine_time(ts_us)[:16]


def time_of(text: str) -> int | None:
    """The moment that a form or a link names, in microseconds; None for \"\". Raises Problem."""
    if not text:
        return None
    try:
        if not _MOMENT.fullmatch(text):
            raise ValueError(text)
        return int(datetime.fromisoformat(text.rstrip("Z")).replace(tzinfo=UTC).timestamp()) * 1_000_000
    except (ValueError, OverflowError):
        raise Problem("malformed-request", detail="Times are UTC and look like 2030-01-31T08:00.") from None


def _field(name: str, value: object) -> Field:
    label = _LABELS.get(name, name.replace("_", " "))
    return Field(name=name, label=label, text=_text(name, value))


def _text(name: str, value: object) -> str:
    if name == "ts_us" and isinstance(value, int):
        return f"{moment(value)} UTC"
    if name in ("eps_micro", "budget_after_micro") and isinstance(value, int):
        return epsilon_text(value) if value >= 0 else str(value)
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
