"""A run that is killed goes on: no step twice, no noise again, and nothing that does not fit is resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from sealgate.errors import ConfigurationError
from training.dp_sgd import checkpoint
from training.dp_sgd.checkpoint import Checkpoints, identity_of
from training.dp_sgd.updates import Update, UpdateRule
from training.losses import Loss
from training.private_sgd import PrivateSgd, train_privately

STEPS = 12
PROGRAM = """
import sys
from pathlib import Path
from tests.training.dp_sgd.test_checkpoint import run
def on_step(step):
    print(step, flush=True)
    sys.stdin.readline()
run(Path(sys.argv[1]), resume=sys.argv[2] == "resume", on_step=on_step)
"""


def run(path, *, resume, on_step=lambda step: None, identity="this", every=1, optimizer="adam"):
    """Noise alone: no row is ever drawn, so every step moves the weights by its own noise."""
    module = nn.Linear(500, 1, bias=False).double()
    nn.init.zeros_(module.weight)
    constants = PrivateSgd(
        rate=Fraction(1, 10**15), steps=STEPS, divisor=1.0, clip_norm=1.0, sigma=1.0, learning_rate=1.0,
        optimizer=optimizer, gradients="book-keeping",
    )  # fmt: skip
    store = Checkpoints(path, identity=identity, every=every, resume=resume)
    rows = (torch.zeros(3, 500, dtype=torch.float64),)
    executed = train_privately(
        module, rows, torch.zeros(3).double(), constants=constants, loss=Loss(kind="mse"), checkpoints=store,
        on_step=on_step,
    )  # fmt: skip
    return module.weight.detach().numpy().ravel().copy(), executed, store


@pytest.mark.parametrize("killed_at", [1, 7])
def test_a_killed_run_goes_on_with_the_next_step(tmp_path, killed_at):
    path = tmp_path / "run.checkpoint"
    command = [sys.executable, "-c", PROGRAM, str(path), "fresh"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for step in range(1, killed_at + 1):
            assert int(process.stdout.readline()) == step
            if step < killed_at:
                process.stdin.write("\n")
                process.stdin.flush()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.stat().st_mode & 0o777 == 0o600
    # What was told as done is on the disk: the run goes on behind it, and ends at the declared number of steps.
    seen = []
    _, executed, store = run(path, resume=True, on_step=seen.append)
    assert seen == list(range(killed_at + 1, STEPS + 1))
    assert executed == STEPS
    assert store.resumed == 1
    seen.clear()
    _, executed, _ = run(path, resume=True, on_step=seen.append)  # a finished run has nothing left to spend
    assert (seen, executed) == ([], STEPS)


class Stop(Exception):
    pass


def stopping(at):
    def on_step(step):
        if step == at:
            raise Stop

    return on_step


def test_noise_is_never_used_again_and_none_is_missing(tmp_path):
    """Two resumptions from the same checkpoint differ, and the sum of all noise has the variance of twelve steps."""
    path = tmp_path / "run.checkpoint"
    with pytest.raises(Stop):
        run(path, resume=False, on_step=stopping(6), optimizer="sgd")
    copy = path.read_bytes()
    ends = []
    for _ in range(2):
        path.write_bytes(copy)
        ends.append(run(path, resume=True, optimizer="sgd")[0])
    assert np.mean(ends[0] == ends[1]) < 0.1  # on a grid, a few agree by chance
    for end in ends:
        assert 0.8 < end.std() / np.sqrt(STEPS) < 1.2
    # Common are the first six steps, and nothing else.
    assert 0.35 < np.corrcoef(ends)[0, 1] < 0.65


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw", "rmsprop"])
def test_the_whole_state_comes_back(tmp_path, optimizer):
    rule = UpdateRule(optimizer=optimizer, learning_rate=0.1, momentum=0.9 if optimizer == "momentum" else 0.0,
                      average="ema", average_decay=0.5)  # fmt: skip

    def fresh():
        module = nn.Linear(3, 2).double()
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
        return module, Update(list(module.parameters()), rule=rule, steps=6)

    def steps(module, update, first, last):
        for step in range(first, last + 1):
            update.apply([torch.sin(one.detach() + step) for one in module.parameters()], step=step)

    whole, update = fresh()
    steps(whole, update, 1, 6)
    update.finish()
    half, update = fresh()
    steps(half, update, 1, 3)
    Checkpoints(tmp_path / "c", identity="i", every=1, resume=False).save(3, half, update)
    other, update = fresh()
    assert Checkpoints(tmp_path / "c", identity="i", every=1, resume=True).restore(other, update) == 3
    steps(other, update, 4, 6)
    update.finish()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))


def test_what_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "run.checkpoint"
    with pytest.raises(Stop):
        run(path, resume=False, on_step=stopping(2))
    with pytest.raises(ConfigurationError, match="--resume"):
        run(path, resume=False)
    with pytest.raises(ConfigurationError, match="another run"):
        run(path, resume=True, identity="that")
    with pytest.raises(ConfigurationError, match="does not fit"):
        run(path, resume=True, optimizer="sgd")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ConfigurationError, match="cannot be read"):
        run(path, resume=True)
    path.unlink()
    assert run(path, resume=True)[1] == STEPS  # nothing there: from the beginning


def test_a_crash_while_writing_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.checkpoint"
    with pytest.raises(Stop):
        run(path, resume=False, on_step=stopping(3))
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.os, "fsync", lambda _descriptor: (_ for _ in ()).throw(OSError(5, "I/O error")))
        with pytest.raises(ConfigurationError, match="cannot be written"):
            run(path, resume=True)
    assert path.read_bytes() == before
    seen = []
    run(path, resume=True, on_step=seen.append)  # and what the crash left aside is not in the way
    assert seen == list(range(4, STEPS + 1))
    assert sorted(os.listdir(tmp_path)) == ["run.checkpoint"]


def test_checkpoints_come_every_so_many_steps_and_after_the_last(tmp_path):
    path = tmp_path / "run.checkpoint"
    found = []

    def look(_step):
        found.append(path.exists())

    run(path, resume=False, every=5, on_step=look)
    assert found[:5] == [False] * 4 + [True]
    seen = []
    run(path, resume=True, every=5, on_step=seen.append)
    assert seen == []


def test_the_identity_depends_on_every_row_and_constant():
    rows, targets = (torch.zeros(2, 2),), torch.zeros(2)
    other = torch.zeros(2, 2)
    other[1, 1] = 1e-9
    found = {
        identity_of(b"a", b"b", inputs=rows, targets=targets),
        identity_of(b"ab", b"", inputs=rows, targets=targets),
        identity_of(b"a", b"b", inputs=(other,), targets=targets),
        identity_of(b"a", b"b", inputs=rows, targets=torch.ones(2)),
        identity_of(b"a", b"b", inputs=(torch.zeros(1, 4),), targets=targets),
    }
    assert len(found) == 5
