"""Real processes over gloo, each with its share of the weights: what they learn is what one process would learn."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, nn

from tests.training.dp_sgd.models import CASES, examples, model, unit_by_unit
from training.dp_sgd.checkpoint import Checkpoints
from training.dp_sgd.distributed import leave
from training.dp_sgd.sharding import ShardedSum
from training.errors import TrainingError
from training.losses import Loss
from training.private_sgd import PrivateSgd, train_privately

PROGRAM = (
    "import sys; from tests.training.dp_sgd import test_sharding as t;"
    "getattr(t, sys.argv[1])(int(sys.argv[2]), *sys.argv[3:])"
)
LOSS = Loss.usual(3)
QUIET = PrivateSgd(
    rate=Fraction(1), steps=3, divisor=12.0, clip_norm=0.5, sigma=1e-12, learning_rate=0.1, optimizer="adam",
    stability=0.1,  # otherwise Adam makes much of what a tiny gradient differs by
    average="ema", average_decay=0.5, gradients="book-keeping",
)  # fmt: skip
UNEVEN = 5  # rows of the first of two processes
FEW = ("mlp", "conv2d", "lstm", "tied")


def flat(module) -> np.ndarray:
    return torch.cat([one.detach().ravel() for one in module.parameters()]).numpy()


def learn(module, inputs, targets, **more) -> np.ndarray:
    train_privately(module, inputs, targets, **{"constants": QUIET, "loss": LOSS, **more})
    return flat(module)


def shard_of(rank: int, inputs, targets):
    part = (slice(UNEVEN), slice(UNEVEN, None), slice(0), slice(0))[rank]
    return tuple(one[part] for one in inputs), targets[part]


def meet(rank: int, meeting: str, count: int = 2) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)


def run(tmp_path, what: str, *more: str, count: int = 2) -> list[dict[str, np.ndarray]]:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, what]
    meeting, out = str(tmp_path / f"meeting-{what}"), str(tmp_path / f"out-{what}")
    running = [subprocess.Popen([*command, str(rank), meeting, out, *more]) for rank in range(count)]
    assert [one.wait(240) for one in running] == [0] * count
    return [dict(np.load(f"{out}-{rank}.npz")) for rank in range(count)]


def families(rank: int, meeting: str, out: str, count: str, *names: str) -> None:
    meet(rank, meeting, int(count))
    found = {name: learn(model(name), *shard_of(rank, *examples(name, 12)), sharded=True) for name in names}
    np.savez(f"{out}-{rank}.npz", **found)
    leave()


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (2, FEW),
        pytest.param(4, ("mlp", "conv1d"), marks=pytest.mark.slow),  # two have no rows, and one no part of some weights
        pytest.param(2, tuple(CASES), marks=pytest.mark.slow),
    ],
    ids=["few", "four-processes", "all"],
)
def test_every_kind_of_layer_learns_what_it_would_in_one_process(tmp_path, count, names):
    found = run(tmp_path, "families", str(count), *names, count=count)
    for name in names:
        inputs, targets = examples(name, 12)
        expected = learn(model(name), inputs, targets)
        assert all(np.array_equal(found[0][name], one[name]) for one in found)
        assert np.allclose(found[0][name], expected, rtol=0, atol=1e-10), name
        assert np.abs(expected - flat(model(name))).max() > 1e-3


def pieces(rank: int, meeting: str, out: str) -> None:
    """Noise alone on a wide layer; then how many numbers are held; then parts of unequal number and no number."""
    meet(rank, meeting)
    wide = nn.Linear(500, 40, bias=False).double()
    nn.init.zeros_(wide.weight)
    rows = torch.zeros(3, 500).double()
    loud = replace(QUIET, sigma=1e6, steps=1, optimizer="sgd", learning_rate=1.0, average="mean", divisor=1.0)
    noise = learn(wide, (rows,), torch.zeros(3).double(), constants=loud, loss=Loss.usual(40), sharded=True)

    inputs, targets = examples("mlp", 40)
    inputs[0][7] = torch.inf  # is left out, by everybody in the same round
    part = slice(0, 38) if rank == 0 else slice(38, 40)
    module = model("mlp")
    summing = ShardedSum(module, loss=LOSS, clip_norm=0.1, part_numbers=200)
    mine = tuple(one[part] for one in inputs), targets[part]
    summing.prepare(mine[0])
    held = [one.to_local().numel() for one in summing.module.parameters()]
    empty = [one.numel() for one in module.parameters()]
    summed = [one.full_tensor() for one in summing.over(*mine)]
    none = [one.full_tensor() for one in summing.over(tuple(one[:0] for one in inputs), targets[:0])]
    summing.give_back()
    summing.close()
    np.savez(
        f"{out}-{rank}.npz", noise=noise, held=held, empty=empty, back=flat(module),
        summed=torch.cat([one.ravel() for one in summed]), none=torch.cat([one.ravel() for one in none]),
    )  # fmt: skip
    leave()


def test_noise_is_added_once_and_parts_need_not_be_equal(tmp_path):
    first, second = run(tmp_path, "pieces")
    assert np.array_equal(first["noise"], second["noise"])
    noise = first["noise"] / 1e6 / 0.5
    half = len(noise) // 2
    assert abs(noise[:half].std() - 1) < 0.06  # by 10,000 values, each half from its own stream
    assert abs(noise[half:].std() - 1) < 0.06
    assert abs(np.corrcoef(noise[:half], noise[half:])[0, 1]) < 0.07

    total = flat(model("mlp")).size
    assert sum(first["held"]) + sum(second["held"]) == total
    assert max(sum(first["held"]), sum(second["held"])) <= 0.65 * total  # three rows of five, two of three
    assert first["empty"].sum() == 0
    inputs, targets = examples("mlp", 40)
    keep = np.arange(40) != 7
    expected, _ = unit_by_unit(model("mlp"), (inputs[0][keep],), targets[keep], LOSS, 0.1)
    assert np.allclose(first["summed"], torch.cat([one.ravel() for one in expected]), rtol=0, atol=1e-12)
    assert np.array_equal(first["summed"], second["summed"])
    assert not first["none"].any()
    assert np.array_equal(first["back"], flat(model("mlp")))


class Stop(Exception):
    pass


def stopped(rank: int, meeting: str, out: str, path: str) -> None:
    """Two of three steps, of which a checkpoint is left, and then the third."""
    meet(rank, meeting)

    def stop(step: int) -> None:
        if step == 2:
            raise Stop

    mine = shard_of(rank, *examples("mlp", 12))
    store = Checkpoints(Path(path), identity="this", every=1, resume=False)
    with pytest.raises(Stop):
        learn(model("mlp"), *mine, sharded=True, checkpoints=store, on_step=stop)
    if rank == 0:
        shutil.copy(path, f"{path}-of-two-steps")
    again = Checkpoints(Path(path), identity="this", every=1, resume=True)
    seen: list[int] = []
    found = learn(model("mlp"), *mine, sharded=True, checkpoints=again, on_step=seen.append)
    np.savez(f"{out}-{rank}.npz", found=found, resumed=again.resumed, seen=seen)
    leave()


def test_a_checkpoint_of_sharded_weights_is_resumed_sharded_or_by_one_process(tmp_path):
    inputs, targets = examples("mlp", 12)
    expected = learn(model("mlp"), inputs, targets)
    for one in run(tmp_path, "stopped", str(tmp_path / "checkpoint")):
        assert (one["resumed"], one["seen"].tolist()) == (1, [3])
        assert np.allclose(one["found"], expected, rtol=0, atol=1e-10)
    store = Checkpoints(tmp_path / "checkpoint-of-two-steps", identity="this", every=1, resume=True)
    seen: list[int] = []
    alone = learn(model("mlp"), inputs, targets, checkpoints=store, on_step=seen.append)
    assert seen == [3]
    assert np.allclose(alone, expected, rtol=0, atol=1e-10)


def test_other_ways_to_gradients_need_whole_weights():
    with pytest.raises(TrainingError, match="book-keeping"):
        ShardedSum(model("mlp"), loss=LOSS, clip_norm=1.0, gradients="hooks")
