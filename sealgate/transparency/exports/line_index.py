"""Which record a line of an export is: the index as each form has it.

A range of a log from which records were pruned has fewer lines than indices, so how far a file got does not follow from
how many lines it has; its last line says. Trusts nothing. Never: takes a number out of a line of another form.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from sealgate.errors import DecodeError

_NDJSON = re.compile(rb'\{"index":(0|[1-9][0-9]{0,18}),"leaf_hash":"')
_CSV = re.compile(rb'(0|[1-9][0-9]{0,18}),"')
_SYSLOG = re.compile(rb'<[0-9]{1,3}>1 [^ ]+ [^ ]+ sealgate - [^ ]+ \[sealgate@32473 index="(0|[1-9][0-9]{0,18})" ')

_Shape = TypeVar("_Shape")


class _Event(msgspec.Struct):
    sequence: str


class _Metadata(msgspec.Struct):
    sequence: int


class _OcsfEvent(msgspec.Struct):
    metadata: _Metadata


def ndjson_index(line: bytes) -> int:
    """Of a line as `ndjson` writes it; raises DecodeError, as all of these do."""
    return _matched(_NDJSON, line)


def csv_index(line: bytes) -> int:
    return _matched(_CSV, line)


def syslog_index(line: bytes) -> int:
    return _matched(_SYSLOG, line)


def cloudevents_index(line: bytes) -> int:
    text = _decoded(line, _Event).sequence
    if len(text) != 20 or not (text.isascii() and text.isdecimal()):
        raise DecodeError("the line is not one of this export")
    return int(text)


def ocsf_index(line: bytes) -> int:
    return _decoded(line, _OcsfEvent).metadata.sequence


def _matched(form: re.Pattern[bytes], line: bytes) -> int:
    match = form.match(line)
    if match is None:
        raise DecodeError("the line is not one of this export")
    return int(match[1])


def _decoded(line: bytes, shape: type[_Shape]) -> _Shape:
    try:
        return msgspec.json.decode(line, type=shape)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise DecodeError("the line is not one of this export") from error
