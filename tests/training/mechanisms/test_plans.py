"""From CONFIG.toml to a verified bundle by each mechanism, and configurations that do not fit theirs."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from sealgate.ambient import random_bytes
from sealgate.certificate.mechanisms import name_of
from sealgate.errors import ConfigurationError
from tests.training.conftest import configuration_text, tiny, write_data
from training.configuration import load_configuration
from training.experiment import run_experiment
from training.losses import Loss
from training.mechanisms.plans import plan_of
from training.mechanisms.selection import score_of, trials
from training.randomness import Keystream

ONE_RELEASE = {"rate": "", "steps": "", "clip_norm": "", "learning_rate": "", "momentum": "", "sigma": "epsilon = 4"}


def configured(folder: Path, *, family: str, mechanism: str, **changes: str) -> Path:
    """The tiny data's configuration for a mechanism that releases once."""
    text = configuration_text("data.csv", family=family, **{**ONE_RELEASE, **changes})
    path = folder / "config.toml"
    path.write_text(text.replace("[privacy]", f'[privacy]\nmechanism = "{mechanism}"').replace("[optimizer]", ""))
    write_data(folder / "data.csv", tiny(rows=4000))
    return path


@pytest.mark.parametrize(
    ("family", "mechanism", "least"),
    [("linear-regression", "adassp", 0.6), ("logistic-regression", "objective-perturbation", 0.85)],
)
def test_from_rows_to_a_bundle_that_verifies(tmp_path, key, family, mechanism, least):
    path = configured(tmp_path, family=family, mechanism=mechanism, public_population="public_population = 4000")
    published = run_experiment(path, models_dir=tmp_path / "models", key=key)
    certificate = published.bundle.certificate
    assert name_of(certificate.mechanism) == mechanism
    assert 3_990_000 < certificate.epsilon_micro <= 4_000_000
    assert certificate.accounting.second_accountant == "analytic-gaussian"
    assert published.quality.value > least


def test_the_best_of_several_runs_is_a_bundle_that_verifies(tmp_path, key):
    text = configuration_text("data.csv", how='how = "dp-selected"', sigma="epsilon = 8", steps="steps = 10")
    path = tmp_path / "config.toml"
    grid = "mean_trials = 2\nscore_sigma = 10\n[selection.grid]\nlearning_rate = [0.001, 0.5]\n[columns]"
    path.write_text(text.replace("[columns]", grid))
    write_data(tmp_path / "data.csv", tiny())
    published = run_experiment(path, models_dir=tmp_path / "models", key=key, audit=False)
    certificate = published.bundle.certificate
    assert certificate.selection.search is not None
    assert certificate.selection.search.choices == 2
    assert 0 < certificate.selection.epsilon_micro < certificate.epsilon_micro <= 8_000_000
    assert certificate.accounting.accountant == "dp-accounting-rdp"


WRONG = [
    ({"family": "logistic-regression", "mechanism": "adassp"}, "trains a linear-regression"),
    ({"family": "linear-regression", "mechanism": "objective-perturbation"}, "trains a logistic-regression"),
    ({"family": "linear-regression", "mechanism": "magic"}, "mechanism must be one of"),
    ({"family": "linear-regression", "mechanism": "adassp", "sigma": "sigma = 4"}, "needs epsilon"),
    ({"family": "linear-regression", "mechanism": "adassp", "steps": "steps = 3"}, "are not adassp's"),
    ({"family": "linear-regression", "mechanism": "adassp", "rate": "regularisation = 1"}, "objective-perturbation"),
    ({"family": "linear-regression", "mechanism": "adassp", "rate": "row_norm = 0"}, "above zero"),
    ({"family": "linear-regression", "mechanism": "dp-sgd"}, "rate must be a fraction"),
]


@pytest.mark.parametrize(("changes", "says"), WRONG, ids=[says for _, says in WRONG])
def test_a_configuration_that_does_not_fit_its_mechanism(tmp_path, changes, says):
    with pytest.raises(ConfigurationError, match=says):
        load_configuration(configured(tmp_path, **changes))


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ("[selection.grid]\nsigma = [1, 2]", "needs lists"),
        ("[selection.grid]\nlearning_rate = [1]", "between 2"),
        ("[selection.grid]\nlearning_rate = [1, 0]", "out of range"),
        ("[selection.grid]\nmomentum = [0, 1]", "out of range"),
        ('trials = "poisson"\n[selection.grid]\nmomentum = [0, 0.9]', "trials must be"),
        ("", "needs a"),
    ],
)
def test_a_search_that_cannot_be_run(tmp_path, grid, says):
    path = tmp_path / "config.toml"
    text = configuration_text("data.csv", how='how = "dp-selected"')
    path.write_text(text.replace("[columns]", f"{grid}\n[columns]"))
    with pytest.raises(ConfigurationError, match=says):
        plan_of(load_configuration(path), classes=2)


def test_a_search_over_a_momentum_that_the_optimizer_does_not_have(tmp_path):
    path = tmp_path / "config.toml"
    text = configuration_text("data.csv", how='how = "dp-selected"').replace("\nmomentum = 0.9\n", '\nkind = "adam"\n')
    path.write_text(text.replace("[columns]", "[selection.grid]\nmomentum = [0.1, 0.9]\n[columns]"))
    with pytest.raises(ConfigurationError, match="momentum: adam has none"):
        plan_of(load_configuration(path), classes=2)


def test_the_norm_of_rows_follows_from_the_public_ranges(tmp_path):
    path = configured(tmp_path, family="linear-regression", mechanism="adassp")
    plan = plan_of(load_configuration(path), classes=0)
    assert plan.part(coordinates=4, steps_executed=1, fresh=True).row_norm_micro == 2_000_000  # sqrt(3 + 1)
    path = configured(tmp_path, family="linear-regression", mechanism="adassp", rate="row_norm = 1.25")
    plan = plan_of(load_configuration(path), classes=0)
    assert plan.part(coordinates=4, steps_executed=1, fresh=False).row_norm_micro == 1_250_000
    assert plan.part(coordinates=4, steps_executed=1, fresh=False).gram.seed == "fixed"


@pytest.mark.parametrize(("shape", "mean"), [(1, 5.0), (0, 5.0), (1, 2.0)])
def test_the_number_of_runs_has_the_declared_distribution(shape, mean):
    stream = Keystream(random_bytes)
    drawn = [trials(stream, mean=mean, shape=shape) for _ in range(6000)]
    assert min(drawn) == 1
    # Both distributions have a standard deviation of a few means; five standard errors.
    spread = math.sqrt(sum((one - mean) ** 2 for one in drawn) / len(drawn) / len(drawn))
    assert abs(sum(drawn) / len(drawn) - mean) < 5 * spread
    if shape == 1:
        assert abs(Counter(drawn)[1] / len(drawn) - 1 / mean) < 0.03


def test_a_row_changes_a_score_by_at_most_one():
    module = torch.nn.Linear(1, 1).double()
    with torch.no_grad():
        module.weight.fill_(1e9)
    rows = torch.tensor([[1.0], [-3.0], [float("inf")]], dtype=torch.float64)
    targets = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    scores = [score_of(module, (rows[:n],), targets[:n], loss=Loss.usual(0)) for n in range(4)]
    assert all(0 <= later - former <= 1 for former, later in itertools.pairwise(scores))
    right = score_of(module, (rows[:2],), targets[:2], loss=Loss.usual(2))
    assert right == 2
