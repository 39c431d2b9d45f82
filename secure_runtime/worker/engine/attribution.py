"""What each number of a row did for the model's output: attributions, by a method that suits the family.

    coefficients          linear models: coefficient times distance from the baseline. Exact
    integrated-gradients  all that have gradients: along the straight line from the baseline (Sundararajan, Taly, Yan
                          2017); of texts and tokens on their vectors, summed up for each token
    shapley               tables: the mean contribution over orders of the columns (Strumbelj, Kononenko 2010), each
                          order with its reverse; over all orders where those are few, and then exact
    ablation              tables: what the output loses when one column goes to its baseline
    occlusion             images: what it loses, on average, when a square of the image does (Zeiler, Fergus 2014)

Explained is the margin, a number on which contributions add up: a value, in its own unit and not yet clamped; of two
classes the log-odds of the class; of more, the class's logit above the mean of all. Baselines are the manifest's public
centers, the vector of padding for tokens, a graph's nodes without ties. By the first three methods attributions add up
to output minus baseline output (completeness); integrated gradients do so up to the error of a sum over so many steps.

Trusts: the checked manifest and the verified model. Never: looks at more than one row at a time, so that a row's
attribution does not depend on its neighbours; draws from torch's generator.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sealgate.ambient import Entropy
from sealgate.certificate.architectures import (
    GraphSpec,
    LinearRegressionSpec,
    LogisticRegressionSpec,
    PipelineSpec,
    ScatterNetSpec,
)
from sealgate.certificate.inputs import GraphEdgesContent, ImageContent, InputTensor, TableContent
from sealgate.certificate.manifest import Manifest
from secure_runtime.limits import SLICE_ROWS
from secure_runtime.models.families.frozen_encoder import FrozenEncoder
from secure_runtime.models.predictor import Predictor
from secure_runtime.worker.engine import captum_methods

COEFFICIENTS, GRADIENTS, SHAPLEY, ABLATION, OCCLUSION = METHODS = (
    "coefficients",
    "integrated-gradients",
    "shapley",
    "ablation",
    "occlusion",
)
STEPS, FEWER_STEPS = 64, 16  # of integrated gradients, by Gauss-Legendre; fewer for models with much work in a row
_MUCH_WORK = 1 << 26  # multiplications
ORDERS = 64  # of columns; all of them for up to 4 columns
_SQUARES = 7  # of an occluded image, along its longer side
_BACKWARD = 3  # a gradient costs about as much as so many answers


@dataclass(frozen=True, kw_only=True)
class Attributions:
    """Of one row. `by_input` has for each explained input a tensor of its model shape; for tokens one number each."""

    by_input: Mapping[str, torch.Tensor]
    output: float
    baseline: float


def methods_of(manifest: Manifest) -> tuple[str, ...]:
    """The methods that this model can be explained by, the one that is meant when none is named first."""
    if not captum_methods.INSTALLED or isinstance(manifest.architecture, PipelineSpec):
        return ()
    architecture, content = manifest.architecture, manifest.inputs[0].content
    smooth = manifest.compressed is None or manifest.compressed.kind != "int8"  # whole numbers have no gradient
    found: list[str] = []
    if isinstance(architecture, LinearRegressionSpec | LogisticRegressionSpec) and smooth:
        found.append(COEFFICIENTS)
    if smooth:
        found.append(GRADIENTS)
    if isinstance(content, TableContent) and len(manifest.inputs) == 1:
        found += [SHAPLEY, ABLATION]
    if isinstance(content, ImageContent) and len(manifest.inputs) == 1:
        found.insert(0 if isinstance(architecture, ScatterNetSpec) else len(found), OCCLUSION)
    return tuple(found)


def evaluations(manifest: Manifest, method: str) -> int:
    """How many rows the model is run on to explain one, counting a gradient as _BACKWARD of them."""
    shape = manifest.inputs[0].model_shape
    match method:
        case "coefficients":
            return 2 + _BACKWARD
        case "integrated-gradients":
            return 2 + _BACKWARD * _steps(manifest)
        case "shapley":
            return 2 + _orders(shape[0]) * (shape[0] + 1)
        case "ablation":
            return 2 + shape[0]
        case _:
            side = _square(shape)
            return 3 + math.prod(-(-(length - side) // side) + 1 for length in shape[1:])


class Explainer:
    """Explains rows of one model by one method. Holds no row between two calls."""

    def __init__(
        self, manifest: Manifest, predictor: Predictor, method: str, *, entropy: Entropy, steps: int | None = None
    ) -> None:
        """`steps` of integrated gradients are as many as suit the model, unless this says how many."""
        self._steps = steps or _steps(manifest)
        self._manifest = manifest
        self._predictor = predictor
        self._module = predictor.module
        self._method = method
        self._entropy = entropy
        self._at_once = manifest.architecture.rows_at_once(SLICE_ROWS)
        self._table = _token_table(self._module) if manifest.architecture.vocabulary else None
        tied = isinstance(manifest.architecture, GraphSpec) and manifest.architecture.layer == "attention"
        # Attention only asks whether there is a tie: nothing lies between a tie and none, so no gradient does.
        self._explained = tuple(
            spec for spec in manifest.inputs if not (tied and isinstance(spec.content, GraphEdgesContent))
        )

    @property
    def explained(self) -> tuple[str, ...]:
        """The inputs that get attributions."""
        return tuple(spec.name for spec in self._explained)

    def explain(self, inputs: Mapping[str, torch.Tensor], target: int) -> Attributions:
        """One row: `inputs` by name, [1, ...] each, as `predict` takes them; `target` a class, 0 for a value."""
        with torch.inference_mode(mode=False), torch.no_grad():
            rows = {
                spec.name: one.clone() for spec, one in zip(self._manifest.inputs, self._scaled(inputs), strict=True)
            }
            baselines = {spec.name: self._baseline(spec, rows) for spec in self._explained}
            given = {name: self._vectors(one) for name, one in rows.items() if name in baselines}
            run = self._margin(rows, target)
            output = float(run(*given.values()))
            start = float(run(*baselines.values()))
            found = self._attribute(run, tuple(given.values()), tuple(baselines.values()))
        by_input = {name: one[0] for name, one in zip(given, found, strict=True)}
        if self._table is not None:
            by_input = {name: one.sum(dim=1) for name, one in by_input.items()}  # [tokens, width] -> [tokens]
        return Attributions(by_input=by_input, output=output, baseline=start)

    def _scaled(self, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        for prepared in self._predictor.inputs:
            prepared.require(inputs[prepared.spec.name])
        return self._predictor.scaled(inputs)

    def _vectors(self, row: torch.Tensor) -> torch.Tensor:
        """What is moved between baseline and row: numbers themselves, of tokens their vectors."""
        return row if self._table is None else nn.functional.embedding(row, self._table.weight)

    def _baseline(self, spec: InputTensor, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        row = rows[spec.name]
        if self._table is not None:
            return self._vectors(torch.zeros_like(row))
        if isinstance(spec.content, GraphEdgesContent):
            return torch.diag_embed(torch.diagonal(row, dim1=1, dim2=2))  # the nodes that there are, without ties
        center = next(one for one in self._predictor.inputs if one.spec.name == spec.name).center
        return center.unsqueeze(0).expand_as(row).clone()

    def _margin(self, rows: Mapping[str, torch.Tensor], target: int) -> Callable[..., torch.Tensor]:
        """The function that is explained, of the explained inputs [n, ...] alone: margins [n]."""
        names = [spec.name for spec in self._explained]

        def run(*moved: torch.Tensor) -> torch.Tensor:
            values, count = dict(zip(names, moved, strict=True)), len(moved[0])
            fixed = [rows[spec.name].expand(count, *rows[spec.name].shape[1:]) for spec in self._manifest.inputs]
            if self._table is None:
                asked = [values.get(spec.name, one) for spec, one in zip(self._manifest.inputs, fixed, strict=True)]
                return self._predictor.margins(self._module(*asked), target)
            handle = self._table.register_forward_hook(lambda *_: moved[0])
            try:
                return self._predictor.margins(_in_one_pass(self._module, *fixed), target)
            finally:
                handle.remove()

        return run

    def _attribute(
        self, run: Callable[..., torch.Tensor], given: tuple[torch.Tensor, ...], start: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        ablation, gradients, occlusion, shapley = captum_methods.methods()
        match self._method:
            case "coefficients":  # one step is exact where the gradient is everywhere the same
                return self._integrated(gradients, run, given, start, steps=1)
            case "integrated-gradients":
                return self._integrated(gradients, run, given, start, steps=self._steps)
            case "ablation":
                found = ablation(run).attribute(given, start, perturbations_per_eval=self._at_once)
            case "occlusion":
                side = _square(given[0].shape[1:])
                window = (given[0].shape[1], *(min(side, length) for length in given[0].shape[2:]))
                found = occlusion(run).attribute(
                    given[0],
                    sliding_window_shapes=window,
                    strides=window,
                    baselines=start[0],
                    perturbations_per_eval=self._at_once,
                )
            case _:
                sampling = shapley(run)
                sampling.permutation_generator = self._permutations
                found = sampling.attribute(
                    given,
                    start,
                    n_samples=_orders(given[0].shape[1]),
                    perturbations_per_eval=min(self._at_once, given[0].shape[1] + 1),
                )
        return found if isinstance(found, tuple) else (found,)

    def _integrated(
        self,
        method: Any,
        run: Callable[..., torch.Tensor],
        given: tuple[torch.Tensor, ...],
        start: tuple[torch.Tensor, ...],
        *,
        steps: int,
    ) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            found = method(run, multiply_by_inputs=True).attribute(
                given, start, n_steps=steps, method="gausslegendre", internal_batch_size=max(1, self._at_once)
            )
        return tuple(one.detach() for one in found)

    def _permutations(self, count: int, orders: int) -> Iterator[Sequence[int]]:
        """Orders of the columns: all, if they are that few; else drawn, each beside its reverse."""
        if math.factorial(min(count, 20)) <= orders:
            yield from itertools.permutations(range(count))
            return
        generator = torch.Generator()
        generator.manual_seed(int.from_bytes(self._entropy(8), "big") >> 1)
        for _ in range(orders // 2):
            order = torch.randperm(count, generator=generator).tolist()
            yield order
            yield order[::-1]


def _steps(manifest: Manifest) -> int:
    return STEPS if manifest.architecture.row_work() <= _MUCH_WORK else FEWER_STEPS


def _orders(columns: int) -> int:
    return min(math.factorial(min(columns, 20)), ORDERS)


def _square(shape: Sequence[int]) -> int:
    """The side of what is occluded at once, of an image [channels, height, width]."""
    return max(1, -(-max(shape[1:]) // _SQUARES))


def _token_table(module: nn.Module) -> nn.Embedding:
    """The vectors of tokens: the first table of a module, in the order of its parts."""
    return next(part for part in module.modules() if isinstance(part, nn.Embedding))


def _in_one_pass(module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """As `module(*inputs)`; a frozen encoder otherwise takes texts in an order of its own."""
    if isinstance(module, FrozenEncoder):
        return module.head(module.features.together(*inputs))  # type: ignore[no-any-return]
    return module(*inputs)  # type: ignore[no-any-return]
