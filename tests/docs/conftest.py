"""Every page that people read, once."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "deploy").rglob("*.md"),
        *(ROOT / "examples").glob("*.md"),
    ]
)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def operations() -> str:
    return (ROOT / "docs" / "operations.md").read_text()


@pytest.fixture(scope="session")
def codes() -> str:
    return (ROOT / "docs" / "codes.md").read_text()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", PAGES, ids=[path.relative_to(ROOT).as_posix() for path in PAGES])
