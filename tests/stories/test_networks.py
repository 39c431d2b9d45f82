"""One network, from its ties to a sealed answer: trained, certified, loaded, asked by a node's number."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.mechanisms import GapAggregation
from sealgate.certificate.publishers import load_publishers
from secure_runtime.models.bundle import load_bundle
from tests.conftest import Template
from tests.live import Live, clone, run_sealgate

EXAMPLES = Path(__file__).parents[2] / "examples" / "network"


def train(live: Live, template: Template, folder: Path, name: str, *more: str) -> str:
    """`sealgate train` on an example as it is, with its network beside it."""
    shutil.copy(EXAMPLES / f"{name}.toml", folder)
    made = "club" if name == "club" else "people"
    subprocess.run([sys.executable, EXAMPLES / "prepare.py", made, folder / f"{made}.npz"], check=True)
    key, held = template.folder / "publisher.key", folder / f"{name}.csv"
    return run_sealgate(
        "train", folder / f"{name}.toml", "--out", live.root / "models", "--key", key, "--heldout-csv", held, *more
    ).stdout


@pytest.fixture(scope="module")
def served(template: Template) -> Iterator[tuple[Live, Path]]:
    """A deployment of its own that serves the club, and the folder where it was trained."""
    live = clone(template.folder, [])
    folder = live.root.parent / "training"
    folder.mkdir()
    try:
        train(live, template, folder, "club", "--no-audit")
        live.start()
        live.ready()
        yield live, folder
    finally:
        live.stop()
        shutil.rmtree(live.root.parent, ignore_errors=True)


def test_a_member_is_asked_about_by_number(served: tuple[Live, Path]) -> None:
    live, folder = served
    with (folder / "club.csv").open(newline="") as file:
        numbers = np.array([[int(row[0])] for row in list(csv.reader(file))[1:]])
    with live.session() as session:
        result = session.infer("club", numbers)
        with pytest.raises(Exception, match="outside 0 to 34"):
            session.infer("club", np.array([[35]]))
    publishers = load_publishers(live.root / "publishers.toml")
    alone = load_bundle(live.root / "models" / "club", publishers).predict({"node": torch.from_numpy(numbers)})
    np.testing.assert_allclose(np.array(result.outputs["scores"]), alone["scores"].numpy(), atol=1e-5)
    assert set(result.labels or ()) <= {"instructor", "administrator"}
    bundle = verify_bundle(live.root / "models" / "club", publishers)
    assert bundle.facts.privacy_unit == bundle.certificate.unit == "edge"
    assert isinstance(bundle.certificate.mechanism, GapAggregation)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("people", 0.65), ("people_as_nodes", 0.36)])
def test_the_examples_as_they_are(template: Template, tmp_path: Path, name: str, least: float) -> None:
    live = clone(template.folder, [])
    try:
        said = train(live, template, tmp_path, name)
        found = re.search(r"result +accuracy ([0-9.]+)", said)
        assert found is not None
        assert float(found.group(1)) > least
    finally:
        shutil.rmtree(live.root.parent, ignore_errors=True)
