"""Shared by the story and adversary tests: one trained bundle per run, one live deployment per run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Template:
    """A publisher's key, a bundle signed with it, and held-out rows."""

    folder: Path
    rows: list[list[float]]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    from gateway.provisioning import provision
    from tests.live import heldout_rows, train_bundle

    folder = tmp_path_factory.mktemp("template") / "publisher"
    provision(folder, audience="localhost:1", origin="localhost/template", profile="strict")
    train_bundle(folder, folder / "publisher.key")
    return Template(folder, heldout_rows(folder, 64))


@pytest.fixture
def fresh(template: Template) -> Iterator[Callable[[], object]]:
    """Makes deployments of their own for one test; stops and removes them afterwards."""
    import shutil

    from tests.live import Live, clone

    made: list[Live] = []

    def make() -> Live:
        made.append(clone(template.folder, template.rows))
        return made[-1]

    yield make
    for live in made:
        live.stop()
        shutil.rmtree(live.root.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def live(template: Template) -> Iterator[object]:
    """One running deployment that tests share; they must leave it serving."""
    import shutil

    from tests.live import clone

    shared = clone(template.folder, template.rows)
    try:
        shared.start()
        shared.ready()
        yield shared
    finally:
        shared.stop()
        shutil.rmtree(shared.root.parent, ignore_errors=True)
