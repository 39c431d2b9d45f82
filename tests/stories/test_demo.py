"""`sealgate demo` as a stranger runs it: exit code 0, every act told, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_the_demo_tells_its_whole_story(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sealgate", "demo"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout
    for act in range(1, 9):
        assert f"\n{act}. " in told
    for line in (
        "epsilon, one row added or removed: stated",
        "assurance: software",
        "receipt verified: record",
        "an expired token: refused with 401 unauthenticated",
        "a purpose that is not allowed: refused with 403 forbidden",
        "a sealed request altered on the way: refused with 400 sealed-request-refused",
        "auth.failed, reason token-expired",
        "inference.denied, reason policy-forbids",
        "inference.failed, reason cannot-open",
        "every authorized request has exactly one end",
        "one byte of a copy flipped: REFUSED",
    ):
        assert line in told, line
    assert list(tmp_path.iterdir()) == [], "the demo left something behind"
