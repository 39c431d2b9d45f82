"""Runs the parts of `sealgate bench` that were asked for, and prints each table when it is done.

Trusts: the arguments. Never: leaves a deployment of its own behind, unless a folder was named for it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from sealgate.bench import measures
from sealgate.bench.commands import PARTS
from sealgate.bench.floor import floor
from sealgate.bench.measures import Caller, Table
from sealgate.bench.soak import soak
from sealgate.bench.stand import Stand, Workshop, running
from sealgate.client.errors import UsageError
from sealgate.terminal import render_table

_RUNNING = ("trust", "token_file", "model", "purpose", "rows")
_MOST_S, _MOST_MIN, _LEAST_BUSY = 600.0, 7 * 24 * 60.0, 0.01


def report(given: argparse.Namespace) -> int:
    """The whole command; returns the exit code."""
    parts = _parts(given)
    printed = _Printer()
    if any(getattr(given, name) is not None for name in _RUNNING):
        if missing := [name for name in _RUNNING if getattr(given, name) is None]:
            words = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
            raise UsageError(f"to measure a deployment that runs, give these too: {words}")
        chosen = {name: getattr(given, name) for name in (*_RUNNING, "state", "metrics")}
        _measure(running(**chosen), parts, given, printed)
    else:
        _in_workshop(parts, given, printed)
    if given.json is not None:
        given.json.write_text(json.dumps(printed.numbers, indent=1) + "\n")
    return 0


def _parts(given: argparse.Namespace) -> list[str]:
    parts = [part.strip() for part in given.only.split(",") if part.strip()]
    if unknown := [part for part in parts if part not in PARTS]:
        raise UsageError(f"--only: there is no {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if not 0 < given.seconds <= _MOST_S:
        raise UsageError(f"--seconds must be more than 0 and at most {_MOST_S:.0f}")
    if given.soak is not None and not 0 < given.soak <= _MOST_MIN:
        raise UsageError(f"--soak must be more than 0 and at most {_MOST_MIN:.0f} minutes")
    if not _LEAST_BUSY <= given.busy <= 1:
        raise UsageError(f"--busy must be at least {_LEAST_BUSY} and at most 1")
    return parts


class _Printer:
    """Prints tables; keeps their numbers."""

    def __init__(self) -> None:
        self.numbers: dict[str, Any] = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        }

    def table(self, name: str, table: Table) -> None:
        """Print one."""
        self.numbers[name] = table.numbers
        print(f"\n{table.title}\n\n{render_table(table.headings, table.rows)}")
        for note in table.notes:
            print(note)
        sys.stdout.flush()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _in_workshop(parts: list[str], given: argparse.Namespace, printed: _Printer) -> None:
    kept: Path | None = given.folder
    if kept is not None and kept.exists() and any(kept.iterdir()):
        raise UsageError(f"{kept} is not empty: name a new folder")
    folder = kept or Path(tempfile.mkdtemp(prefix="sealgate-bench-"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        workshop = Workshop(folder.absolute(), short_keys=given.soak is not None)
        _say("making a deployment of its own, and training a model for a moment")
        workshop.make()
        with workshop.serve() as stand:
            _measure(stand, parts, given, printed)
        if "workers" in parts and given.soak is None:
            _say("starting it again with more processes")
            printed.table("workers", measures.growth(workshop, seconds=given.seconds))
    finally:
        if kept is None:
            shutil.rmtree(folder, ignore_errors=True)


def _measure(stand: Stand, parts: list[str], given: argparse.Namespace, printed: _Printer) -> None:
    with Caller(stand) as caller:
        if given.soak is not None:
            _say(f"a steady load for {given.soak:g} minutes")
            printed.table("soak", soak(caller, minutes=given.soak, say=_say, busy=given.busy))
        else:
            _measure_parts(caller, parts, given, printed)


def _measure_parts(caller: Caller, parts: list[str], given: argparse.Namespace, printed: _Printer) -> None:
    stand = caller.stand
    if stand.own:
        printed.table("start", measures.started(stand))
    if "memory" in parts:
        printed.table("memory_idle", measures.memory(stand, title="Memory before the load"))
    if "steps" in parts or "floor" in parts:
        _say("latency and steps")
        client_us = caller.client_steps()
        table, asked = measures.latency(caller, seconds=given.seconds)
        printed.table("latency", table)
        if "steps" in parts:
            printed.table("steps", measures.steps(client_us, asked))
        if "floor" in parts:
            folder = stand.state / "log" if stand.state is not None else Path(tempfile.gettempdir())
            printed.table("floor", floor(asked, folder))
    if "memory" in parts:
        printed.table("memory_loaded", measures.memory(stand, title="Memory after it"))
    if "payloads" in parts:
        _say("payloads")
        printed.table("payloads", measures.payloads(caller))
