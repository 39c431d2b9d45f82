"""What the owner's fingerprint costs, and what it survives: digits of scikit-learn, DP-SGD at epsilon 8.

    python -m benchmarks.fingerprint [--seeds 5]

For each seed two private models, one with a fingerprint and one without; then what a thief might do to the first. Rows
that trained, rows that the thief has, and rows that measure are three different parts. Noise and first weights come
from the operating system: figures vary by run, which is why there are several, with their standard error.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections import defaultdict
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from sealgate.certificate.architectures import MlpSpec
from sealgate.certificate.inputs import Column, InputTensor, TableContent
from sealgate.certificate.manifest import Manifest, OutputTensor
from sealgate.certificate.recompute import GaussianSteps, recompute
from sealgate.protocol.secrets import Secret
from secure_runtime.models.architectures import build
from training.fingerprint.embedding import Mark
from training.fingerprint.evidence import compare, least_matches
from training.fingerprint.triggers import Triggers, triggers_of
from training.initialisation import initialise
from training.losses import Loss
from training.private_sgd import PrivateSgd, train_privately

SIGMA = 1.9
CONSTANTS = PrivateSgd(
    rate=Fraction(1, 5), steps=200, divisor=200.0, clip_norm=1.0, sigma=SIGMA, learning_rate=2.0, momentum=0.9
)
COLUMNS = tuple(Column(name=f"p{one}", low="0", high="16", center="8", scale="8") for one in range(64))


def manifest(hidden: int) -> Manifest:
    names = tuple(str(one) for one in range(10))
    return Manifest(
        schema=1,
        name="digits",
        version="1.0.0",
        description="",
        architecture=MlpSpec(inputs=64, hidden=(hidden,), activation="tanh", classes=10),
        inputs=(InputTensor(name="x", datatype="FP32", shape=(-1, 64), content=TableContent(columns=COLUMNS)),),
        outputs=(
            OutputTensor(name="label", datatype="INT64", shape=(-1,), role="label", labels=names),
            OutputTensor(name="scores", datatype="FP32", shape=(-1, 10), role="scores", labels=names),
        ),
        value_range=None,
        sensitivity="public",
        purposes=("research",),
        units_per_row=1,
    )


class Data:
    def __init__(self, seed: int) -> None:
        rows, digits = load_digits(return_X_y=True)
        order = np.random.default_rng(seed).permutation(len(rows))
        self.rows, self.digits = torch.from_numpy(rows[order] / 8 - 1), torch.from_numpy(digits[order])
        self.own, self.thief, self.test = slice(0, 1000), slice(1000, 1400), slice(1400, None)

    def accuracy(self, module: nn.Module) -> float:
        dtype = next(iter(module.parameters()), torch.zeros(0, dtype=torch.float32)).dtype
        said = module(self.rows[self.test].to(dtype)).argmax(dim=1)
        return float((said == self.digits[self.test]).double().mean())


def private(found: Manifest, data: Data, key: Secret | None) -> tuple[nn.Module, float]:
    module = build(found.architecture).double()
    initialise(module)
    mark = None if key is None else Mark(key, found, module)
    started = time.process_time()
    train_privately(
        module,
        (data.rows[data.own],),
        data.digits[data.own].double(),
        constants=CONSTANTS,
        loss=Loss.usual(10),
        on_step=(lambda _: None) if mark is None else mark.around(lambda _: None, module),
    )
    if mark is not None:
        mark.finish(module)
    return module, time.process_time() - started


def further(module: nn.Module, data: Data, *, steps: int, rate: float) -> nn.Module:
    thief = copy.deepcopy(module)
    optimizer = torch.optim.Adam(thief.parameters(), rate)
    rows, digits = data.rows[data.thief], data.digits[data.thief]
    for step in range(steps):
        part = torch.arange(step * 64, step * 64 + 64) % len(rows)
        optimizer.zero_grad()
        nn.functional.cross_entropy(thief(rows[part]), digits[part]).backward()
        optimizer.step()
    return thief


def pruned(module: nn.Module, share: float) -> nn.Module:
    thief = copy.deepcopy(module)
    with torch.no_grad():
        for one in thief.parameters():
            if one.dim() > 1:
                one[one.abs() < one.abs().flatten().quantile(share)] = 0
    return thief


def quantised(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(module).float(), {nn.Linear}, dtype=torch.qint8)


def copied(module: nn.Module, data: Data, found: Manifest) -> nn.Module:
    """A thief without the weights: another model taught by the answers to the thief's rows."""
    student = build(found.architecture).double()
    initialise(student)
    optimizer = torch.optim.Adam(student.parameters(), 5e-3)
    rows = data.rows[data.thief]
    with torch.no_grad():
        taught = module(rows).softmax(dim=1)
    for step in range(500):
        part = torch.arange(step * 64, step * 64 + 64) % len(rows)
        optimizer.zero_grad()
        nn.functional.cross_entropy(student(rows[part]), taught[part]).backward()
        optimizer.step()
    return student


def matches(module: nn.Module, triggers: Triggers) -> int:
    rows = (triggers.tensors()["x"].double() - 8) / 8
    dtype = next(iter(module.parameters()), torch.zeros(0, dtype=torch.float32)).dtype
    return compare(triggers, module(rows.to(dtype)).argmax(dim=1).numpy()).matches


def spread(values: list[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} +- {100 * error:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    micro = round(SIGMA * 1_000_000)
    epsilon = recompute(
        GaussianSteps(sigma_micro=micro, rate=CONSTANTS.rate, steps=CONSTANTS.steps, delta="0.00001")
    ).add_remove_micro
    print(f"sigma {SIGMA}, rate 1/5, 200 steps: epsilon {epsilon / 1e6:.3f} at delta 1e-5, {arguments.seeds} seeds")
    print(f"32 triggers, 10 classes: shown from {least_matches(32, 10)} on (chance of a false accusation below 1e-6)")
    for hidden in (32, 128):
        found, table, seconds = manifest(hidden), defaultdict[str, list[Any]](list), defaultdict[str, list[float]](list)
        for seed in range(arguments.seeds):
            data, key = Data(seed), Secret(seed.to_bytes(32, "big"))
            triggers = triggers_of(key, found)
            plain, seconds_plain = private(found, data, None)
            marked, seconds_marked = private(found, data, key)
            seconds["plain"].append(seconds_plain)
            seconds["marked"].append(seconds_marked)
            for name, module in (
                ("without a fingerprint", plain),
                ("with it", marked),
                ("trained on, 60 epochs, rate 0.001", further(marked, data, steps=375, rate=1e-3)),
                ("trained on, 80 epochs, rate 0.005", further(marked, data, steps=500, rate=5e-3)),
                ("30 % of weights pruned", pruned(marked, 0.3)),
                ("50 % of weights pruned", pruned(marked, 0.5)),
                ("int8", quantised(marked)),
                ("copied by its answers alone", copied(marked, data, found)),
            ):
                table[name].append((data.accuracy(module), matches(module, triggers)))
        print(
            f"\nMLP 64-{hidden}-10: CPU seconds {statistics.mean(seconds['plain']):.2f} without, "
            f"{statistics.mean(seconds['marked']):.2f} with"
        )
        print(f"{'':36}{'accuracy, %':>16}  triggers, least and mean")
        for name, values in table.items():
            agreed = [one for _, one in values]
            print(f"{name:36}{spread([one for one, _ in values]):>16}  {min(agreed)}, {statistics.mean(agreed):.1f}")


if __name__ == "__main__":
    main()
