"""Tables stay tables whatever stands in them, and foreign text cannot drive the terminal."""

from __future__ import annotations

import json
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from sealgate.terminal import printable, printable_json, render_pairs, render_table, text_width

ESCAPES = "\x1b]0;owned\x07\u202e\u200b\x9b2J\u2028\ud800"


def test_columns_of_numbers_are_aligned_to_the_right() -> None:
    table = render_table(("row", "label", "score"), [(1, "benign", 0.75), (10, "malignant", 0.1234567)])
    assert table.splitlines() == [
        "row  label         score",
        "---  ---------  --------",
        "  1  benign         0.75",
        " 10  malignant  0.123457",
    ]


def test_a_table_without_rows_is_its_headings() -> None:
    assert render_table(("a", "bc"), []) == "a  bc\n-  --"


def test_pairs_are_aligned() -> None:
    assert render_pairs([("model", "toy"), ("log", None)]) == "model  toy\nlog"


def test_wide_and_combining_characters_are_counted_as_shown() -> None:
    assert (text_width("日本"), text_width("e\u0301"), text_width("abc")) == (4, 1, 3)
    lines = render_table(("name", "x"), [("日本", "a"), ("abc", "b")]).splitlines()
    assert [text_width(line) for line in lines[2:]] == [7, 7]


def test_what_a_terminal_could_act_on_is_replaced() -> None:
    assert printable(ESCAPES).isprintable()
    for text in (render_table(("x",), [(ESCAPES,)]), render_pairs([(ESCAPES, ESCAPES)])):
        assert all(line.isprintable() for line in text.split("\n"))


def test_long_text_is_cut_with_a_mark() -> None:
    assert printable("abcdef", limit=4) == "abc…"
    assert printable("abcd", limit=4) == "abcd"


@given(rows=st.lists(st.tuples(st.text(max_size=10), st.text(max_size=10)), max_size=5))
def test_every_row_is_one_line(rows: list[tuple[str, str]]) -> None:
    lines = render_table(("a", "b"), rows).split("\n")
    assert len(lines) == len(rows) + 2
    assert all(line.isprintable() for line in lines)


@given(st.dictionaries(st.text(), st.text()))
def test_json_for_a_terminal_is_the_same_document_in_characters_that_do_nothing(document: dict[str, str]) -> None:
    text = printable_json(json.dumps(document, ensure_ascii=False, indent=2))
    assert json.loads(text) == document
    assert all(line.isprintable() for line in text.split("\n"))


def test_second_control_characters_and_marks_are_escaped_in_json() -> None:
    assert printable_json('"\x9b2J\u202e\x7f\U000e0041é"') == '"\\u009b2J\\u202e\\u007f\\udb40\\udc41é"'


def test_a_service_outlives_who_watched_it() -> None:
    script = (
        "import sys; from sealgate.terminal import say; sys.stdin.read(); say('1'); say('2'); say('3'); sys.exit(7)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(b"", timeout=60)
    assert (process.returncode, errors) == (7, b"")
