"""Two real processes over gloo: what they learn together is what one process would from all rows."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import numpy as np
import torch
from torch import distributed, nn

from tests.training.dp_sgd.models import examples, model
from training.dp_sgd.distributed import leave
from training.losses import Loss
from training.private_sgd import PrivateSgd, train_privately

PROGRAM = (
    "import sys; from tests.training.dp_sgd.test_distributed import process; process(int(sys.argv[1]), *sys.argv[2:])"
)
LOSS = Loss.usual(3)


def constants(sigma: float) -> PrivateSgd:
    return PrivateSgd(
        rate=Fraction(1), steps=3, divisor=12.0, clip_norm=0.5, sigma=sigma, learning_rate=1.0, momentum=0.5,
        gradients="book-keeping",
    )  # fmt: skip


def learn(module, inputs, targets, sigma: float, **more) -> np.ndarray:
    train_privately(module, inputs, targets, constants=constants(sigma), loss=LOSS, **more)
    return torch.cat([one.detach().ravel() for one in module.parameters()]).numpy()


def process(rank: int, meeting: str, out: str) -> None:
    """One of the two: quietly on its shard of real rows, then with noise that drowns everything on a larger model."""
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    inputs, targets = examples("mlp", 12)
    shard = slice(0, 5) if rank == 0 else slice(5, 12)
    module = model("mlp")
    if rank:  # the first one's weights are everybody's
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
    quiet = learn(module, tuple(one[shard] for one in inputs), targets[shard], 1e-12, distributed=True)
    wide = nn.Linear(500, 3).double()
    nn.init.zeros_(wide.weight)
    loud = learn(wide, (torch.zeros(3, 500).double(),), torch.zeros(3).double(), 1e6, distributed=True)
    np.savez(f"{out}-{rank}.npz", quiet=quiet, loud=loud)
    leave()


def test_two_processes_learn_what_one_would_and_add_noise_once(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    meeting, out = str(tmp_path / "meeting"), str(tmp_path / "out")
    running = [subprocess.Popen([*command, str(rank), meeting, out]) for rank in (0, 1)]
    inputs, targets = examples("mlp", 12)
    before = torch.cat([one.detach().ravel() for one in model("mlp").parameters()]).numpy()
    expected = learn(model("mlp"), inputs, targets, 1e-12)
    assert [one.wait(240) for one in running] == [0, 0]
    first, second = (np.load(f"{out}-{rank}.npz") for rank in (0, 1))
    assert np.array_equal(first["quiet"], second["quiet"])
    assert np.allclose(first["quiet"], expected, atol=1e-10)
    assert np.abs(first["quiet"] - before).max() > 1e-3
    # The noise's deviation is that of one process, not of the sum of two (1.41 times as much).
    assert np.array_equal(first["loud"], second["loud"])
    scale = 1e6 * 0.5 / 12 * np.sqrt(1 + 1.5**2 + 1.75**2)
    assert 0.85 < first["loud"][:1500].std() / scale < 1.15
