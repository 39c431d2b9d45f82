"""Shared by all tests: one trained bundle per run, one live deployment per run, every privacy loss computed once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before anything loads torch, here or in a process that a test starts. The tests' tensors are small: threads over them
# cost more than they give, and where other processes want the processors they wait for one another and burn them.
for _threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

# No test is timed: a busy machine makes one example take a second, and that says nothing about the product.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@dataclass(frozen=True)
class Template:
    """A publisher's key, a bundle signed with it, and held-out rows."""

    folder: Path
    rows: list[list[float]]


@pytest.fixture(scope="session", autouse=True)
def each_privacy_loss_once() -> Iterator[None]:
    """In this process the distribution of a mechanism's privacy loss, a function of its constants alone, is kept.

    Every verification of every bundle computes it, and the bundles of the tests have few different constants.
    """
    from sealgate.certificate import recompute, tradeoff
    from sealgate.certificate.accounting import releases

    homes, kept = (recompute, tradeoff, releases), lru_cache(maxsize=64)(recompute.privacy_loss)
    with pytest.MonkeyPatch.context() as patch:
        for home in homes:
            patch.setattr(home, "privacy_loss", kept)
        yield


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
