"""The gate's probes of private statistics: right ones are never accused, and each fault is caught by its own probe."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from decimal import Decimal

import numpy as np
import pytest
import torch

from sealgate.ambient import random_bytes
from sealgate.certificate.audits import LANES_AND_REPLAY, PROBES
from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.publishers import publishers_of
from tests.training.conftest import configuration_text, tiny, write_data
from training import experiment
from training.auditing.gate import Findings
from training.auditing.probes import Probe
from training.auditing.statistics import audit_statistics
from training.centering import Centering
from training.configuration import load_configuration
from training.errors import TrainingError
from training.experiment import run_experiment
from training.preprocessing import statistics
from training.preprocessing.counting import Release, plan_names, plan_sum
from training.preprocessing.statistics import Categories, Spending, Standardise, Vocabulary

STANDARDISE = """
[preprocessing.standardise]
epsilon = 0.5
delta = 1e-6
columns = ["age", "dose"]
"""
NAMES = ("sensitivity", "noise", "freshness")


def sums(delta: str = "0.000001") -> Release:
    return plan_sum("sums", epsilon_micro=500_000, delta=delta, norm_l1=4.0, norm_l2=3.5**0.5)


def names(contributions: int) -> Release:
    return plan_names("names", epsilon_micro=500_000, delta="0.000001", contributions=contributions)


class Quieter(Release):
    """A tenth of the noise."""

    def noisy(self, sums, *, units, stream):
        return sums + (super().noisy(np.zeros_like(sums), units=units, stream=stream) // 10)


class Seeded(Release):
    """Noise from a generator that anybody can seed."""

    def noisy(self, sums, *, units, stream):
        return sums + np.random.normal(0, self.deviation * units, len(sums)).astype(np.int64)


class Unclipped(Standardise):
    def sums(self, configuration, columns):
        found = [len(columns[self.names[0]]) * statistics.UNITS]
        for name in self.names:
            low, high = map(float, configuration.columns[name][:2])
            values = (columns[name] - (low + high) / 2) / ((high - low) / 2)
            found += [int((one * statistics.UNITS).sum()) for one in (values, values**2 - 0.5)]
        return np.array(found, dtype=np.int64)


class EveryWord(Vocabulary):
    def counts(self, configuration, columns):
        return Counter(word for text in columns["text"].tolist() for word in text.split())


class Unscaled(Centering):
    def mean(self, features, *, population, stream):
        rows = torch.nan_to_num(features.double(), posinf=0.0)
        noise = torch.from_numpy(stream.gaussian(features.shape[1])) * (self.multiplier_micro / 1e6 * self.norm)
        return (rows.sum(0) + noise) / population


class Faint(Centering):
    def mean(self, features, *, population, stream):
        quiet = replace(Centering(**{one.name: getattr(self, one.name) for one in fields(self)}))
        return replace(quiet, multiplier_micro=self.multiplier_micro // 10).mean(
            features, population=population, stream=stream
        )


class SeededCentre(Centering):
    def mean(self, features, *, population, stream):
        noise = torch.randn(features.shape[1], dtype=torch.float64) * (self.multiplier_micro / 1e6 * self.norm)
        return noise / population  # of a mean of nothing


def centre(kind: type[Centering] = Centering) -> Centering:
    return kind.of({"norm": Decimal(10), "multiplier": Decimal(20), "delta": Decimal("0.000001")})


def as_kind(kind: type[Release], release: Release) -> Release:
    return kind(**{one.name: getattr(release, one.name) for one in fields(release)})


@pytest.fixture
def configuration(tmp_path):
    (tmp_path / "c.toml").write_text(configuration_text("data.csv") + STANDARDISE)
    return load_configuration(tmp_path / "c.toml")


def asked(configuration, *steps, centering=None) -> dict[str, bool]:
    spending = Spending(steps=steps, centering=centering)
    probes = audit_statistics(spending, configuration, entropy=random_bytes)
    assert [probe.name for probe in probes] == [f"statistics: {name}" for name in NAMES]
    return {name: probe.held for name, probe in zip(NAMES, probes, strict=True)}


COLUMNS = ("age", "dose")
RIGHT = {
    "gaussian sums": lambda: (Standardise(names=COLUMNS, release=sums()),),
    "laplace sums": lambda: (Standardise(names=COLUMNS, release=sums("0")),),
    "categories": lambda: (Categories(name="ward", most=3, release=names(1)),),
    "vocabulary": lambda: (Vocabulary(most=9, words_per_text=5, release=names(5)),),
}


def test_without_statistics_there_is_nothing_to_ask(configuration):
    assert audit_statistics(Spending(steps=(), centering=None), configuration, entropy=random_bytes) == ()


@pytest.mark.parametrize("kind", RIGHT)
def test_right_statistics_are_not_accused(kind, configuration):
    assert all(asked(configuration, *RIGHT[kind](), centering=centre()).values())


@pytest.mark.parametrize(
    ("step", "centering", "caught"),
    [
        (Unclipped(names=COLUMNS, release=sums()), None, "sensitivity"),
        (Standardise(names=(*COLUMNS, "score"), release=sums()), None, "sensitivity"),  # paid for two columns
        (EveryWord(most=9, words_per_text=5, release=names(5)), None, "sensitivity"),
        (Vocabulary(most=9, words_per_text=6, release=names(5)), None, "sensitivity"),
        (Standardise(names=COLUMNS, release=as_kind(Quieter, sums())), None, "noise"),
        (Standardise(names=COLUMNS, release=as_kind(Quieter, sums("0"))), None, "noise"),
        (Categories(name="ward", most=3, release=as_kind(Quieter, names(1))), None, "noise"),
        (Vocabulary(most=9, words_per_text=5, release=as_kind(Seeded, names(5))), None, "freshness"),
        (None, centre(Unscaled), "sensitivity"),
        (None, centre(Faint), "noise"),
        (None, centre(SeededCentre), "freshness"),
    ],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_each_fault_is_caught_by_its_probe(step, centering, caught, configuration):
    assert not asked(configuration, *([step] if step else []), centering=centering)[caught]


def test_generators_are_left_as_they_were(configuration):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    asked(configuration, *RIGHT["gaussian sums"]())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_states_them_and_a_contradiction_signs_nothing(tmp_path, key, monkeypatch):
    write_data(tmp_path / "data.csv", tiny())
    path = tmp_path / "config.toml"
    text = configuration_text("data.csv").replace("steps = 40", "steps = 4")
    path.write_text(text + STANDARDISE)
    held = tuple(Probe(name=name, held=True, found="as declared") for name in PROBES[LANES_AND_REPLAY])
    gate = Findings(method=LANES_AND_REPLAY, probes=held, epsilon_lower_micro=1, canaries=20_000, steps=4)
    monkeypatch.setattr(experiment, "audit_plan", lambda *_arguments, **_more: gate)  # it has tests of its own
    published = run_experiment(path, models_dir=tmp_path / "models", key=key)
    certificate = verify_bundle(published.bundle.directory, publishers_of({"us": key.public_key()})).certificate
    assert [probe.name for probe in certificate.audit.probes][-3:] == [f"statistics: {name}" for name in NAMES]
    monkeypatch.setattr(Standardise, "sums", Unclipped.sums)
    with pytest.raises(TrainingError, match="statistics: sensitivity") as caught:
        run_experiment(path, models_dir=tmp_path / "other", key=key)
    assert caught.value.code == "audit-contradicts"
    assert not (tmp_path / "other").exists()
