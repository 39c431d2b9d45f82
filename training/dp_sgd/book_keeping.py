"""Book-keeping (Bu, Wang, Zha and Karypis 2023): clipped sums in one backward pass.

Forward, each layer's input is noted. Backward goes to the layers' outputs only, never to the parameters. From the two,
each parameter's contributions follow (`layers`, `contributions`); their squared norms give the clip factors, which are
folded into the weight gradients. A layer that is called many times (a cell, tied weights) contributes many times.

Trusts: nothing about the module that it can check: a layer without a rule, or whose output was changed in place, is an
error. What it cannot see (a parameter used beside its layer) `choice` finds, by comparing with a loop.
Never: keeps activations after a call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from training.dp_sgd.contributions import Contribution, Direct, Lookup, Outer, joined
from training.dp_sgd.layers import RULES, Rule, unsupported
from training.dp_sgd.modes import Inputs, Mode, Summing
from training.errors import TrainingError
from training.losses import Loss


@dataclass
class _Call:
    layer: nn.Module
    rule: Rule
    before: torch.Tensor
    output: torch.Tensor
    versions: tuple[int, int]


class BookKeeping(Mode):
    """Our own mode; usually the fastest, and small."""

    name = "book-keeping"

    def __init__(self, module: nn.Module, *, loss: Loss, clip_norm: float) -> None:
        super().__init__(module, loss=loss, clip_norm=clip_norm)
        self._calls: list[_Call] = []
        layers = list(_trained_layers(module))
        for layer in layers:
            if why := unsupported(layer):
                raise TrainingError(why, code="gradients-unsupported")
        # The rule belongs to the type that the layer has now: sharding changes it.
        self._hooks = [layer.register_forward_hook(partial(self._note, RULES[type(layer)])) for layer in layers]

    def _note(self, rule: Rule, layer: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if torch.is_grad_enabled():
            before = given[0].detach()
            self._calls.append(_Call(layer, rule, before, output, (before._version, output._version)))

    def gradients(
        self, inputs: Inputs, targets: torch.Tensor, *, rows: int, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, Summing]:
        found = self.contributions(inputs, targets, rows=rows, weights=weights)
        squares = self.squares(found, len(targets) // rows)

        def summed(factors: torch.Tensor) -> list[torch.Tensor]:
            return [
                found[parameter].weighted(factors) if parameter in found else torch.zeros_like(parameter)
                for parameter in self.parameters
            ]

        return squares, summed

    def squares(self, found: dict[torch.Tensor, Contribution], units: int) -> torch.Tensor:
        """Squared norms of the units' gradients over all parameters: float64 [units]."""
        squares = torch.zeros(units, dtype=torch.float64, device=self.parameters[0].device)
        for one in found.values():
            squares += one.squares()
        return squares

    def numbers(self, inputs: Inputs, targets: torch.Tensor) -> int:
        found = self.contributions(inputs, targets, rows=1, weights=None)
        total = 0
        for one in found.values():
            one.squares()
            match one:
                case Outer():
                    total += one.before.numel() + 2 * one.behind.numel()
                    total += one.shape.numel() * len(targets) if one.multiplied else 0
                case Lookup():
                    total += 2 * one.behind.numel()
                case Direct():
                    total += one.values.numel()
        return -(-total // len(targets))

    def contributions(
        self, inputs: Inputs, targets: torch.Tensor, *, rows: int, weights: torch.Tensor | None
    ) -> dict[torch.Tensor, Contribution]:
        """What each parameter's gradients are made of, by one pass forward and one backward."""
        self._calls.clear()
        try:
            total = self.row_losses(self.module(*inputs), targets, weights).sum()
            outputs = [call.output for call in self._calls]
            behind = torch.autograd.grad(total, outputs, allow_unused=True)
            parts: dict[torch.Tensor, list[Contribution]] = {}
            for call, gradient in zip(self._calls, behind, strict=True):
                if gradient is not None:
                    self._require_untouched(call, len(targets))
                    for parameter, part in call.rule(call.layer, call.before, gradient, rows):
                        if parameter.requires_grad:
                            parts.setdefault(parameter, []).append(part)
        finally:
            self._calls.clear()
        return {parameter: joined(several) for parameter, several in parts.items()}

    @staticmethod
    def _require_untouched(call: _Call, count: int) -> None:
        name = type(call.layer).__name__
        if call.versions != (call.before._version, call.output._version):
            raise TrainingError(
                f"what goes into or out of a {name} is changed in place; use operations that make new tensors",
                code="gradients-unsupported",
            )
        if len(call.before) != count or len(call.output) != count:
            raise TrainingError(
                f"a {name} is called with {len(call.before)} rows for {count} examples: the first dimension of what "
                "goes into every layer must be the examples",
                code="gradients-unsupported",
            )

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _trained_layers(module: nn.Module) -> Iterator[nn.Module]:
    """Every module that has a trained parameter of its own."""
    for layer in module.modules():
        if any(parameter.requires_grad for parameter in layer.parameters(recurse=False)):
            yield layer
