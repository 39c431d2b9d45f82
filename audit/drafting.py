"""What a draft must be to become a record: the rules of its kind, its form, what the index can hold.

Pure, but for the requests under way that it is shown. Trusts nothing that a caller filled in. Never: changes what is
under way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from operator import attrgetter

import msgspec

from audit.errors import AppendRefused
from audit.limits import MAX_INDEXED_TEXT
from audit.opening import Intent
from sealgate.errors import DecodeError
from sealgate.transparency.record import ENDS, Record, leaf_bytes

_INHERITED = ("tenant", "actor", "authn", "operation", "purpose")
_inherited = attrgetter(*_INHERITED)
_indexed = attrgetter("tenant", "actor", "model", "model_digest", "purpose", "outcome", "reason")
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
    inherited = _inherited(begun)
    given = _inherited(end)
    if given != inherited:
        for name, said, authorized in zip(_INHERITED, given, inherited, strict=True):
            if said not in ("", authorized):
                raise AppendRefused(f"the end names another {name} than its authorization", code="end-differs")
    if end.intent_seq not in (-1, intent.index, intent.began):
        raise AppendRefused("the end names another index than its authorization", code="end-differs")
    if end.kind == "inference.completed" and end.model != begun.model:
        raise AppendRefused("the answer comes from another model than was authorized", code="end-differs")
    if given == inherited and end.intent_seq == intent.index:
        return end
    return msgspec.structs.replace(end, intent_seq=intent.index, **dict(zip(_INHERITED, inherited, strict=True)))


def _fits_index(record: Record) -> bool:
    """What has a column must fit every database's: no NUL, which PostgreSQL's text cannot hold, and bounded."""
    fields = _indexed(record)
    return max(map(len, fields)) <= MAX_INDEXED_TEXT and "\0" not in "".join(fields)
