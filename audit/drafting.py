"""What a draft must be to become a record: the rules of its kind, its form, what the index can hold.

Pure, but for the requests under way that it is shown. Trusts nothing that a caller filled in. Never: changes what is
under way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from audit.errors import AppendRefused
from audit.limits import MAX_INDEXED_TEXT
from audit.opening import Intent
from sealgate.errors import DecodeError
from sealgate.transparency.record import ENDS, Record, leaf_bytes

_INHERITED = ("tenant", "actor", "authn", "operation", "purpose")
_UUID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def finished(record: Record, under_way: Mapping[str, Intent]) -> tuple[Record, bytes]:
    """The record as it will stand, and its leaf. Raises AppendRefused (`grant-not-open`, `end-differs`,
    `record-malformed`)."""
    if record.kind in ENDS:
        record = _matched(record, under_way)
    elif record.kind == "inference.authorized" and record.grant not in ("", record.id):
        raise AppendRefused("an authorization is its own grant", code="record-malformed")
    try:
        leaf = leaf_bytes(record)
    except (DecodeError, ValueError) as error:
        raise AppendRefused("the record is not fit to be a leaf", code="record-malformed") from error
    if not is_uuid(record.id) or not _fits_index(record):
        raise AppendRefused("the record is not fit to be found again", code="record-malformed")
    return record, leaf


def is_uuid(text: str) -> bool:
    """Whether a record may have this id."""
    return _UUID.fullmatch(text) is not None


def require_unused(given: str, taken: set[str]) -> None:
    """An id that the caller chose must be new, also within its batch."""
    if given in taken:
        raise AppendRefused("the record's id is taken", code="record-malformed")
    taken.add(given)


def _matched(end: Record, under_way: Mapping[str, Intent]) -> Record:
    """An end belongs to exactly one open authorization, and says of it what it says of itself."""
    intent = under_way.get(end.grant)
    if intent is None:
        raise AppendRefused("the record ends no open authorization", code="grant-not-open")
    begun = intent.record
    given = {name: getattr(end, name) for name in _INHERITED}
    for name, value in given.items():
        if value not in ("", getattr(begun, name)):
            raise AppendRefused(f"the end names another {name} than its authorization", code="end-differs")
    if end.intent_seq not in (-1, intent.index, intent.began):
        raise AppendRefused("the end names another index than its authorization", code="end-differs")
    if end.kind == "inference.completed" and end.model != begun.model:
        raise AppendRefused("the answer comes from another model than was authorized", code="end-differs")
    return msgspec.structs.replace(end, intent_seq=intent.index, **{name: getattr(begun, name) for name in _INHERITED})


def _fits_index(record: Record) -> bool:
    """What has a column must fit every database's: no NUL, which PostgreSQL's text cannot hold, and bounded."""
    fields = (
        record.tenant,
        record.actor,
        record.model,
        record.model_digest,
        record.purpose,
        record.outcome,
        record.reason,
    )
    return all(len(field) <= MAX_INDEXED_TEXT and "\0" not in field for field in fields)
