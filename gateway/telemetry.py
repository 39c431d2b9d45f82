"""Structured logs: one JSON object a line on standard error, from a fixed vocabulary of fields.

A field's value is text, an integer, a boolean or None. Anything else (bytes, a Secret, a Plaintext, a Principal) is a
TypeError where it is logged, and so is text that looks like a token or a key: a log line cannot carry what the types
keep apart. Lines of libraries are cut down to their logger, level, message template and the kind and place of an
exception: library messages may quote what they choke on.

Trusts: nobody with content. Never: writes query strings, header values, bodies, or the text of an exception.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import traceback
from typing import Any, TextIO

import msgspec

from gateway.limits import MAX_FIT_TEXT, MAX_FIT_TEXTS, MAX_LOG_TEXT
from sealgate.ambient import Clock, now_us

FIELDS: dict[str, str] = {
    "method": "HTTP method",
    "route": "route template, never the path itself",
    "status": "HTTP status that was answered, 499 if the caller had gone",
    "duration_us": "microseconds from head to end of answer",
    "received": "bytes of body received",
    "sent": "bytes of body sent",
    "source": "source class: loopback, private, public, unix",
    "problem": "code of the problem document",
    "reason": "stable reason code",
    "authn": "how the caller authenticated",
    "tenant": "tenant of the caller",
    "record": "index of the audit record",
    "log": "origin of the audit log",
    "error": "class of an unexpected exception",
    "place": "file and line of an unexpected exception",
    "count": "how many",
    "ready": "whether inference is served",
    "detail": "plain words about a component, written by us",
    "address": "address listened on",
    "process": "process id",
    "logger": "library that logged",
    "level": "its level",
}
"""Every field that a line may have, with what it means."""

_SECRET_SHAPED = re.compile(r"eyJ[A-Za-z0-9_-]{8,}\.|-----BEGIN|[Bb]earer\s+\S{16}")
_PLAIN = (str, int, bool, type(None))


def quoted(text: str) -> str:
    """Text that others chose, fit for a log line: what looks like a credential is withheld."""
    return "(withheld)" if _SECRET_SHAPED.search(text) else text


class Telemetry:
    """Writes events. `event` is a fixed name; fields come from FIELDS."""

    def __init__(self, *, stream: TextIO | None = None, clock: Clock = now_us) -> None:
        self._stream = stream
        self._clock = clock
        self._fit: set[Any] = set()  # short texts that were looked at: the same few stand in most lines

    def event(self, name: str, **fields: str | int | bool | None) -> None:
        """One line. Raises TypeError for a field or value that a log line must not carry."""
        for field, value in fields.items():
            if field not in FIELDS:
                raise TypeError(f"'{field}' is not a log field")
            kind = type(value)
            if kind is str:
                if value not in self._fit:
                    fields[field] = self._fitted(field, str(value))
            elif kind not in _PLAIN:
                raise TypeError(f"log field '{field}' cannot carry a {kind.__name__}")
        line = msgspec.json.encode({"ts_us": self._clock(), "event": name, **fields}).decode()
        stream = self._stream or sys.stderr
        with contextlib.suppress(OSError, ValueError):  # nobody reads the log any more: requests are still served
            stream.write(line + "\n")
            stream.flush()

    def _fitted(self, field: str, text: str) -> str:
        """As much of a text as a line has room for; raises TypeError if it looks like a credential."""
        if _SECRET_SHAPED.search(text):
            raise TypeError(f"log field '{field}' looks like a credential")
        if len(text) <= MAX_FIT_TEXT:
            if len(self._fit) >= MAX_FIT_TEXTS:
                self._fit.clear()
            self._fit.add(text)
        return text[:MAX_LOG_TEXT]

    def failure(self, name: str, error: BaseException, **fields: str | int | bool | None) -> None:
        """An unexpected exception: its class and where it was raised, never its text."""
        self.event(name, error=type(error).__name__, place=_place(error), **fields)


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in reversed(frames[-6:]))


class LibraryLines(logging.Handler):
    """Lets the lines of uvicorn, asyncio and others through in reduced form."""

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__(logging.WARNING)
        self._telemetry = telemetry

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._telemetry.event("library", **_reduced(record))
        except TypeError:
            self._telemetry.event("library", logger=record.name, level=record.levelname, detail="(withheld)")


def _reduced(record: logging.LogRecord) -> dict[str, Any]:
    # A template with arguments is shown without them; a text that a library formatted itself may hold anything.
    fields: dict[str, Any] = {"logger": record.name, "level": record.levelname}
    if record.name.startswith("uvicorn") and isinstance(record.msg, str):
        fields["detail"] = record.msg.splitlines()[0] if record.msg else ""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        fields |= {"error": type(error).__name__, "place": _place(error)}
    return fields


def capture_libraries(telemetry: Telemetry) -> None:
    """Send every library's log lines through `telemetry`, and nowhere else."""
    root = logging.getLogger()
    root.handlers = [LibraryLines(telemetry)]
    root.setLevel(logging.WARNING)
