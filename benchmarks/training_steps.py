"""What a private step costs: our engine and every mode of plain Opacus, as multiples of a step without privacy.

A step is all of it: gradients, clipping, noise, the optimizer's move. Each model and way runs in a process of its own
on one thread, so that its peak memory is its own, and CPU time is taken, because others use the machine; ways take
turns. The LSTM without privacy is torch's fused one; Opacus has its own (DPLSTM); ours is the family that is served.
Opacus draws its noise from torch's generator, we from a keystream.

`python -m benchmarks.training_steps [--batch 256] [--rounds 20] [--passes 3] [--models mlp,cnn] [--float64]`.
Prints a table and writes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from sealgate.certificate.architectures.recurrent import RecurrentSpec
from sealgate.certificate.architectures.transformer import TransformerSpec
from sealgate.terminal import render_table
from secure_runtime.models.families.recurrent import Recurrent
from secure_runtime.models.families.transformer import Transformer
from training.dp_sgd.gradient_sum import GradientSum
from training.dp_sgd.noise import DISCRETE, noise_of
from training.dp_sgd.updates import Update, UpdateRule
from training.initialisation import initialise
from training.losses import Loss
from training.memory import keep_freed_memory
from training.randomness import Keystream

MODELS = ("mlp", "cnn", "transformer", "lstm")
PLAIN = "no privacy"
OURS = ("book-keeping", "vmap", "book-keeping, discrete noise")
OPACUS = ("opacus hooks", "opacus functorch", "opacus ew", "opacus ghost")
_CLASSES, _CLIP, _SIGMA = 10, 1.0, 1.0
_SECONDS = 3.0  # of CPU for one way, after which no further step is begun


class _Fused(nn.Module):
    """torch's or Opacus' LSTM with a head."""

    def __init__(self, cell: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.cell = cell(28, 128, batch_first=True)
        self.head = nn.Linear(128, _CLASSES)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.cell(steps)[0][:, -1])
        return logits


def model_of(name: str, way: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The module, and the shape of an example."""
    if name == "mlp":
        widths = (784, 256, 256, _CLASSES)
        layers = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
        return nn.Sequential(*layers[:-1]), (784,)
    if name == "cnn":
        return nn.Sequential(
            nn.Conv2d(1, 16, 8, 2, 3), nn.GroupNorm(4, 16), nn.Tanh(), nn.MaxPool2d(2, 1),
            nn.Conv2d(16, 32, 4, 2), nn.GroupNorm(4, 32), nn.Tanh(), nn.MaxPool2d(2, 1),
            nn.Flatten(), nn.Linear(512, 32), nn.Tanh(), nn.Linear(32, _CLASSES),
        ), (1, 28, 28)  # fmt: skip
    if name == "transformer":
        spec = TransformerSpec(
            channels=28, length=28, width=64, heads=4, feed_forward=128, layers=2, activation="gelu", classes=_CLASSES
        )
        return Transformer(spec), (28, 28)
    if way == PLAIN:
        return _Fused(nn.LSTM), (28, 28)
    if way in OPACUS:
        from opacus.layers import DPLSTM

        return _Fused(DPLSTM), (28, 28)
    return Recurrent(
        RecurrentSpec(cell="lstm", length=28, channels=28, hidden=(128,), reading="last", classes=_CLASSES)
    ), (28, 28)


def plain_step(module: nn.Module, examples: torch.Tensor, targets: torch.Tensor) -> Callable[[], None]:
    """Mean loss, backward, a step of torch's SGD."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    loss = Loss.usual(_CLASSES)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(loss.each(module(examples), targets).mean())
        optimizer.step()

    return step


def our_step(way: str, module: nn.Module, examples: torch.Tensor, targets: torch.Tensor) -> Callable[[], None]:
    """The seams of `training.private_sgd`, in its order."""
    mode, _, discrete = way.partition(",")
    parameters = list(module.parameters())
    gradient_sum = GradientSum(module, loss=Loss.usual(_CLASSES), clip_norm=_CLIP, gradients=mode)
    kind = DISCRETE if discrete else "gaussian"
    count = sum(one.numel() for one in parameters)
    noise = noise_of(kind, Keystream(), sigma=_SIGMA, clip_norm=_CLIP, coordinates=count)
    update = Update(parameters, rule=UpdateRule(learning_rate=0.01), steps=10**6)

    def step() -> None:
        summed = gradient_sum.over((examples,), targets)
        noise.add(summed)
        update.apply(summed, step=1, divisor=len(targets))

    return step


def opacus_step(way: str, module: nn.Module, examples: torch.Tensor, targets: torch.Tensor) -> Callable[[], None]:
    """Opacus as its users run it: a wrapped module, its optimizer, its loss."""
    from opacus.grad_sample.utils import wrap_model
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    mode = way.removeprefix("opacus ")
    ghost = {"max_grad_norm": _CLIP, "use_ghost_clipping": True} if mode == "ghost" else {}
    strict = {} if mode == "ew" else {"strict": False}
    wrapped = wrap_model(module, mode, True, loss_reduction="mean", **ghost, **strict)
    optimizer = (DPOptimizerFastGradientClipping if ghost else DPOptimizer)(
        torch.optim.SGD(module.parameters(), lr=0.01),
        noise_multiplier=_SIGMA,
        max_grad_norm=_CLIP,
        expected_batch_size=len(targets),
        loss_reduction="mean",
    )
    criterion = nn.CrossEntropyLoss()
    ghost_criterion = DPLossFastGradientClipping(wrapped, optimizer, criterion, "mean") if ghost else None
    whole = targets.long()

    def step() -> None:
        optimizer.zero_grad()
        logits = wrapped(examples.detach().requires_grad_())
        (ghost_criterion or criterion)(logits, whole).backward()
        optimizer.step()

    return step


def measure(name: str, way: str, *, batch: int, rounds: int, dtype: torch.dtype) -> dict[str, float]:
    """CPU milliseconds of a step (the median of so many) and peak MB of the process, in this process."""
    torch.set_num_threads(1)
    keep_freed_memory()
    module, shape = model_of(name, way)
    module = module.to(dtype)
    initialise(module)
    stream = Keystream()
    examples = torch.from_numpy(stream.gaussian(batch * torch.Size(shape).numel())).view(batch, *shape).to(dtype)
    targets = torch.from_numpy(stream.uniform(batch) * _CLASSES).floor().to(dtype)
    if way == PLAIN:
        step = plain_step(module, examples, targets)
    else:
        step = (opacus_step if way in OPACUS else our_step)(way, module, examples, targets)
    for _ in range(2):
        step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    taken: list[float] = []
    while len(taken) < rounds and (len(taken) < 3 or sum(taken) < 1000 * _SECONDS):
        start = time.process_time_ns()
        step()
        taken.append((time.process_time_ns() - start) / 1e6)
    return {"ms": statistics.median(taken), "mb": peak}


def table(arguments: argparse.Namespace) -> list[tuple[str, ...]]:
    """A line for each model and way: medians over passes, each of which runs every way once."""
    lines: list[tuple[str, ...]] = [("model", "way", "ms a step", "times no privacy", "peak MB")]
    ways = (PLAIN, *OURS, *OPACUS)
    for name in arguments.models.split(","):
        found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        refused: dict[str, str] = {}
        for _, way in itertools.product(range(arguments.passes), ways):
            command = [sys.executable, "-m", "benchmarks.training_steps", "--one", name, way]
            command += ["--batch", str(arguments.batch), "--rounds", str(arguments.rounds)]
            run = subprocess.run(command + ["--float64"] * arguments.float64, capture_output=True, text=True)
            if run.returncode:
                refused[way] = run.stderr.strip().split("\n")[-1][:60]
            else:
                found[way].append(json.loads(run.stdout))
        medians = {way: statistics.median(one["ms"] for one in ones) for way, ones in found.items() if ones}
        for way in ways:
            if way in refused:
                lines.append((name, way, "-", "refused", refused[way]))
                continue
            times, peak = medians[way] / medians[PLAIN], max(one["mb"] for one in found[way])
            lines.append((name, way, f"{medians[way]:.1f}", f"{times:.2f}", f"{peak:.0f}"))
    return lines


def main() -> None:
    """Print the table, or one measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--passes", type=int, default=3, help="how often every way is run, in turn")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--float64", action="store_true", help="arithmetic in float64 instead of float32")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "WAY"), help="measure one in this process")
    arguments = parser.parse_args()
    if arguments.one:
        name, way = arguments.one
        dtype = torch.float64 if arguments.float64 else torch.float32
        print(json.dumps(measure(name, way, batch=arguments.batch, rounds=arguments.rounds, dtype=dtype)))
    else:
        header, *rows = table(arguments)
        print(render_table(header, rows))


if __name__ == "__main__":
    main()
