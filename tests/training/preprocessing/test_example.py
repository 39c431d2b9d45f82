"""The example of admissions as it is: masked, dated, standardised, with private categories, to a verified bundle."""

from __future__ import annotations

import csv
import importlib.util
import random
from pathlib import Path

import pytest

from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.publishers import publishers_of
from secure_runtime.models.bundle import load_bundle
from training.experiment import run_experiment
from training.report import Quiet

EXAMPLE = Path(__file__).parents[3] / "examples" / "tabular" / "admissions.toml"


class Listening(Quiet):
    def __init__(self) -> None:
        self.heard: tuple[str, ...] = ()

    def remarks(self, lines: tuple[str, ...]) -> None:
        self.heard = lines


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    spec = importlib.util.spec_from_file_location("admissions", EXAMPLE.with_suffix(".py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.admissions(random.Random(2026))
    with (tmp_path / "admissions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    (tmp_path / "masking.key").write_bytes(bytes(32))
    (tmp_path / "masking.key").chmod(0o600)
    (tmp_path / "admissions.toml").write_text(EXAMPLE.read_text())
    return tmp_path


def test_admissions(rows, key):
    narrator = Listening()
    held = rows / "held.csv"
    published = run_experiment(
        rows / "admissions.toml",
        models_dir=rows / "models",
        key=key,
        audit=False,
        narrator=narrator,
        heldout_csv=held,
    )
    certificate = verify_bundle(published.bundle.directory, publishers_of({"hospital": key.public_key()})).certificate
    assert certificate.epsilon_micro <= 3_000_000
    assert certificate.preprocessing.epsilon_micro <= 600_000
    assert {one.column: one.action for one in certificate.preprocessing.masked} == {
        "patient": "hash",
        "age": "bin",
        "postcode": "prefix",
        "admitted": "month",
        "note": "redact",
    }
    names = [column.name for column in published.bundle.manifest.inputs[0].columns]
    assert {"ward=surgery", "ward=cardiology", "ward=maternity", "ward=geriatrics", "ward=*"} <= set(names)
    assert not any("isolation" in name for name in names)  # wards that one person brings
    assert published.quality.value > 0.8
    assert any("redacted in 'note'" in line for line in narrator.heard)
    before, after = (line.split("k = ")[1] for line in narrator.heard if "k = " in line)
    assert int(before.split("; ")[1].split(" of")[0]) > int(after.split("; ")[1].split(" of")[0])
    said = "".join(path.read_text(errors="replace") for path in published.bundle.directory.iterdir())
    assert "Lovelace" not in said + held.read_text()
    load_bundle(published.bundle.directory, publishers_of({"hospital": key.public_key()}))
