"""Processor time and memory by the kernel's books, against processes that are known to work or to sleep."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sealgate.bench.accounting import CpuTimer, children, cpu_ns, memory_bytes, own_memory_bytes, serving

BUSY = "import time\ninput()\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ninput()"


@pytest.fixture
def busy():
    """A process that waits for a line, uses 0.3 s of a processor, says so, and waits again."""
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_processor_time_is_what_the_process_used(busy: subprocess.Popen[str]) -> None:
    timer = CpuTimer({busy.pid: "busy", os.getpid(): "me"})
    go_on(busy)
    assert busy.stdout is not None
    assert busy.stdout.readline() == "done\n"
    spent = timer.spent_us()
    assert spent["busy"] > 250_000
    assert cpu_ns(busy.pid) >= 250_000_000
    again = CpuTimer({busy.pid: "busy"})
    assert again.spent_us()["busy"] < 100_000, "it waits now"


def test_a_process_that_is_not_there_costs_nothing(busy: subprocess.Popen[str]) -> None:
    busy.kill()
    busy.wait()
    assert cpu_ns(busy.pid) == 0
    assert memory_bytes(busy.pid) == (0, 0)
    assert own_memory_bytes(busy.pid) == 0
    assert children(busy.pid) == []
    assert CpuTimer({busy.pid: "gone"}).spent_us() == {"gone": 0.0}


def test_memory_agrees_with_another_reader(busy: subprocess.Popen[str]) -> None:
    go_on(busy)
    assert busy.stdout is not None
    busy.stdout.readline()
    resident, proportional = memory_bytes(busy.pid)
    assert 0 < own_memory_bytes(busy.pid) < proportional
    other = psutil.Process(busy.pid).memory_full_info()
    assert resident == pytest.approx(other.rss, rel=0.02)
    assert other.uss * 0.95 <= proportional <= resident, "own pages, and a part of those that are shared"


def test_children_are_found_however_deep() -> None:
    code = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        found = children(process.pid)
        assert found == [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        assert len(found) == 1
        process.stdin.write(b"\n")


def test_a_folder_that_nobody_serves(tmp_path: Path) -> None:
    assert serving(tmp_path) == []
