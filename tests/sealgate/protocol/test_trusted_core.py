"""The code that must be right for a sealed request to stay sealed is small enough to be read in an hour."""

from __future__ import annotations

import io
import tokenize
from pathlib import Path

import pytest

import sealgate.protocol
import sealgate.protocol.hpke

CORE = ("secrets", "varint", "padding", "hpke", "bhttp", "chunked", "ohttp")
WORKER_CORE = ("keys", "replay", "gatekeeper")  # who holds the private keys, and who may be answered
MOST_LINES = 1600  # all lines: docstrings, comments and blank ones too
MOST_CODE = 1050  # lines with code on them

_SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> int:
    """Lines that carry a token other than comments and strings that stand alone (docstrings)."""
    lines: set[int] = set()
    alone = True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.NL):
            alone = alone or token.type is tokenize.NEWLINE
            continue
        if token.type in _SILENT or (alone and token.type == tokenize.STRING):
            continue
        alone = False
        lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines)


def test_the_core_is_small(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(sealgate.protocol.__file__).parent
    worker = root.parents[1] / "secure_runtime" / "worker"
    sources = {name: (root / f"{name}.py").read_text() for name in CORE}
    sources |= {name: (worker / f"{name}.py").read_text() for name in WORKER_CORE}
    lines = {name: source.count("\n") for name, source in sources.items()}
    code = {name: code_lines(source) for name, source in sources.items()}
    with capsys.disabled():
        print(f"\ntrusted core of the sealed path: {sum(lines.values())} lines, {sum(code.values())} of code")
    assert sum(lines.values()) <= MOST_LINES, lines
    assert sum(code.values()) <= MOST_CODE, code
    assert min(code.values()) > 5  # the counter counts


def test_the_core_needs_nothing_but_cryptography() -> None:
    root = Path(sealgate.protocol.__file__).parent
    allowed = {"cryptography", "sealgate", "__future__"}
    standard = {"hashlib", "hmac", "re", "struct", "typing", "enum", "dataclasses", "collections"}
    memory_only = "from io import BytesIO"  # of a module that also opens files
    for name in CORE:
        for line in (root / f"{name}.py").read_text().splitlines():
            if line.startswith(("import ", "from ")) and line != memory_only:
                top = line.split()[1].split(".")[0]
                assert top in allowed | standard, f"{name} imports {top}"
