"""`--plan`: figures that training then states, timing on made-up rows, and no look at the data."""

from __future__ import annotations

import builtins
import io
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from sealgate.certificate.recompute import GaussianSteps, recompute
from sealgate.errors import ConfigurationError
from tests.training.conftest import configuration_text
from training.configuration import load_configuration
from training.forecast import figures, told
from training.forecast.figures import Figure, Refused, figure_of, neighbours, targets
from training.forecast.timing import timing_of
from training.forecast.told import forecast
from training.manifests import manifest_of

ROOT = Path(__file__).parents[3]


def written(tmp_path: Path, text: str):
    path = tmp_path / "config.toml"
    path.write_text(text)
    configuration = load_configuration(path)
    return configuration, manifest_of(configuration)


def test_the_table_holds_what_the_accountant_says_of_each_sigma(tmp_path, monkeypatch):
    assert list(map(float, figures.TARGETS)) == [0.5, 1, 2, 3, 5, 8]
    monkeypatch.setattr(figures, "TARGETS", (Decimal("0.5"), Decimal("5")))
    text = configuration_text("nowhere.csv", sigma="epsilon = 2", steps="steps = 20")
    found = list(targets(*written(tmp_path, text)))
    assert [one.label for one in found] == [str(epsilon) for epsilon in figures.TARGETS]
    for one, wanted in zip(found, figures.TARGETS, strict=True):
        assert isinstance(one, Figure)
        assert one.cost.epsilon_micro <= wanted * 10**6
        steps = GaussianSteps(sigma_micro=round(one.sigma * 1e6), rate=Fraction(1, 2), steps=20, delta="0.0001")
        assert recompute(steps).add_remove_micro + 10 == one.cost.epsilon_micro
        assert abs(one.cost.second_epsilon_micro - one.cost.epsilon_micro) < 20_000
        assert one.noise == pytest.approx(one.sigma / 100)  # E[B] is half of the public 200
    attacks = [one.found_at_hundredth for one in found]
    assert attacks == sorted(attacks)
    assert 0.01 < attacks[0] < 0.02


def test_what_steps_and_rate_do_at_the_same_epsilon(tmp_path):
    text = configuration_text("nowhere.csv", sigma="epsilon = 2", steps="steps = 20")
    configuration, manifest = written(tmp_path, text)
    here = figure_of(configuration, manifest, label="this")
    near = {one.label: one for one in neighbours(configuration, manifest)}
    assert set(near) == {"half the steps: 10", "half the rate: 1/4", "twice the steps: 40", "twice the rate: 1"}
    assert near["half the steps: 10"].sigma < here.sigma < near["twice the steps: 40"].sigma
    assert near["half the rate: 1/4"].sigma < here.sigma < near["twice the rate: 1"].sigma
    assert near["twice the steps: 40"].relative_work == 2
    given = written(tmp_path, configuration_text("nowhere.csv"))
    assert list(neighbours(*given)) == []  # sigma is given: there is no epsilon to keep


def test_an_epsilon_that_cannot_be_reached_is_said(tmp_path, monkeypatch):
    """A million steps over all rows at a delta of 10^-12 need more noise than anybody accounts for."""
    monkeypatch.setattr(figures, "TARGETS", (Decimal("0.1"),))
    text = configuration_text("nowhere.csv", steps="steps = 1000000", rate='rate = "1"', delta="delta = 1e-12")
    (found,) = targets(*written(tmp_path, text))
    assert isinstance(found, Refused)
    assert "no noise gives epsilon 0.1" in found.why
    assert "cannot be reached" in told._table([found], first="epsilon")


@pytest.mark.parametrize(
    "example",
    ["tabular/breast_cancer_objective", "tabular/progression_adassp", "sequence/digits_lstm", "vision/digits"],
)
def test_every_kind_of_mechanism_and_model_can_be_timed(example):
    configuration = load_configuration(ROOT / "examples" / f"{example}.toml")
    manifest = manifest_of(configuration)
    plan = figure_of(configuration, manifest, label="this").plan
    timing = timing_of(configuration, manifest, plan)
    assert timing is not None
    assert timing.training_s > 0
    assert timing.memory > 50 * 1024**2
    assert (timing.step_s > 0) == (configuration.privacy.mechanism == "dp-sgd")
    assert bool(timing.gradients) == (timing.step_s > 0)
    assert (timing.fixed_s > 0) == (configuration.model.family == "scatternet")


def test_it_says_all_and_opens_no_data(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "TARGETS", (Decimal("1"),))
    path = tmp_path / "config.toml"
    path.write_text(configuration_text("secret.csv", sigma="epsilon = 2", steps="steps = 20"))
    (tmp_path / "secret.csv").write_text("never read\n")
    opened: list[str] = []
    real = io.open

    def watched(file, *more, **options):
        opened.append(str(file))
        return real(file, *more, **options)

    monkeypatch.setattr(builtins, "open", watched)
    monkeypatch.setattr(io, "open", watched)
    said: list[str] = []
    forecast(path, say=said.append)
    text = "\n".join(said)
    assert not any("secret.csv" in name for name in opened)
    assert any("config.toml" in name for name in opened)
    for words in (
        "not opened",
        "sigma",
        "opacus-prv",
        "dp-accounting-pld",
        "at other epsilons",
        "GiB",
        "twice the steps",
    ):
        assert words in text
    assert all(len(line) <= 125 for line in text.split("\n"))


def test_a_configuration_that_could_not_begin_is_refused(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(configuration_text("x.csv", rate='rate = "2"'))
    with pytest.raises(ConfigurationError, match="rate"):
        forecast(path, say=lambda _line: None)
