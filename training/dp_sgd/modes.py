"""The ways to a clipped sum of per-example gradients. All give the same numbers; they differ in time and memory.

    book-keeping   one backward pass, clip factors folded into it            `training.dp_sgd.book_keeping`
    hooks          Opacus: per-example gradients layer by layer
    functorch      Opacus: the same by torch.func for every layer
    ew             Opacus: torch's expanded weights
    ghost          Opacus: norms first, then a second backward pass of the weighted loss
    vmap           torch.func over the whole module: knows bare parameters, too
    loop           one example after another: slow, always right, and what the others are checked against

A unit is what is clipped: an example, or `rows` consecutive rows together (a person's, an example's augmentations).
Trusts: that `choice` has checked a mode against `loop` for this module. Never: divides by the size of a batch.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleExpandedWeights
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from torch import nn

from training.dp_sgd.clipping import clip_factors, square_norms
from training.dp_sgd.contributions import Direct
from training.errors import TrainingError
from training.losses import Loss

Inputs: TypeAlias = tuple[torch.Tensor, ...]
Summing: TypeAlias = Callable[[torch.Tensor], list[torch.Tensor]]  # clip factors [u] -> one tensor per parameter


class Mode(ABC):
    """Clipped sums of a module's per-unit gradients. Owns whatever it hung on the module until `close`."""

    name: str

    def __init__(self, module: nn.Module, *, loss: Loss, clip_norm: float) -> None:
        self.module = module
        self.loss = loss
        self.clip_norm = clip_norm
        self.parameters = [one for one in module.parameters() if one.requires_grad]
        self.dtype = self.parameters[0].dtype

    @abstractmethod
    def gradients(
        self, inputs: Inputs, targets: torch.Tensor, *, rows: int, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, Summing]:
        """Squared norms of all units, float64 [u], and what sums their gradients with given factors."""

    @abstractmethod
    def numbers(self, inputs: Inputs, targets: torch.Tensor) -> int:
        """How many numbers one row needs at the same time; the rows given are random, for their shapes."""

    def close(self) -> None:  # noqa: B027  most modes hang nothing on the module
        """Leave the module as it was."""

    def clipped_sum(
        self, inputs: Inputs, targets: torch.Tensor, *, rows: int = 1, weights: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Sum over units of gradients scaled to at most the clip norm. inputs: each [u rows, ...]; weights: [u rows].

        A unit whose gradient is not finite counts as zero: it must not be able to do more than any other.
        """
        while len(targets):
            squares, summed = self.gradients(inputs, targets, rows=rows, weights=weights)
            finite = squares < math.inf  # nor is what is no number
            if bool(finite.all()):
                return summed(clip_factors(squares, clip_norm=self.clip_norm, dtype=self.dtype))
            # Zero times infinity would be no number, so that unit is left out and the others are done again.
            keep = finite.repeat_interleave(rows)
            inputs, targets = tuple(one[keep] for one in inputs), targets[keep]
            weights = None if weights is None else weights[keep]
        return [torch.zeros_like(parameter) for parameter in self.parameters]

    def row_losses(self, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """The loss of each row, times its weight: [m]."""
        losses = self.loss.each(logits, targets)
        return losses if weights is None else losses * weights


class Multiplied(Mode):
    """A mode that multiplies out the gradient of every row."""

    @abstractmethod
    def each(self, inputs: Inputs, targets: torch.Tensor, weights: torch.Tensor | None) -> list[torch.Tensor]:
        """One [m, ...] tensor per parameter."""

    def gradients(
        self, inputs: Inputs, targets: torch.Tensor, *, rows: int, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, Summing]:
        units = [
            one if rows == 1 else one.view(len(one) // rows, rows, *one.shape[1:]).sum(dim=1)
            for one in self.each(inputs, targets, weights)
        ]
        squares = torch.stack([square_norms(one) for one in units]).sum(dim=0)
        return squares, lambda factors: [Direct(one).weighted(factors) for one in units]

    def numbers(self, inputs: Inputs, targets: torch.Tensor) -> int:
        return sum(one.numel() for one in self.parameters)


class Loop(Multiplied):
    """Row by row with nothing but autograd."""

    name = "loop"

    def each(self, inputs: Inputs, targets: torch.Tensor, weights: torch.Tensor | None) -> list[torch.Tensor]:
        found = []
        for row in range(len(targets)):
            this = slice(row, row + 1)
            logits = self.module(*(one[this] for one in inputs))
            loss = self.row_losses(logits, targets[this], None if weights is None else weights[this]).sum()
            found.append(torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True))
        return [torch.stack(one) for one in zip(*found, strict=True)]


class Vmap(Multiplied):
    """torch.func: the gradient function of one row, vectorised over rows."""

    name = "vmap"

    def __init__(self, module: nn.Module, *, loss: Loss, clip_norm: float) -> None:
        super().__init__(module, loss=loss, clip_norm=clip_norm)
        self._names = [name for name, one in module.named_parameters() if one.requires_grad]

    def each(self, inputs: Inputs, targets: torch.Tensor, weights: torch.Tensor | None) -> list[torch.Tensor]:
        def loss_of(trained: dict[str, torch.Tensor], row: Inputs, target: torch.Tensor) -> torch.Tensor:
            logits = torch.func.functional_call(self.module, trained, tuple(one.unsqueeze(0) for one in row))
            return self.loss.each(logits, target.unsqueeze(0))[0]

        trained = {name: one.detach() for name, one in zip(self._names, self.parameters, strict=True)}
        found = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0, 0))(trained, inputs, targets)
        each = [found[name] for name in self._names]
        if weights is None:
            return each
        return [one * weights.view(-1, *[1] * (one.dim() - 1)) for one in each]


class _Opacus(Multiplied):
    """Opacus leaves per-example gradients in `grad_sample`; `wrap` says how it is asked to compute them."""

    wrap: Callable[[nn.Module], nn.Module]

    def __init__(self, module: nn.Module, *, loss: Loss, clip_norm: float) -> None:
        super().__init__(module, loss=loss, clip_norm=clip_norm)
        self._wrapped = type(self).wrap(module)

    def each(self, inputs: Inputs, targets: torch.Tensor, weights: torch.Tensor | None) -> list[torch.Tensor]:
        self._wrapped.zero_grad(set_to_none=True)
        _backward(self._wrapped, inputs, lambda logits: self.row_losses(logits, targets, weights).sum())
        found: list[torch.Tensor] = []
        for parameter in self.parameters:
            found.append(parameter.grad_sample)  # type: ignore[attr-defined]
            parameter.grad_sample = None  # type: ignore[attr-defined]
        self._wrapped.zero_grad(set_to_none=True)
        return found

    def close(self) -> None:
        self._wrapped.zero_grad(set_to_none=True)
        self._wrapped.remove_hooks()  # type: ignore[operator]


def _backward(module: nn.Module, inputs: Inputs, total: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with warnings.catch_warnings():
        # Hooks on layers that only tokens enter: torch says that their inputs have no gradient. Nobody reads it.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        # Inputs want a gradient although nobody reads it: torch calls backward hooks properly only then.
        logits = module(*(one.detach().requires_grad_(one.is_floating_point()) for one in inputs))
        torch.autograd.backward(total(logits))


class Hooks(_Opacus):
    name = "hooks"
    wrap = staticmethod(lambda module: GradSampleModule(module, loss_reduction="sum", strict=False))


class Functorch(_Opacus):
    name = "functorch"
    wrap = staticmethod(
        lambda module: GradSampleModule(module, loss_reduction="sum", strict=False, force_functorch=True)
    )


class ExpandedWeights(_Opacus):
    name = "ew"
    wrap = staticmethod(lambda module: GradSampleModuleExpandedWeights(module, loss_reduction="sum"))


class Ghost(Mode):
    """Opacus' ghost clipping: the norms of a first backward pass weight the losses of a second one."""

    name = "ghost"

    def __init__(self, module: nn.Module, *, loss: Loss, clip_norm: float) -> None:
        super().__init__(module, loss=loss, clip_norm=clip_norm)
        self._wrapped = GradSampleModuleFastGradientClipping(
            module, loss_reduction="sum", strict=False, max_grad_norm=clip_norm, use_ghost_clipping=True
        )

    def gradients(
        self, inputs: Inputs, targets: torch.Tensor, *, rows: int, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, Summing]:
        if rows != 1:
            raise TrainingError("ghost gradients know only single examples", code="gradients-unsupported")
        wrapped = self._wrapped
        wrapped.zero_grad(set_to_none=True)
        wrapped.enable_hooks()
        logits = wrapped(*(one.detach().requires_grad_(one.is_floating_point()) for one in inputs))
        losses = self.row_losses(logits, targets, weights)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            torch.autograd.backward(losses.sum(), retain_graph=True)

        def summed(factors: torch.Tensor) -> list[torch.Tensor]:
            wrapped.disable_hooks()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                return list(torch.autograd.grad((losses * factors).sum(), self.parameters))

        return wrapped.get_norm_sample().double().square(), summed

    def numbers(self, inputs: Inputs, targets: torch.Tensor) -> int:
        return sum(one.numel() for one in self.parameters)

    def close(self) -> None:
        self._wrapped.zero_grad(set_to_none=True)
        self._wrapped.remove_hooks()
