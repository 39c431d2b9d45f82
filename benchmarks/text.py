"""Texts, sequences and graphs with differential privacy: held-out accuracy at several epsilons, over independent runs.

Trains what a configuration describes (`examples/text/spam_minilm.toml`, unless another is given) by the same parts as
`sealgate train`, and measures on the rows that the configuration holds out. Noise and sampling come from the operating
system, so runs are independent and none can be repeated: the interval is over runs (Student, 95 %).

`python -m benchmarks.text [--config FILE] [--runs 5] [--epsilon 1 3 8] [--tune WORD]`. With `--tune` a fifth of the
training rows is set aside and measured on instead, and the held-out rows are not looked at. `--features FILE.npz` keeps
what a frozen encoder makes of the rows, for the next time. Prints one JSON line per run.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from benchmarks.vision import summary
from sealgate.ambient import monotonic_ns, random_bytes
from sealgate.certificate.decimals import MICRO
from secure_runtime.models.architectures import build
from training.accountant import cost_of
from training.configuration import load_configuration
from training.dp_sgd.modes import Inputs
from training.examples import Examples
from training.experiment import fresh_module, model_space
from training.fixed_features import fixed_first
from training.forms import form_of
from training.initialisation import initialise
from training.manifests import manifest_of
from training.measure import train_plainly
from training.mechanisms.plans import plan_of
from training.memory import keep_freed_memory
from training.split import hold_out

EXAMPLE = Path(__file__).parents[1] / "examples" / "text" / "spam_minilm.toml"
LEARNING_RATES = {"1": "45", "3": "180", "8": "240"}  # of the example, by epsilon: found on training mails alone
_PIECE = 256


class Bench:
    """The rows of one configuration, as its trained part sees them."""

    def __init__(self, path: Path, *, tune: str | None, features: Path | None) -> None:
        self.configuration = load_configuration(path)
        self.manifest = manifest_of(self.configuration)
        data = self.configuration.data
        examples = form_of(self.configuration).read_examples(self.configuration, folder=path.parent)
        numbers = np.arange(len(examples), dtype=np.float64)
        numbered = Examples(examples.inputs, examples.target, texts=numbers.astype(np.object_))
        kept, held = hold_out(numbered, fraction=Fraction(data.held_out), word=data.split)
        if tune is not None:
            kept, held = hold_out(kept, fraction=Fraction(1, 5), word=tune)
        began = monotonic_ns()
        inputs, targets = self._inputs(examples, features)
        self.features_s = (monotonic_ns() - began) / 1e9
        self.train, self.targets = _rows(inputs, targets, kept)
        self.test, self.test_targets = _rows(inputs, targets, held)

    def _inputs(self, examples: Examples, features: Path | None) -> tuple[Inputs, torch.Tensor]:
        """Inputs of the trained part, float64, and classes, for all rows."""
        if features is not None and features.exists():
            return (torch.from_numpy(np.load(features)["features"]).double(),), torch.from_numpy(examples.target)
        inputs, targets = model_space(self.manifest, examples)
        _, inputs = fixed_first(fresh_module(self.configuration, self.manifest, random_bytes), inputs)
        if features is not None:
            np.savez(features, features=inputs[0].numpy())
        return inputs, targets

    def trained_module(self) -> nn.Module:
        """A fresh one of the part that is trained."""
        module = build(self.manifest.architecture.trained_part()).double()  # type: ignore[arg-type]
        initialise(module, random_bytes)
        return module

    def plainly(self) -> float:
        """Accuracy in percent without privacy."""
        manifest = msgspec.structs.replace(self.manifest, architecture=self.manifest.architecture.trained_part())
        return self._measured(train_plainly(manifest, self.train, self.targets))

    def run(self, epsilon: str, learning_rate: str | None) -> dict[str, Any]:
        """One run with fresh randomness, and what it came to."""
        configuration = self.configuration
        rate = Decimal(learning_rate) if learning_rate else configuration.optimizer.learning_rate
        configuration = msgspec.structs.replace(
            configuration,
            privacy=msgspec.structs.replace(configuration.privacy, epsilon=Decimal(epsilon)),
            optimizer=msgspec.structs.replace(configuration.optimizer, learning_rate=rate),
        )
        plan = plan_of(configuration, classes=self.manifest.classes)
        cost = cost_of(plan.account)
        trained = self.trained_module()
        began = monotonic_ns()
        plan.train(trained, self.train, self.targets, groups=None, entropy=random_bytes, on_step=lambda _step: None)
        return {
            "accuracy": round(self._measured(trained), 2),
            "wall_s": round((monotonic_ns() - began) / 1e9, 1),
            "epsilon": cost.epsilon_micro / MICRO,
            "second_epsilon": cost.second_epsilon_micro / MICRO,
            "delta": configuration.delta,
            "steps": configuration.privacy.steps,
            "rate": configuration.privacy.rate,
            "learning_rate": str(rate),
        }

    def _measured(self, trained: nn.Module) -> float:
        right = 0
        with torch.no_grad():
            for start in range(0, len(self.test_targets), _PIECE):
                part = slice(start, start + _PIECE)
                logits = trained(*(one[part] for one in self.test))
                found = logits.argmax(dim=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()
                right += int((found == self.test_targets[part]).sum())
        return 100 * right / len(self.test_targets)


def _rows(inputs: Inputs, targets: torch.Tensor, numbered: Examples) -> tuple[Inputs, torch.Tensor]:
    assert numbered.texts is not None
    rows = torch.from_numpy(numbered.texts.astype(np.int64))
    return tuple(one[rows] for one in inputs), targets[rows]


def main() -> None:
    parser = argparse.ArgumentParser(description="Texts, sequences and graphs with differential privacy.")
    parser.add_argument("--config", type=Path, default=EXAMPLE)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--epsilon", nargs="+", default=["1", "3", "8"])
    parser.add_argument("--learning-rate", help="instead of the example's own")
    parser.add_argument("--tune", metavar="WORD", help="set a fifth of the training rows aside by this word")
    parser.add_argument("--features", type=Path, help="keep a frozen encoder's vectors here, or take them from here")
    arguments = parser.parse_args()
    keep_freed_memory()
    bench = Bench(arguments.config, tune=arguments.tune, features=arguments.features)
    sizes = f"{len(bench.targets)} rows to train on, {len(bench.test_targets)} to measure with"
    print(f"{sizes}, inputs in {bench.features_s:.1f} s", file=sys.stderr)
    found: dict[str, list[float]] = {epsilon: [] for epsilon in arguments.epsilon}
    rates = LEARNING_RATES if arguments.config.name == EXAMPLE.name else {}
    for run in range(1, arguments.runs + 1):
        for epsilon, values in found.items():
            result = bench.run(epsilon, arguments.learning_rate or rates.get(epsilon))
            values.append(result["accuracy"])
            print(json.dumps({"target": epsilon, "run": run, **result}), flush=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    for epsilon, values in found.items():
        print(f"epsilon {epsilon}: accuracy {summary(values)}; peak memory {memory:.1f} GiB")
    print(f"without privacy: accuracy {bench.plainly():.2f}")


if __name__ == "__main__":
    main()
