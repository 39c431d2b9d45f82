"""From raw rows to named outputs: clamping and scaling, the model, probabilities or values. For training and serving.

Unless the manifest says float32, everything runs in float64 and is rounded to float32 once, at the end. So an answer
does not depend on which other rows shared its batch, except where float64 sums of another order straddle a rounding
boundary of float32 (about one output in 10^8). For small models the cost is not measurable.

Trusts: the checked manifest. Never: opens a file, imports, draws random numbers, or keeps rows after answering.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import nn

from sealgate.certificate.manifest import Manifest
from secure_runtime.errors import BadInput
from secure_runtime.limits import GRAPH_ROWS
from secure_runtime.models.architectures import probabilities
from secure_runtime.models.devices import Lanes
from secure_runtime.models.graphs import Graphs, capture
from secure_runtime.models.preparation import PreparedInput

_ARITHMETIC = {"float64": torch.float64, "float32": torch.float32}


class Predictor:
    """A model with what stands before and behind it. Not thread-safe by promise; holds no state between calls."""

    def __init__(self, manifest: Manifest, module: nn.Module, *, device: str = "cpu") -> None:
        self._architecture = manifest.architecture
        dtype = _ARITHMETIC[manifest.arithmetic]
        self._module = module.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.inputs = tuple(
            PreparedInput(tensor, dtype=dtype, device=torch.device(device)) for tensor in manifest.inputs
        )
        self._lanes = Lanes(torch.device(device))
        self._graphs: Graphs | None = None
        self._names = {output.role: output.name for output in manifest.outputs}
        span = manifest.value_range
        self._span = (float(span.low), float(span.high)) if span is not None else (-1.0, 1.0)

    def scaled(self, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Inputs by name as the model's `forward` takes them: clamped, centred, scaled, in order, [n, ...] each."""
        return tuple(prepared.scaled(inputs[prepared.spec.name]) for prepared in self.inputs)

    def predict(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Outputs by their names in the manifest; raises BadInput for rows that cannot be answered.

        `inputs` by name: FP32, UINT8 or INT64 [n, ...] as the manifest declares; texts as their tokens.
        """
        return self._begun(inputs)()

    def predict_each(self, batches: Iterable[Mapping[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
        """`predict` of each, in order. On a GPU the next batch is on its way while one computes; it is taken from
        `batches` then and not before."""
        under_way: deque[Callable[[], dict[str, torch.Tensor]]] = deque()
        for batch in batches:
            under_way.append(self._begun(batch))
            if len(under_way) >= len(self._lanes.all):
                yield under_way.popleft()()
        while under_way:
            yield under_way.popleft()()

    @torch.inference_mode()
    def _begun(self, inputs: Mapping[str, torch.Tensor]) -> Callable[[], dict[str, torch.Tensor]]:
        """Queue a batch; what is returned waits for its outputs."""
        for prepared in self.inputs:
            prepared.require(inputs[prepared.spec.name])
        sizes = {len(batch) for batch in inputs.values()}
        if len(sizes) != 1:
            raise BadInput("the inputs have different numbers of rows", code="input-shape")
        if self._graphs is not None and self._graphs.fitting(*sizes):
            with self._graphs.lane.entered():
                arrived = self._graphs.lane.fetching(self._graphs.run(inputs))
        else:
            lane = self._lanes.next()
            with lane.entered():
                arrived = lane.fetching(self._computed(inputs))
        return lambda: self._named(arrived())

    def _computed(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Values float32 [n], or scores float32 [n, classes], on the device."""
        return self.of_logits(self._module(*self.scaled(inputs)))

    def of_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """[n, logits] -> values float32 [n], or scores float32 [n, classes]."""
        if self._architecture.classes == 0:
            return self._values(logits)
        return probabilities(self._architecture, logits).to(torch.float32)

    def _named(self, found: torch.Tensor) -> dict[str, torch.Tensor]:
        if self._architecture.classes == 0:
            return {self._names["value"]: found}
        return {self._names["scores"]: found, self._names["label"]: found.argmax(dim=1)}  # label: int64 [n]

    def capture_graphs(self) -> tuple[int, ...]:
        """Answer small batches by captured graphs from here on; returns the numbers of rows. Raises RuntimeError where
        this model cannot be captured: then it goes on as before."""
        most = self._architecture.rows_at_once(max(GRAPH_ROWS))
        self._graphs = capture(
            self._computed,
            lambda rows: {one.spec.name: one.zeros(rows) for one in self.inputs},
            lane=self._lanes.next(),
            sizes=[rows for rows in GRAPH_ROWS if rows <= most] or [1],
        )
        return self._graphs.sizes

    @property
    def module(self) -> nn.Module:
        """The model alone, on scaled inputs: for explanations, which need its gradients."""
        return self._module

    def margins(self, logits: torch.Tensor, target: int) -> torch.Tensor:
        """On what scale contributions add up: [n, logits] -> [n]. A value in its own unit, before it is clamped; the
        log-odds of class `target` of two; of more classes, its logit above their mean."""
        classes = self._architecture.classes
        if classes == 0:
            low, high = self._span
            return logits[:, 0] * ((high - low) / 2) + (high + low) / 2
        if classes == 2:
            return logits[:, 0] if target else -logits[:, 0]
        return logits[:, target] - logits.mean(dim=1)

    def _values(self, outputs: torch.Tensor) -> torch.Tensor:
        """Back from [-1, 1] to the target's range, and never outside it. [n, 1] -> float32 [n]"""
        low, high = self._span
        values = outputs[:, 0] * ((high - low) / 2) + (high + low) / 2
        return values.clamp(low, high).to(torch.float32)
