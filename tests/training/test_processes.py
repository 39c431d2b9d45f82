"""Real processes: what they learn together is what one would, a lost one ends the run, and what cannot be shared is
refused."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.ambient import random_bytes
from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.decimals import MICRO
from sealgate.certificate.publishers import publishers_of
from sealgate.certificate.recompute import GaussianSteps
from sealgate.errors import ConfigurationError
from tests.training.conftest import configuration_text, tiny, write_data
from tests.training.dp_sgd.models import examples, model
from training.dp_sgd.checkpoint import Checkpoints
from training.errors import TrainingError
from training.experiment import run_experiment
from training.losses import Loss
from training.mechanisms.adassp import plan_adassp
from training.mechanisms.sgd import SgdPlan, on_processes
from training.private_sgd import PrivateSgd
from training.processes import shards

ROWS, STEPS = 30, 3


def plan(*, processes: int = 1, sharded: bool = False, sigma: float = 1e-12, unit_rows: int = 4) -> SgdPlan:
    """Every unit in every step, and noise that no float shows, unless it is asked for."""
    constants = PrivateSgd(
        rate=Fraction(1), steps=STEPS, divisor=12.0, clip_norm=0.5, sigma=sigma, learning_rate=1.0, momentum=0.5,
        unit_rows=unit_rows, gradients="book-keeping", average_steps=2,
    )  # fmt: skip
    account = GaussianSteps(sigma_micro=MICRO, rate=Fraction(1), steps=STEPS, delta="0.00001")
    return SgdPlan(
        account=account, constants=constants, loss=Loss.usual(3), unit="user", divisor_micro=12 * MICRO,
        clip_norm_micro=MICRO // 2, processes=processes, sharded=sharded,
    )  # fmt: skip


def flat(module) -> torch.Tensor:
    return torch.cat([one.detach().ravel() for one in module.parameters()])


def train(what: SgdPlan, module, groups, *, on_step=lambda _step: None):
    inputs, targets = examples("mlp", ROWS)
    return what.train(module, inputs, targets, groups=groups, entropy=random_bytes, on_step=on_step)


SHARED = pytest.mark.parametrize("sharded", [False, True], ids=["rows", "weights"])


@SHARED
def test_two_processes_learn_of_persons_what_one_would(sharded):
    groups = torch.arange(ROWS) % 7 * 1000  # rows of one person lie far apart
    alone, together, seen, steps = model("mlp"), model("mlp"), [], []
    train(plan(), alone, groups, on_step=lambda _step: steps.append(flat(alone)))
    shared = plan(processes=2, sharded=sharded)
    assert train(shared, together, groups, on_step=lambda _step: seen.append(flat(together).clone())) == STEPS
    assert torch.allclose(flat(together), flat(alone), atol=1e-10)
    assert (flat(alone) - flat(model("mlp"))).abs().max() > 1e-3
    assert len(seen) == STEPS
    for one, other in zip(seen, steps, strict=True):
        assert torch.allclose(one, other, atol=1e-10)
    assert [one.mode for one in shared.chosen] == ["book-keeping"]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("sharded", "kept_one"),
    [(False, False), (True, True), pytest.param(False, True, marks=pytest.mark.slow)],
    ids=["rows", "weights-checkpoint", "rows-checkpoint"],
)
def test_a_killed_process_ends_the_run_with_one_line_and_its_checkpoint_goes_on(tmp_path, sharded, kept_one):
    victims, seen = [], []

    def kill(_step):
        victims.append(max(multiprocessing.active_children(), key=lambda one: one.name))
        os.kill(victims[0].pid, signal.SIGKILL)

    def kept(*, resume: bool) -> Checkpoints | None:
        return Checkpoints(tmp_path / "checkpoint", identity="this", every=1, resume=resume) if kept_one else None

    shared = replace(plan(processes=2, sharded=sharded), checkpoints=kept(resume=False))
    with pytest.raises(TrainingError, match="was killed by signal 9") as caught:
        train(shared, model("mlp"), None, on_step=lambda step: kill(step) if step == 1 else None)
    assert caught.value.code == "process-lost"
    assert "\n" not in str(caught.value)
    assert ("--resume" if kept_one else "nothing of it is kept") in str(caught.value)
    assert victims[0].name == "sealgate-train-1"  # not the one that speaks
    assert multiprocessing.active_children() == []
    if kept_one:
        alone, together = model("mlp"), model("mlp")
        train(replace(shared, checkpoints=kept(resume=True)), together, None, on_step=seen.append)
        train(plan(), alone, None)
        assert seen[-1] == STEPS
        assert seen[0] > 1  # nothing that is on the disk is done again
        assert torch.allclose(flat(together), flat(alone), atol=1e-10)


def test_what_one_process_finds_wrong_is_said_as_it_is():
    wrong = plan(processes=2)
    wrong = replace(wrong, constants=replace(wrong.constants, learning_rate=1e308, sigma=1e9))
    with pytest.raises(TrainingError, match="diverged") as caught:
        train(wrong, model("mlp"), None)
    assert caught.value.code == "diverged"


def test_a_model_that_cannot_be_sent_is_refused():
    module = model("mlp")
    module.secret = lambda: None
    with pytest.raises(TrainingError, match="--processes") as caught:
        train(plan(processes=2), module, None)
    assert caught.value.code == "processes-unsupported"


@settings(max_examples=50)
@given(
    persons=st.lists(st.integers(0, 9), max_size=40),
    count=st.integers(1, 8),
    labelled=st.booleans(),
)
def test_shards_are_a_partition_that_divides_no_person(persons, count, labelled):
    groups = torch.tensor(persons, dtype=torch.int64) if labelled else None
    dealt = shards(len(persons), groups, count=count)
    assert len(dealt) == count
    assert sorted(torch.cat(dealt).tolist()) == list(range(len(persons)))
    units = [{persons[row] if labelled else row for row in one.tolist()} for one in dealt]
    assert sum(map(len, units)) == len(set(persons) if labelled else persons)
    sizes = [len(one) for one in units]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("count", "more", "word"),
    [
        (0, {}, "between 1 and 64"),
        (65, {}, "between 1 and 64"),
        (1, {"sharded": True}, "--shard"),
        (2, {"fingerprint": True}, "--fingerprint"),
    ],
)
def test_what_cannot_be_shared_is_refused(count, more, word):
    with pytest.raises(ConfigurationError, match=word) as caught:
        on_processes(plan(), count, **{"sharded": False, "fingerprint": False, **more})
    assert str(caught.value).startswith("--processes: ")


def test_mechanisms_without_steps_are_refused_before_anything_is_read(tmp_path, key):
    once = plan_adassp(target_micro=3 * MICRO, delta="0.00001", row_norm_micro=2 * MICRO)
    with pytest.raises(ConfigurationError, match="only dp-sgd"):
        on_processes(once, 2, sharded=False, fingerprint=False)
    config = tmp_path / "config.toml"
    config.write_text(configuration_text("data.csv"))
    (tmp_path / "data.csv").write_text("no rows of anything")  # who read it would say so
    with pytest.raises(ConfigurationError, match=r"--processes: --shard needs"):
        run_experiment(config, models_dir=tmp_path / "models", key=key, sharded=True)


def test_randomness_of_processes_cannot_be_injected():
    inputs, targets = examples("mlp", ROWS)
    with pytest.raises(TrainingError) as caught:
        plan(processes=2).train(
            model("mlp"), inputs, targets, groups=None, entropy=lambda size: bytes(size), on_step=lambda _step: None
        )
    assert caught.value.code == "processes-unsupported"


@pytest.mark.slow
def test_the_command_on_two_processes_makes_the_same_kind_of_bundle(tmp_path, key):
    write_data(tmp_path / "data.csv", tiny(2000))
    (tmp_path / "config.toml").write_text(configuration_text("data.csv", family="mlp"))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "publisher.key").write_bytes(pem)
    ways = {"alone": [], "rows": ["--processes", "2"], "weights": ["--processes", "2", "--shard"]}
    found = {}
    for way, options in ways.items():
        command = [sys.executable, "-m", "sealgate", "train", "config.toml", "--out", way, *options]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        found[way] = verify_bundle(tmp_path / way / "tiny", publishers_of({"us": key.public_key()})).certificate
    alone = found.pop("alone")
    assert found["rows"].environment.gradients.endswith("on 2 processes")
    assert found["weights"].environment.gradients == "book-keeping on 2 processes, weights sharded"
    for together in found.values():
        assert (alone.epsilon_micro, alone.mechanism) == (together.epsilon_micro, together.mechanism)
        assert together.audit is not None
        assert abs(alone.measured[0].value_micro - together.measured[0].value_micro) < 100_000
        assert together.measured[0].value_micro > 600_000
