"""The forms that records can be exported in, by the name that people and URLs use.

A file of any of them is a header (empty for most) and then exactly one line a record, in the log's order; no line holds
a line feed but its last byte. So a file that was cut off says by itself how far it got (`part`). Trusts nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sealgate.transparency.exports.cloudevents import cloudevents_line
from sealgate.transparency.exports.csv_table import csv_header, csv_line
from sealgate.transparency.exports.leaves import PlacedLeaf
from sealgate.transparency.exports.line_index import (
    cloudevents_index,
    csv_index,
    ndjson_index,
    ocsf_index,
    syslog_index,
)
from sealgate.transparency.exports.ndjson import ndjson_line
from sealgate.transparency.exports.ocsf import ocsf_line
from sealgate.transparency.exports.syslog import syslog_line


@dataclass(frozen=True)
class ExportFormat:
    """A name, what HTTP calls it, the ending of its files, its first bytes, a record in it, and which one a line is."""

    name: str
    media_type: str
    suffix: str
    summary: str
    header: bytes
    line: Callable[[PlacedLeaf], bytes]
    index_of: Callable[[bytes], int]


_ALL = (
    ExportFormat(
        "ndjson", "application/x-ndjson", "ndjson", "index, hash and the exact record", b"", ndjson_line, ndjson_index
    ),
    ExportFormat("ocsf", "application/x-ndjson", "ocsf.ndjson", "OCSF 1.9 events", b"", ocsf_line, ocsf_index),
    ExportFormat(
        "cloudevents",
        "application/x-ndjson",
        "events.ndjson",
        "CloudEvents 1.0",
        b"",
        cloudevents_line,
        cloudevents_index,
    ),
    ExportFormat("syslog", "text/plain", "log", "RFC 5424 messages", b"", syslog_line, syslog_index),
    ExportFormat("csv", "text/csv", "csv", "for spreadsheets, formulas disarmed", csv_header(), csv_line, csv_index),
)

FORMATS: dict[str, ExportFormat] = {one.name: one for one in _ALL}
"""Every form, by name."""
