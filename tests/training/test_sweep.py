"""A sweep is stated as the releases that it is; the loss of public rows is the only one that progress shows."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from rich.console import Console

from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.measured import wilson
from sealgate.certificate.publishers import publishers_of
from sealgate.certificate.recompute import epsilon_micro
from sealgate.errors import ConfigurationError
from secure_runtime.models.bundle import load_bundle
from tests.training.conftest import configuration_text, tiny, write_data
from training.configuration import load_configuration
from training.experiment import run_experiment
from training.measure import Quality, _explained
from training.mechanisms.plans import plan_of
from training.report import Quiet, Terminal
from training.sweep import Sweep


class Listener(Quiet):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.swept_epsilons: list[int] = []

    def public_loss(self, loss: float) -> None:
        self.losses.append(loss)

    def swept(self, measured) -> None:
        self.swept_epsilons.append(measured.epsilon_micro)


def test_a_sweep_stands_in_the_certificate_as_releases(config, key):
    listener = Listener()
    published = run_experiment(
        config,
        models_dir=config.parent / "models",
        key=key,
        audit=False,
        sweep=Sweep.of("1,4", repeats=2),
        narrator=listener,
    )
    bundle = verify_bundle(published.bundle.directory, publishers_of({"us": key.public_key()}))
    certificate = bundle.certificate
    own, *others = certificate.measured
    assert own.epsilon_micro == certificate.epsilon_micro
    assert own.right == round(published.quality.value * own.rows)
    assert [one.epsilon_micro for one in others] == listener.swept_epsilons
    assert [round(one.epsilon_micro / 1e6, 1) for one in others] == [1.0, 1.0, 4.0, 4.0]
    (release,) = [one for one in certificate.releases if "sweep" in one.what]
    assert not release.covered
    together = sum(one.epsilon_micro for one in others)
    assert f"{together / 1e6:.6f}".rstrip("0") in release.what
    assert "4 x 0.0001" in release.what
    card = (bundle.directory / "card.md").read_text()
    for words in ("finds at most", "Accuracy against privacy", "Hyper-parameters: fixed", "- Audit: none"):
        assert words in card
    assert load_bundle(bundle.directory, publishers_of({"us": key.public_key()})).facts == published.bundle.facts


@pytest.mark.parametrize("wrong", ["", "1,x", "0", "1,-2", "1,1", "nan"])
def test_epsilons_that_make_no_sweep(wrong):
    with pytest.raises(ConfigurationError, match="--sweep"):
        Sweep.of(wrong, repeats=1)


def test_a_sweep_is_bounded_and_not_resumed(config, key):
    with pytest.raises(ConfigurationError, match="256"):
        Sweep.of("1,2", repeats=129)
    with pytest.raises(ConfigurationError, match="--resume"):
        run_experiment(config, models_dir=config.parent, key=key, resume=True, sweep=Sweep.of("1", repeats=1))


def test_a_sweep_leaves_everything_but_epsilon(config):
    configuration = load_configuration(config)
    (one,) = Sweep.of("2.5", repeats=1).configurations(configuration)
    assert (one.privacy.epsilon, one.privacy.sigma) == (Decimal("2.5"), None)
    assert one.privacy.steps == configuration.privacy.steps
    assert one.model == configuration.model


def test_the_loss_of_public_rows_is_shown_and_is_that_of_the_weights(tmp_path, key):
    write_data(tmp_path / "data.csv", tiny())
    write_data(tmp_path / "public.csv", tiny(60, seed=99))
    path = tmp_path / "config.toml"
    path.write_text(configuration_text("data.csv").replace("[privacy]", 'public_rows = "public.csv"\n[privacy]'))
    listener = Listener()
    published = run_experiment(path, models_dir=tmp_path / "models", key=key, audit=False, narrator=listener)
    assert 20 <= len(listener.losses) <= 40
    assert listener.losses[-1] < 0.9 * math.log(2)  # before the first step it is log 2
    model = load_bundle(published.bundle.directory, publishers_of({"us": key.public_key()}))
    public = tiny(60, seed=99)
    rows = torch.tensor(np.stack([public[name] for name in ("age", "dose", "score")], axis=1), dtype=torch.float32)
    chances = model.predict({"features": rows})["scores"].double()[:, 1]
    ill = torch.from_numpy(public["ill"] == "yes")
    loss = -torch.log(torch.where(ill, chances, 1 - chances)).mean()
    assert listener.losses[-1] == pytest.approx(float(loss), abs=1e-4)
    (release,) = [one for one in published.bundle.certificate.releases if "public rows" in one.what]
    assert release.covered


def test_the_bar_shows_epsilon_and_the_loss_of_public_rows_only(config, tmp_path):
    configuration = load_configuration(config)
    plan = plan_of(configuration, classes=2)
    with (tmp_path / "shown.txt").open("w") as shown:
        terminal = Terminal(Console(file=shown, width=120))
        with terminal.progress(plan) as on_step:
            on_step(20)
            terminal.public_loss(0.51234)
            on_step(40)
    text = (tmp_path / "shown.txt").read_text()
    assert "40/40" in text
    assert "loss of public rows 0.5123" in text
    assert f"epsilon {epsilon_micro(plan.account, discretisation='0.001') / 1e6:.2f}" in text


def test_public_rows_with_a_fault_are_named_as_such(tmp_path, key):
    write_data(tmp_path / "data.csv", tiny())
    columns = tiny(60)
    columns["dose"][4] = np.nan
    write_data(tmp_path / "public.csv", columns)
    path = tmp_path / "config.toml"
    path.write_text(configuration_text("data.csv").replace("[privacy]", 'public_rows = "public.csv"\n[privacy]'))
    with pytest.raises(ConfigurationError, match=r"public_rows: .*row 5"):
        run_experiment(path, models_dir=tmp_path / "models", key=key, audit=False)


def test_the_interval_of_r2_covers_as_often_as_it_says():
    generator = np.random.default_rng(5)
    covered, runs = 0, 300
    for _ in range(runs):
        wanted = generator.normal(size=200)
        found = wanted + generator.normal(scale=0.5, size=200)
        low, high = _explained(found, wanted).interval
        covered += low <= 1 - 0.25 <= high
    assert 0.90 <= covered / runs <= 0.99


def test_quality_carries_its_interval():
    quality = Quality("accuracy", 103 / 114, 114)
    assert quality.interval == wilson(103, 114)
    assert str(quality) == "accuracy 0.904 (0.835 to 0.945) on 114 held-out rows"
    assert quality.measured(epsilon_micro=7).right == 103
    assert Quality("R2", 0.5, 10, 0.1).measured(epsilon_micro=7).low_micro == 304_004
