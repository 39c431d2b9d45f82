"""Plain text for people: tables, aligned pairs, and making foreign text safe to print.

No colours, no cursor movement, no dependency. Trusts nothing that it prints: control characters (terminal escapes) and
unassigned or bidirectional characters are replaced. Never: wraps or cuts a column that a person needs whole.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence

ELLIPSIS = "…"


def printable(text: str, *, limit: int | None = None) -> str:
    """The text with everything that a terminal could act on replaced by `?`, cut to `limit` characters."""
    safe = "".join(char if char.isprintable() else "?" for char in text[: (limit or len(text)) + 1])
    return safe if limit is None or len(safe) <= limit else safe[: limit - 1] + ELLIPSIS


def printable_json(text: str) -> str:
    """The same JSON document with everything that a terminal could act on written as an escape. JSON leaves DEL, the
    second set of control characters and bidirectional marks as they are."""
    return "".join(char if char == "\n" or char.isprintable() else json.dumps(char)[1:-1] for char in text)


def say(line: str) -> None:
    """Print a line of a service for whoever watches. A watcher that goes away (as `| head` does) does not end it."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def text_width(text: str) -> int:
    """Columns that a terminal gives to the text: wide characters count two, combining ones none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def render_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a rule under its headings; columns whose every cell is a number are aligned to the right."""
    cells = [[printable(_text(value)) for value in row] for row in rows]
    numeric = [bool(cells) and all(_is_number(row[at]) for row in cells) for at in range(len(headings))]
    widths = [
        max([text_width(heading), *(text_width(row[at]) for row in cells)]) for at, heading in enumerate(headings)
    ]
    lines = [_line(headings, widths, numeric), "  ".join("-" * width for width in widths)]
    lines += [_line(row, widths, numeric) for row in cells]
    return "\n".join(lines)


def render_pairs(pairs: Iterable[tuple[str, object]]) -> str:
    """Names and values, values aligned."""
    listed = [(printable(name), printable(_text(value))) for name, value in pairs]
    width = max((text_width(name) for name, _ in listed), default=0)
    return "\n".join(f"{_pad(name, width)}  {value}".rstrip() for name, value in listed)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("", "-")
    return True


def _line(row: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = (_pad(text, width, right=right) for text, width, right in zip(row, widths, numeric, strict=True))
    return "  ".join(padded).rstrip()


def _pad(text: str, width: int, *, right: bool = False) -> str:
    space = " " * (width - text_width(text))
    return space + text if right else text + space
