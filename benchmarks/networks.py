"""One network with differential privacy: held-out accuracy at several epsilons, beside what two other models reach.

Trains what a configuration describes (`examples/network/people.toml`, unless another is given) by the same parts as
`sealgate train`. Beside it: the same model without noise, and one that sees no edges at all, which is what noisy edges
have to beat. Noise comes from the operating system: the interval is over runs (Student, 95 %).

`python -m benchmarks.networks [--config FILE] [--runs 5] [--epsilon 1 3 8]`. With `--tune WORD` half of the training
nodes is set aside and measured on instead. Prints one JSON line per run.
"""

from __future__ import annotations

import argparse
import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from benchmarks.vision import summary
from sealgate.ambient import monotonic_ns, random_bytes
from sealgate.certificate.architectures import MlpSpec
from sealgate.certificate.decimals import MICRO
from secure_runtime.models.architectures import build
from training.configuration import load_configuration
from training.experiment import fresh_module, model_space
from training.forms import form_of
from training.forms.network import node_vectors
from training.initialisation import initialise
from training.losses import Loss
from training.manifests import manifest_of
from training.mechanisms.gap import GapPlan, fit
from training.mechanisms.plans import on_network, plan_of
from training.memory import keep_freed_memory
from training.split import hold_out

EXAMPLE = Path(__file__).parents[1] / "examples" / "network" / "people.toml"


class Bench:
    """The nodes of one configuration, to train on and to measure with."""

    def __init__(self, path: Path, *, tune: str | None) -> None:
        self.configuration = load_configuration(path)
        self.manifest = manifest_of(self.configuration)
        data = self.configuration.data
        examples = form_of(self.configuration).read_examples(self.configuration, folder=path.parent)
        self.kept, self.held = hold_out(examples, fraction=Fraction(data.held_out), word=data.split)
        if tune is not None:
            self.kept, self.held = hold_out(self.kept, fraction=Fraction(1, 2), word=tune)
        self.train, self.targets = model_space(self.manifest, self.kept)
        self.test, self.test_targets = model_space(self.manifest, self.held)
        self._plans: dict[str, GapPlan] = {}

    def plan(self, epsilon: str) -> GapPlan:
        """With the least noise for this epsilon."""
        if epsilon not in self._plans:
            privacy = msgspec.structs.replace(self.configuration.privacy, epsilon=Decimal(epsilon))
            configuration = msgspec.structs.replace(self.configuration, privacy=privacy)
            plan = on_network(plan_of(configuration, classes=self.manifest.classes), configuration, self.kept)
            assert isinstance(plan, GapPlan)
            self._plans[epsilon] = plan
        return self._plans[epsilon]

    def run(self, epsilon: str) -> dict[str, Any]:
        """One run with fresh randomness, and what it came to."""
        plan, module = self.plan(epsilon), self._module()
        began = monotonic_ns()
        plan.train(module, self.train, self.targets, groups=None, entropy=random_bytes, on_step=lambda _step: None)
        return {
            "accuracy": round(self._measured(module, self.test), 2),
            "wall_s": round((monotonic_ns() - began) / 1e9, 1),
            "unit": plan.unit,
            "epsilon": plan.account.epsilon().add_remove_micro / MICRO,
            "delta": plan.delta,
            "sigma": plan.sigma_micro / MICRO,
        }

    def openly(self, epsilon: str) -> float:
        """Accuracy in percent without noise."""
        plan = self.plan(epsilon)
        module = plan.train_openly(self._module(), self.train, self.targets, entropy=random_bytes)
        return self._measured(module, self.test)

    def without_edges(self) -> float:
        """Accuracy in percent of a perceptron on each node's own features, without privacy."""
        assert self.kept.network is not None
        vectors = node_vectors(self.configuration, self.kept.network)
        spec = MlpSpec(inputs=vectors.shape[1], hidden=(16,), classes=self.manifest.classes)
        module = build(spec).double()
        initialise(module, random_bytes)
        fit(module, vectors[self.train[0][:, 0] - 1], self.targets, loss=Loss.usual(self.manifest.classes))
        return self._measured(module, (vectors[self.test[0][:, 0] - 1],))

    def _module(self) -> nn.Module:
        return fresh_module(self.configuration, self.manifest, random_bytes)

    def _measured(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
        with torch.no_grad():
            logits = module(*inputs)
        found = logits.argmax(dim=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()
        return 100 * float((found == self.test_targets).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="One network with differential privacy.")
    parser.add_argument("--config", type=Path, default=EXAMPLE)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--epsilon", nargs="+", default=["1", "3", "8"])
    parser.add_argument("--tune", metavar="WORD", help="set half of the training nodes aside by this word")
    arguments = parser.parse_args()
    keep_freed_memory()
    bench = Bench(arguments.config, tune=arguments.tune)
    print(f"{len(bench.kept)} nodes to train on, {len(bench.held)} to measure with")
    found: dict[str, list[float]] = {epsilon: [] for epsilon in arguments.epsilon}
    for run in range(1, arguments.runs + 1):
        for epsilon, values in found.items():
            result = bench.run(epsilon)
            values.append(result["accuracy"])
            print(json.dumps({"target": epsilon, "run": run, **result}), flush=True)
    for epsilon, values in found.items():
        print(f"epsilon {epsilon}: accuracy {summary(values)}")
    runs = range(arguments.runs)
    print(f"without noise: accuracy {summary([bench.openly(arguments.epsilon[0]) for _ in runs])}")
    print(f"without edges: accuracy {summary([bench.without_edges() for _ in runs])}")


if __name__ == "__main__":
    main()
