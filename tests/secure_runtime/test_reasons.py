"""Every reason that the worker's code can give is one that the host takes, and no other is declared."""

from __future__ import annotations

import ast
from pathlib import Path

from secure_runtime.errors import ENGINE_REASONS, GATEKEEPER_REASONS, BadInput

ROOT = Path(__file__).parents[2] / "secure_runtime"


def calls(name: str) -> list[ast.Call]:
    found: list[ast.Call] = []
    for path in [*(ROOT / "worker").rglob("*.py"), *(ROOT / "models").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                found.append(node)
    return found


def words(given: ast.expr) -> set[str]:
    """The words that an expression may come to: one, or either of two."""
    return words(given.body) | words(given.orelse) if isinstance(given, ast.IfExp) else {ast.literal_eval(given)}


def test_gatekeeper_reasons_are_all_declared() -> None:
    given = {word for call in calls("TurnedAway") for word in words(call.args[0])}
    assert given == GATEKEEPER_REASONS


def test_engine_reasons_are_all_declared() -> None:
    given = {BadInput.code}
    for call in calls("BadInput"):
        given |= {ast.literal_eval(word.value) for word in call.keywords if word.arg == "code"}
    assert given == ENGINE_REASONS
