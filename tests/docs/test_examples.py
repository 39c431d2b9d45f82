"""The example programs and the Python of the pages are type-checked; the client runs against a real deployment."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

from tests.live import MODEL, Live

EXAMPLES = ("client.py", "any_httpx_program.py")


def python_snippets(root: Path) -> str:
    pages = (root / name for name in ("README.md", "docs/identity.md"))
    blocks = [block for page in pages for block in re.findall(r"(?s)```python\n(.*?)```", page.read_text())]
    assert len(blocks) >= 2
    return "\n".join(blocks)


def test_the_readmes_python_compiles(root: Path) -> None:
    compile(python_snippets(root), "README.md", "exec")


def test_examples_and_snippets_pass_the_type_checker(root: Path, tmp_path: Path) -> None:
    snippet = tmp_path / "readme_snippet.py"
    snippet.write_text(python_snippets(root))
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from sealgate import Session\nSession('client/', purpose=1)\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")]
    good = [str(root / "examples" / name) for name in EXAMPLES]
    done = subprocess.run([*command, *good, str(snippet), str(wrong)], capture_output=True, text=True, cwd=root)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert [line for line in errors if "wrong.py" not in line] == [], done.stdout
    assert len(errors) == 1, "the type checker did not look"


def run(root: Path, name: str, *arguments: object, token: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, root / "examples" / name, *map(str, arguments)],
        input=token + "\n",
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
    )


def test_the_client_answers_keeps_receipts_and_says_why_not(live: Live, root: Path, tmp_path: Path) -> None:
    with live.session() as session:
        columns = session.metadata(MODEL).parameters.columns
    source = tmp_path / "rows.csv"
    with source.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "ignored"])
        writer.writerows([*row, "x"] for row in live.rows[:3])
    kept = tmp_path / "receipts"
    trust = live.trust.parent

    done = run(root, "client.py", trust, MODEL, "treatment", source, kept, token=live.token())
    assert done.returncode == 0, done.stderr
    labels = done.stdout.split()
    assert len(labels) == 3
    assert set(labels) <= {"malignant", "benign"}
    assert "assurance: software" in done.stderr
    (receipt,) = kept.iterdir()
    assert receipt.stat().st_mode & 0o077 == 0

    refused = run(root, "client.py", trust, MODEL, "marketing", source, kept, token=live.token())
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "refused" in refused.stderr
    assert "on record as number" in refused.stderr


def test_an_ordinary_httpx_program(live: Live, root: Path) -> None:
    done = run(root, "any_httpx_program.py", live.trust.parent, MODEL, "treatment", token=live.token())
    assert done.returncode == 0, done.stderr
    assert "record" in done.stdout
