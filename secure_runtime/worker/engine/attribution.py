"""What each number of a row did for the model's output: attributions, by a method that suits the model.

    coefficients          linear models: coefficient times distance from the baseline. Exact
    integrated-gradients  all that have gradients: along the straight line from the baseline (Sundararajan, Taly, Yan
                          2017); of texts and tokens on their vectors, summed up for each token; of pipelines through
                          all members
    shapley               the mean contribution over orders of a row's parts (Strumbelj, Kononenko 2010), each order
                          with its reverse; over all orders where those are few, and then exact
    ablation              what the output loses when one part goes to its baseline
    occlusion             images: what it loses when a square of the image does (Zeiler, Fergus 2014)

The last three ask the model as it is served, and so suit models without gradients; what the parts of a row are says
`perturbing`. Explained is the margin, a number on which contributions add up: a value, in its own unit and not yet
clamped; of two classes the log-odds of the class; of more, the class's logit above the mean of all. Baselines are the
manifest's public centers, padding for tokens (for gradients its vector in their places), a graph's nodes without ties.
By the first three methods attributions add up to output minus baseline output (completeness); integrated gradients do
so up to the error of a sum over so many steps.

Trusts: the checked manifest and the verified model. Never: looks at more than one row at a time, so that a row's
attribution does not depend on its neighbours; draws from torch's generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sealgate.certificate.inputs import ImageContent, InputTensor, TableContent
from sealgate.certificate.manifest import Manifest
from secure_runtime.limits import EXPLAIN_PRICED_EVALUATIONS, SLICE_ROWS
from secure_runtime.worker.engine import captum_methods
from secure_runtime.worker.engine.movable import Movable
from secure_runtime.worker.engine.perturbing import SEED, Parts, order_count, part_count

COEFFICIENTS, GRADIENTS, SHAPLEY, ABLATION, OCCLUSION = METHODS = (
    "coefficients",
    "integrated-gradients",
    "shapley",
    "ablation",
    "occlusion",
)
STEPS, FEWER_STEPS = 64, 16  # of integrated gradients, by Gauss-Legendre; fewer for models with much work in a row
_MUCH_WORK = 1 << 26  # multiplications
_BACKWARD = 3  # a gradient costs about as much as so many answers
_ROUNDED = 2  # and an answer in whole numbers as so many others: every layer rounds what it reads
_WITHOUT = (SHAPLEY, ABLATION, OCCLUSION)  # gradients


@dataclass(frozen=True, kw_only=True)
class Attributions:
    """Of one row. `by_input` has for each explained input a tensor of its model shape; for tokens one number each."""

    by_input: Mapping[str, torch.Tensor]
    output: float
    baseline: float


def methods_of(model: Movable) -> tuple[str, ...]:
    """The methods that this model can be explained by, the one that is meant when none is named first."""
    if not captum_methods.INSTALLED:
        return ()
    found = [COEFFICIENTS] if model.linear and not model.whole_numbers else []
    contents = [spec.content for spec in model.manifest.inputs]
    smooth = not model.whole_numbers and not (model.piped and model.scattering)
    if smooth:
        found.append(GRADIENTS)
    if all(isinstance(one, ImageContent) for one in contents):
        found.insert(0 if model.scattering else len(found), OCCLUSION)
    elif len(contents) == 1 and isinstance(contents[0], TableContent):
        found += [SHAPLEY, ABLATION]
    elif not smooth or model.piped:
        found += [ABLATION, SHAPLEY]
    return tuple(found)


def evaluations(model: Movable, method: str) -> int:
    """How many rows the model is run on to explain one, at most; a gradient counts as _BACKWARD of them, and a row in
    whole numbers as _ROUNDED."""
    count = part_count(model.manifest.inputs)
    match method:
        case "coefficients":
            found = 2 + _BACKWARD
        case "integrated-gradients":
            found = 2 + _BACKWARD * _steps(model.manifest)
        case "shapley":
            found = 3 + order_count(count) * count
        case _:
            found = 3 + count
    return found * _ROUNDED if model.whole_numbers else found


def price(model: Movable, method: str) -> int:
    """Units for one row: the manifest's price, once for each begun EXPLAIN_PRICED_EVALUATIONS."""
    return model.manifest.explain_units * -(-evaluations(model, method) // EXPLAIN_PRICED_EVALUATIONS)


def seed_of(method: str) -> int | None:
    """What its orders are drawn from; None for methods that draw nothing."""
    return SEED if method == SHAPLEY else None


class Explainer:
    """Explains rows of one model by one method. Holds no row between two calls."""

    def __init__(
        self, model: Movable, method: str, *, steps: int | None = None, go_on: Callable[[], None] = lambda: None
    ) -> None:
        """`steps` of integrated gradients are as many as suit the model, unless this says how many. `go_on` is called
        whenever the model is about to be run, and ends the work by raising: one row may take long."""
        self._model = model
        self._go_on = go_on
        self._method = method
        self._steps = 1 if method == COEFFICIENTS else steps or _steps(model.manifest)  # a constant gradient: one does
        self._at_once = model.manifest.architecture.rows_at_once(SLICE_ROWS)
        self._explained = model.manifest.inputs if method in _WITHOUT else model.differentiable
        self._parts = Parts(model.manifest.inputs) if method in _WITHOUT else None

    @property
    def explained(self) -> tuple[str, ...]:
        """The inputs that get attributions."""
        return tuple(spec.name for spec in self._explained)

    def explain(self, inputs: Mapping[str, torch.Tensor], target: int) -> Attributions:
        """One row: `inputs` by name, [1, ...] each, as `predict` takes them; `target` a class, 0 for a value."""
        with torch.inference_mode(mode=False), torch.no_grad():
            row = {name: one.clone() for name, one in self._model.row(inputs).items()}
            start = self._model.baseline(row)
            if self._parts is None:
                return self._integrated(row, start, target)
            return self._perturbed(self._parts, row, start, target)

    def _perturbed(
        self, parts: Parts, row: dict[str, torch.Tensor], start: dict[str, torch.Tensor], target: int
    ) -> Attributions:
        def run(rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
            self._go_on()
            return self._model.margins(rows, target)

        play = parts.shapley if self._method == SHAPLEY else parts.ablated
        values = play(run, row, start, at_once=self._at_once)
        by_input = parts.carried(values) if self._method == OCCLUSION else parts.shared(values, row, start)
        return Attributions(by_input=by_input, output=float(run(row)), baseline=float(run(start)))

    def _integrated(self, row: dict[str, torch.Tensor], start: dict[str, torch.Tensor], target: int) -> Attributions:
        ways = [way for spec in self._explained for way in self._ways(spec, row, start)]
        given, begin = tuple(way.given for way in ways), tuple(way.start for way in ways)
        run = self._along(ways, row, target)
        _, gradients, _ = captum_methods.methods()
        with torch.enable_grad():
            found = gradients(run, multiply_by_inputs=True).attribute(
                given, begin, n_steps=self._steps, method="gausslegendre", internal_batch_size=max(1, self._at_once)
            )
        by_input: dict[str, torch.Tensor] = {}
        for way, values in zip(ways, found, strict=True):
            own = values.detach()[0]
            own = own if way.table is None else own.sum(dim=1)  # [tokens, width] -> [tokens]
            by_input[way.name] = by_input[way.name] + own if way.name in by_input else own
        return Attributions(by_input=by_input, output=float(run(*given)), baseline=float(run(*begin)))

    def _ways(
        self, spec: InputTensor, row: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]
    ) -> list[_Way]:
        """Numbers are moved themselves; of tokens their vectors are, in each table that they have some in."""
        name = spec.name
        if not spec.content.vocabulary:
            return [_Way(name, row[name], start[name], None)]
        both = [(table, table.weight) for table in self._model.tables(name)]
        return [
            _Way(name, nn.functional.embedding(row[name], at), nn.functional.embedding(start[name], at), table)
            for table, at in both
        ]

    def _along(self, ways: list[_Way], row: Mapping[str, torch.Tensor], target: int) -> Callable[..., torch.Tensor]:
        """The function that is explained, of what is moved [n, ...] alone: margins [n]."""

        def run(*moved: torch.Tensor) -> torch.Tensor:
            self._go_on()
            count = len(moved[0])
            rows = {name: one.expand(count, *one.shape[1:]) for name, one in row.items()}
            vectors = []
            for way, one in zip(ways, moved, strict=True):
                if way.table is None:
                    rows[way.name] = one
                else:
                    vectors.append((way.table, one))
            return self._model.margins_of_vectors(rows, target, vectors)

        return run


@dataclass(frozen=True)
class _Way:
    """From the baseline to the row, for one input and perhaps one table of vectors."""

    name: str
    given: torch.Tensor
    start: torch.Tensor
    table: nn.Embedding | None


def _steps(manifest: Manifest) -> int:
    return STEPS if manifest.architecture.row_work() <= _MUCH_WORK else FEWER_STEPS
