"""Programs that must not type-check: plaintext has no way into the gateway's log or link."""

from __future__ import annotations

import subprocess
import sys

import pytest

PREAMBLE = """
from gateway.runtime_link import RuntimeLink
from gateway.telemetry import Telemetry
from sealgate.protocol.frames import Submit
from sealgate.protocol.secrets import Plaintext, Secret

def use(telemetry: Telemetry, link: RuntimeLink, frame: Submit, payload: Plaintext, key: Secret) -> None:
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "sound"),
    [
        ('telemetry.event("request", detail="text", status=200)', True),
        ('telemetry.event("request", detail=payload)', False),
        ('telemetry.event("request", detail=key)', False),
        ('telemetry.event("request", detail=b"bytes")', False),
        ("link.submit(frame, payload)", False),
    ],
)
def test_the_type_checker_refuses_it(tmp_path, line, sound):
    program = tmp_path / "program.py"
    program.write_text(f"{PREAMBLE}    {line}\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(program)], capture_output=True, text=True
    )
    wrong = {line.partition(":")[0] for line in done.stdout.splitlines() if " error: " in line}
    assert wrong == (set() if sound else {str(program)}), done.stdout + done.stderr  # an error elsewhere shows nothing
    assert done.returncode == (0 if sound else 1)
