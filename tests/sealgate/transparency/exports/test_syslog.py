"""Messages as an independent parser reads them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings

from sealgate.transparency.exports.leaves import PlacedLeaf
from sealgate.transparency.exports.syslog import SD_ID, syslog_line

from .conftest import hostile_records, one_of_each, placed, record_of

parser = pytest.importorskip(
    "syslog_rfc5424_parser", reason="SKIPPED FOR WANT OF syslog-rfc5424-parser: pip install 'sealgate[dev]'"
)
_GRAMMAR = re.compile(
    r"<(?P<pri>[0-9]{1,3})>1 (?P<time>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{1,6}Z) "
    r"(?P<host>[\x21-\x7e]{1,255}) (?P<app>[\x21-\x7e]{1,48}) - (?P<id>[\x21-\x7e]{1,32}) "
    r"(?P<data>\[[^ =\]\"]{1,32}(?: [^ =\]\"]{1,32}=\"(?:[^\"\\\]]|\\[\"\\\]])*\")*\]) (?P<text>\ufeff?[^\n]*)\n"
)


def test_every_kind_as_the_parser_reads_it() -> None:
    for entry in one_of_each():
        message = parser.SyslogMessage.parse(syslog_line(entry).decode().removesuffix("\n"))
        read = message.as_dict()
        assert read["hostname"] == "example.com/log"
        assert read["appname"] == "sealgate"
        assert read["facility"] == "audit"
        assert read["msgid"] == entry.record.kind
        assert read["timestamp"].startswith("2023-11-14T22:13:20.123")
        data = read["sd"][SD_ID]
        assert (data["index"], data["leafHash"]) == (str(entry.index), entry.hash)
        assert read["msg"].encode() == entry.leaf


@given(entry=hostile_records())
@settings(max_examples=150, deadline=None)
def test_the_grammar_holds_whatever_is_in_the_record(entry: PlacedLeaf) -> None:
    match = _GRAMMAR.fullmatch(syslog_line(entry).decode())
    assert match is not None
    assert 13 * 8 <= int(match["pri"]) < 14 * 8
    assert match["text"].removeprefix("\ufeff").encode() == entry.leaf
    assert match["text"].startswith("\ufeff") == (not entry.leaf.isascii())
    assert not re.search(r"[\x00-\x1f\x7f]", match["data"])


def test_a_parameter_cannot_end_before_its_end() -> None:
    entry = placed(record_of("audit.query", tenant='x"] [evil@1 a="b', reason="back\\slash]"))
    data = parser.SyslogMessage.parse(syslog_line(entry).decode().removesuffix("\n")).as_dict()["sd"]
    assert set(data) == {SD_ID}


def test_severity() -> None:
    priorities = {
        kind: int(syslog_line(placed(record_of(kind))).split(b">")[0][1:]) % 8
        for kind in ("inference.completed", "inference.denied", "inference.failed")
    }
    assert priorities == {"inference.completed": 6, "inference.denied": 5, "inference.failed": 4}
