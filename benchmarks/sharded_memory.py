"""What a process holds when weights are sharded: an MLP of 17 layers, Adam, float32, on 1, 2 and 4 processes.

Held are weights and the optimizer's two moments, counted from the tensors' own storage; resident is what the operating
system says the process has more than before the model was made, after freed memory was handed back. One thread for each
process; the processes share this machine, so time is CPU time of the first one.

`python -m benchmarks.sharded_memory [--width 1024] [--steps 4] [--processes 1,2,4]`. Prints a table.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import torch
from torch import distributed, nn

from sealgate.terminal import render_table
from training.dp_sgd.distributed import leave
from training.dp_sgd.updates import Update
from training.losses import Loss
from training.private_sgd import PrivateSgd, train_privately

MB = 1e6
ROWS, CLASSES, LAYERS = 64, 10, 16


def resident() -> float:
    """MB, when what was freed is handed back."""
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / MB


def own(tensor: torch.Tensor) -> torch.Tensor:
    """The piece that this process holds."""
    piece: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return piece


def member(rank: int, count: int, meeting: str, width: int, steps: int) -> dict[str, float]:
    """Train as one of so many; what it held after the last step but one."""
    torch.set_num_threads(1)
    if count > 1:
        distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    held: list[torch.Tensor] = []
    made = Update.__init__

    def noted(self: Update, parameters: list[nn.Parameter], **more: object) -> None:
        made(self, parameters, **more)  # type: ignore[arg-type]
        held.extend([*parameters, *self.state.values()])

    Update.__init__ = noted  # type: ignore[method-assign]
    inputs, targets = torch.zeros(ROWS, width), torch.zeros(ROWS)
    constants = PrivateSgd(
        rate=Fraction(1), steps=steps, divisor=ROWS, clip_norm=1.0, sigma=1.0, learning_rate=1e-3, optimizer="adam",
        arithmetic="float32", gradients="book-keeping",
    )  # fmt: skip
    seen: dict[str, float] = {}
    clock = [0.0]

    def on_step(step: int) -> None:
        now = time.process_time()
        seen.update(ms=1000 * (now - clock[0]), resident=resident() - before)
        clock[0] = now

    def on_choice(_choice: object) -> None:
        clock[0] = time.process_time()

    train_privately(nn.Sequential(nn.Linear(2, 2)), (torch.zeros(4, 2),), torch.zeros(4), constants=constants,
                    loss=Loss.usual(2), distributed=count > 1)  # fmt: skip  # what every run loads
    held.clear()
    before = resident()
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(width, width), nn.ReLU())]
    module = nn.Sequential(*layers, nn.Linear(width, CLASSES))
    train_privately(module, (inputs,), targets, constants=constants, loss=Loss.usual(CLASSES), sharded=count > 1,
                    on_step=on_step, on_choice=on_choice)  # fmt: skip
    seen["held"] = sum(own(one).untyped_storage().nbytes() for one in held) / MB
    return seen


def main() -> None:
    """Print the table, or one member's figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--member", nargs=3, metavar=("RANK", "COUNT", "MEETING"), help="be one of the processes")
    arguments = parser.parse_args()
    if arguments.member:
        rank, count, meeting = arguments.member
        found = member(int(rank), int(count), meeting, arguments.width, arguments.steps)
        print(json.dumps(found))
        if distributed.is_initialized():
            leave()
        return
    rows = []
    for count in map(int, arguments.processes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.sharded_memory"]
            command += ["--width", str(arguments.width), "--steps", str(arguments.steps)]
            running = [
                subprocess.Popen(
                    [*command, "--member", str(rank), str(count), f"{folder}/meeting"],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
                for rank in range(count)
            ]
            said = [json.loads(one.communicate()[0].strip().split("\n")[-1]) for one in running]
        worst = {name: max(one[name] for one in said) for name in ("held", "resident")}
        rows.append((str(count), f"{worst['held']:.0f}", f"{worst['resident']:.0f}", f"{said[0]['ms']:.0f}"))
    print(render_table(("processes", "held MB each", "resident MB each", "CPU ms a step"), rows))


if __name__ == "__main__":
    main()
