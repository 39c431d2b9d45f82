"""Fashion-MNIST with differential privacy: accuracy on the test images at several epsilons, over independent runs.

Trains what `examples/vision/fashion_mnist.toml` (or another configuration) describes, by the same parts as `sealgate
train`, on all 60,000 training images, and measures on the 10,000 test images once, at the end. Noise and sampling come
from the operating system, so runs are independent and none can be repeated: the interval is over runs (Student, 95 %).
Fixed features are computed once for all runs; each run draws its own centre, samples and noise.

`python -m benchmarks.vision [--config FILE] [--runs 5] [--epsilon 3 ...] [--tune WORD]`. With `--tune` a tenth of the
training images is held out and measured on instead, and the test images are not read. Prints one JSON line per run.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from sealgate.ambient import monotonic_ns, random_bytes
from sealgate.certificate.decimals import MICRO
from secure_runtime.models.architectures import build, parts_of
from training.accountant import Cost, cost_of
from training.centering import centering_of
from training.configuration import Configuration, load_configuration
from training.examples import Examples
from training.experiment import model_space
from training.fixed_features import fixed_first
from training.forms import form_of
from training.initialisation import initialise
from training.manifests import manifest_of
from training.mechanisms.plans import plan_of
from training.memory import keep_freed_memory
from training.split import hold_out

EXAMPLE = Path(__file__).parents[1] / "examples" / "vision" / "fashion_mnist.toml"
LEARNING_RATES = {
    "1": "16",
    "3": "56",
    "8": "64",
}  # of the example, by epsilon: that at 3 was found on training images alone, the others are round figures near it
_STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # 97.5 % quantiles, by the number of runs
_PIECE = 1000


class Bench:
    """The data of one configuration, as its trained part sees them."""

    def __init__(self, path: Path, *, tune: str | None) -> None:
        self.configuration = load_configuration(path)
        self.manifest = manifest_of(self.configuration)
        form = form_of(self.configuration)
        train = form.read_examples(self.configuration, folder=path.parent)
        if tune is None:
            test = form.read_examples(_test_images(self.configuration), folder=path.parent)
        else:
            train, test = hold_out(train, fraction=Fraction(1, 10), word=tune)
        self.rows = len(train)
        began = monotonic_ns()
        self.train, self.targets = self._features(train)
        self.features_s = (monotonic_ns() - began) / 1e9
        self.test, self.test_targets = self._features(test)

    def _features(self, examples: Examples) -> tuple[torch.Tensor, torch.Tensor]:
        """What the trained part is given, before centring: float32."""
        (images,), targets = model_space(self.manifest, examples)
        _, (features,) = fixed_first(build(self.manifest.architecture).float(), (images.float(),))
        return features, targets

    def run(self, epsilon: str, learning_rate: str) -> dict[str, Any]:
        """One run with fresh randomness, and what it came to."""
        configuration = _changed(self.configuration, epsilon, learning_rate, rows=self.rows)
        module = build(self.manifest.architecture).float()
        initialise(module, random_bytes)
        centering = centering_of(configuration)
        left = configuration if centering is None else centering.left(configuration)
        plan = plan_of(left, classes=self.manifest.classes)
        account = plan.account
        if centering is not None:
            account = centering.account(account, delta=configuration.delta)
        cost = cost_of(account)
        wall, cpu = monotonic_ns(), _cpu_s()
        train = self.train
        if centering is not None:
            train = centering.centre(module, train, population=self.rows, entropy=random_bytes)
        _, trained = parts_of(module)
        targets, nothing = self.targets, lambda _step: None
        plan.train(trained, (train,), targets, groups=None, entropy=random_bytes, on_step=nothing)
        seconds = {"wall_s": round((monotonic_ns() - wall) / 1e9, 1), "cpu_s": round(_cpu_s() - cpu, 1)}
        return {**self._measured(module), **seconds, **_stated(configuration, cost)}

    def _measured(self, module: nn.Module) -> dict[str, Any]:
        fixed, trained = parts_of(module)
        center = getattr(fixed, "center", None)
        right = 0
        with torch.no_grad():
            for rows, wanted in zip(
                torch.split(self.test, _PIECE), torch.split(self.test_targets, _PIECE), strict=True
            ):
                logits = trained(rows if center is None else rows - center)
                right += int((logits.argmax(dim=1) == wanted).sum())
        return {"accuracy": round(100 * right / len(self.test), 2)}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _test_images(configuration: Configuration) -> Configuration:
    """The same with the files of the test images."""
    names = [("train-", "t10k-")]
    source, labels = configuration.data.source, configuration.image["labels"]
    for old, new in names:
        source, labels = source.replace(old, new), labels.replace(old, new)
    if source == configuration.data.source:
        raise SystemExit("the benchmark needs a source whose name has 'train-', and one with 't10k-' beside it")
    return msgspec.structs.replace(
        configuration,
        data=msgspec.structs.replace(configuration.data, source=source),
        image={**configuration.image, "labels": labels},
    )


def _changed(configuration: Configuration, epsilon: str, learning_rate: str, *, rows: int) -> Configuration:
    """For all published images (their number is public), this epsilon and this learning rate."""
    return msgspec.structs.replace(
        configuration,
        data=msgspec.structs.replace(configuration.data, public_population=rows),
        privacy=msgspec.structs.replace(configuration.privacy, epsilon=Decimal(epsilon)),
        optimizer=msgspec.structs.replace(configuration.optimizer, learning_rate=Decimal(learning_rate)),
    )


def _stated(configuration: Configuration, cost: Cost) -> dict[str, Any]:
    return {
        "epsilon": cost.epsilon_micro / MICRO,
        "second_epsilon": cost.second_epsilon_micro / MICRO,
        "delta": configuration.delta,
        "steps": configuration.privacy.steps,
        "rate": configuration.privacy.rate,
        "learning_rate": str(configuration.optimizer.learning_rate),
    }


def summary(values: list[float]) -> str:
    """Mean and 95 % interval."""
    mean = statistics.fmean(values)
    if len(values) not in _STUDENT:
        return f"{mean:.2f} ({len(values)} runs)"
    half = _STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.2f} +- {half:.2f} ({len(values)} runs)"


def main() -> None:
    parser = argparse.ArgumentParser(description="Fashion-MNIST with differential privacy.")
    parser.add_argument("--config", type=Path, default=EXAMPLE)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--epsilon", nargs="+", default=["1", "3", "8"])
    parser.add_argument("--learning-rate", help="instead of the example's own")
    parser.add_argument("--tune", metavar="WORD", help="hold out a tenth of the training images by this word")
    arguments = parser.parse_args()
    keep_freed_memory()
    bench = Bench(arguments.config, tune=arguments.tune)
    print(f"{bench.rows} images, features in {bench.features_s:.1f} s", file=sys.stderr)
    found: dict[str, list[float]] = {epsilon: [] for epsilon in arguments.epsilon}
    own = str(bench.configuration.optimizer.learning_rate)
    rates = LEARNING_RATES if arguments.config == EXAMPLE else {}
    for run in range(1, arguments.runs + 1):
        for epsilon, values in found.items():
            result = bench.run(epsilon, arguments.learning_rate or rates.get(epsilon, own))
            values.append(result["accuracy"])
            print(json.dumps({"target": epsilon, "run": run, **result}), flush=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    for epsilon, values in found.items():
        print(f"epsilon {epsilon}: accuracy {summary(values)}; peak memory {memory:.1f} GiB")


if __name__ == "__main__":
    main()
