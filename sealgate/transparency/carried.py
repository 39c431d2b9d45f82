"""What crosses from one shard of a log into the next: records that restate others, right after the shard's first one.

    log.carried   stands for a record of the shard before, whose fields it repeats, or for the balances of budgets
        detail.stands_for   the kind of that record, or "privacy-budgets"
        detail.stood_at     its index in the shard before, or that of the record which stood for it there
        detail.counter      of a worker's start: how far the worker's counter has come without a gap
        detail.ahead        of a worker's start: counters beyond that which were seen already ("5 8 9")
        detail.left:NAME    of budgets: what is left, in millionths, and when its window began (microseconds)

A request that is under way has its authorization restated: `grant` is the authorization's id, and the end's
`intent_seq` is the index of this record. Pure. Trusts nothing. Never: says that what is restated is true: whoever has
both shards compares (`chain`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from sealgate.transparency.record import Record

KIND = "log.carried"
TURNED = "turned"
"""The outcome of the last record of one shard and of the first one of the next."""
NEXT = "next"
PREVIOUS_ORIGIN, PREVIOUS_SIZE, PREVIOUS_ROOT = "previous_origin", "previous_size", "previous_root"
STANDS_FOR, STOOD_AT = "stands_for", "stood_at"
COUNTER, AHEAD = "counter", "ahead"
BUDGETS = "privacy-budgets"
AUTHORIZED = "inference.authorized"
_LEFT = "left:"
_OWN = frozenset({STANDS_FOR, STOOD_AT, COUNTER, AHEAD})
_AMOUNTS = re.compile(r"(0|[1-9][0-9]{0,17}) (0|[1-9][0-9]{0,15})\Z")
_NUMBER = re.compile(r"(0|[1-9][0-9]{0,15})\Z")
_LONG = frozenset({"note", "budgets_new"})  # words that a restatement leaves out, so that it fits into a leaf


def begins_shard(record: Record) -> bool:
    """Whether this is the first record of a shard that has one before it."""
    return record.kind == "log.opened" and PREVIOUS_ORIGIN in record.detail


def ends_shard(record: Record) -> bool:
    """Whether this is the last record of a shard that was followed by another."""
    return record.kind == "log.closed" and NEXT in record.detail


def restate(record: Record, *, index: int, also: Mapping[str, str] | None = None) -> Record:
    """A draft that stands for a record (which may itself stand for one) of the shard that ends."""
    original = restated(record)
    detail = {name: text for name, text in original.detail.items() if name not in _LONG}
    own = {STANDS_FOR: original.kind, STOOD_AT: str(index), **(also or {})}
    grant = original.id if original.kind == AUTHORIZED else ""
    blank = {"v": 0, "log": "", "id": "", "ts_us": 0, "salt": "", "intent_seq": -1}
    return msgspec.structs.replace(original, kind=KIND, grant=grant, detail=detail | own, **blank)


def restated(record: Record) -> Record:
    """The record that one stands for, as far as it repeats it; every other record as it is."""
    if record.kind != KIND:
        return record
    kind = record.detail.get(STANDS_FOR, "")
    detail = {name: text for name, text in record.detail.items() if name not in _OWN}
    identifier = record.grant if kind == AUTHORIZED else record.id
    return msgspec.structs.replace(record, kind=kind, id=identifier, grant="", detail=detail)


def same_fact(one: Record, other: Record) -> bool:
    """Whether two restatements say the same of the same record; workers' counters are compared elsewhere."""
    return _fact(one) == _fact(other)


def _fact(record: Record) -> Record:
    detail = {name: text for name, text in record.detail.items() if name not in (COUNTER, AHEAD)}
    return msgspec.structs.replace(record, detail=detail, v=0, log="", id="", ts_us=0, salt="")


def stood_at(record: Record) -> int:
    """The index that a restatement names; -1 if it names none."""
    text = record.detail.get(STOOD_AT, "")
    return int(text) if _NUMBER.match(text) else -1


def counters(reached: int, ahead: Iterable[int]) -> dict[str, str]:
    """The detail for how far a worker's counter has come without a gap, and what was seen beyond."""
    beyond = " ".join(map(str, sorted(ahead)))
    return {COUNTER: str(reached)} | ({AHEAD: beyond} if beyond else {})


def counters_of(record: Record) -> tuple[int, frozenset[int]] | None:
    """How far the worker had come that is restated, and what was seen beyond; None if that is not said."""
    reached, beyond = record.detail.get(COUNTER, ""), record.detail.get(AHEAD, "")
    numbers = beyond.split(" ") if beyond else []
    if not all(map(_NUMBER.match, (reached, *numbers))):
        return None
    return int(reached), frozenset(map(int, numbers))


def balances(left: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """The detail for what is left of budgets (millionths), and since when their windows run (microseconds)."""
    return {f"{_LEFT}{name}": f"{micro} {since_us}" for name, (micro, since_us) in left.items()}


def balances_of(record: Record) -> dict[str, tuple[int, int]]:
    """What a restatement says of budgets; those whose amounts are no amounts are left out."""
    if record.kind != KIND or record.detail.get(STANDS_FOR) != BUDGETS:
        return {}
    found = {}
    for name, text in record.detail.items():
        match = _AMOUNTS.match(text) if name.startswith(_LEFT) else None
        if match is not None:
            found[name.removeprefix(_LEFT)] = (int(match[1]), int(match[2]))
    return found
