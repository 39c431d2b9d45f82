"""Events as the CloudEvents project's own library reads them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings

from sealgate.transparency.exports.cloudevents import cloudevents_line
from sealgate.transparency.exports.leaves import PlacedLeaf

from .conftest import hostile_records, one_of_each

pytest.importorskip("cloudevents", reason="SKIPPED FOR WANT OF cloudevents: pip install 'sealgate[dev]'")

from cloudevents.core.bindings.http import HTTPMessage, from_structured_event


def _read(line: bytes):  # type: ignore[no-untyped-def]
    return from_structured_event(HTTPMessage(headers={"content-type": "application/cloudevents+json"}, body=line))


def test_every_kind_as_the_library_reads_it() -> None:
    for entry in one_of_each():
        event = _read(cloudevents_line(entry))
        assert event.get_specversion() == "1.0"
        assert event.get_id() == entry.record.id
        assert event.get_source() == "example.com/log"
        assert event.get_type() == f"sealgate.audit.{entry.record.kind}"
        assert event.get_datacontenttype() == "application/json"
        assert event.get_time().timestamp() == pytest.approx(entry.record.ts_us / 1e6)
        assert event.get_extension("leafhash") == entry.hash
        assert int(event.get_extension("sequence")) == entry.index
        assert event.get_subject() == (entry.record.actor or None)
        assert event.get_data() == json.loads(entry.leaf)


@given(entry=hostile_records())
@settings(max_examples=80, deadline=None)
def test_the_leaf_is_in_it_byte_for_byte(entry: PlacedLeaf) -> None:
    line = cloudevents_line(entry)
    assert line.endswith(b',"data":' + entry.leaf + b"}\n")
    named = json.loads(line)
    assert all(name.isalnum() and name == name.lower() and len(name) <= 20 for name in named)
    assert named["source"].isascii()


def test_sequences_sort_as_text() -> None:
    named = [json.loads(cloudevents_line(entry))["sequence"] for entry in one_of_each()]
    assert sorted(named) == [text for _, text in sorted((int(text), text) for text in named)]
