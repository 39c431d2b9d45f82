"""Every problem code, record kind and reason that the code can produce is in docs/codes.md, and nothing else is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import AUTHENTICATION_FAILURES, PROBLEMS
from policy.decide import REASONS
from sealgate.certificate.refusals import REFUSALS
from sealgate.transparency.record import KINDS

REFUSING = {"Unauthenticated", "TurnedAway"}
RECORDING = {"BadInput", "WorkerGone", "RuntimeUnavailable", "SandboxRefused"}  # their code becomes a record's reason


def rows(text: str, heading: str) -> list[str]:
    """The names in the first column of the table below a heading."""
    part = re.split(r"(?m)^#{2,3} ", text.split(f"{heading}\n", 1)[1])[0]
    cells = re.findall(r"(?m)^\| (`[^|]*) \|", part)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def calls(folder: Path) -> Iterator[tuple[str, ast.Call]]:
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                yield name, node


def literals(node: ast.expr | None) -> set[str]:
    if node is None:
        return set()
    return {item.value for item in ast.walk(node) if isinstance(item, ast.Constant) and isinstance(item.value, str)}


def test_problems_are_exactly_those_of_the_gateway(codes: str) -> None:
    assert rows(codes, "## Problems") == list(PROBLEMS)
    for code, kind in PROBLEMS.items():
        assert f"| `{code}` | {kind.status} | {kind.detail} |" in codes


def test_record_kinds_are_exactly_those_that_may_be_written(codes: str) -> None:
    assert rows(codes, "## Record kinds") == list(KINDS)
    for kind, meaning in KINDS.items():
        assert f"| `{kind}` | {meaning} |" in codes


def test_reasons_of_the_policy_and_of_bundles(codes: str) -> None:
    assert set(REASONS) <= set(rows(codes, "### Denied by the policy (`inference.denied`)"))
    for table in (REASONS, REFUSALS, AUTHENTICATION_FAILURES):
        for reason, meaning in table.items():
            assert f"| `{reason}` | {meaning} |" in codes


@pytest.mark.parametrize(
    ("folder", "name", "heading"),
    [
        ("gateway", "Unauthenticated", "### Failed authentication (`auth.failed`)"),
        (
            "secure_runtime/worker",
            "TurnedAway",
            "### Refused by the worker's gatekeeper (`inference.failed`, outcome `refused`)",
        ),
    ],
)
def test_every_refusal_in_the_code_is_explained_and_no_other(
    root: Path, codes: str, folder: str, name: str, heading: str
) -> None:
    raised = {reason for call, node in calls(root / folder) if call == name for reason in literals(node.args[0])}
    assert len(raised) > 10, "the search found too little to mean anything"
    assert set(rows(codes, heading)) - {"other", "timed-out", "unknown-key", "busy"} == raised


def test_every_code_that_becomes_a_reason_is_explained(root: Path, codes: str) -> None:
    found: set[str] = set()
    for folder in ("secure_runtime/host", "secure_runtime/worker", "secure_runtime/models", "audit"):
        for name, node in calls(root / folder):
            if name in RECORDING | {"LogUnavailable"}:
                found |= {code for word in node.keywords if word.arg == "code" for code in literals(word.value)}
    not_on_record = {"reader", "reader-busy", "not-published"}  # answers to readers: see audit/errors.py
    assert len(found) > 8
    assert {code for code in found - not_on_record if f"`{code}`" not in codes} == set()
