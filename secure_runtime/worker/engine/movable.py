"""One model, or all members of a pipeline, as a function of what explanations move: rows, and the vectors of tokens.

Rows are moved in their own units, each number in its range, because members of a pipeline scale what they read by
themselves. Tokens are no numbers: a gradient is taken along their vectors, in the table of each member that reads them.

Trusts: the checked manifest and the verified model. Never: leaves a table changed behind it; keeps a row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from sealgate.certificate.architectures import GraphSpec, LinearRegressionSpec, LogisticRegressionSpec, ScatterNetSpec
from sealgate.certificate.compression import INT8
from sealgate.certificate.inputs import GraphEdgesContent, InputTensor
from sealgate.certificate.manifest import Manifest
from secure_runtime.models.families.frozen_encoder import Encoder, FrozenEncoder
from secure_runtime.models.pipeline import PipelinePredictor, Run
from secure_runtime.models.predictor import Predictor

Rows = Mapping[str, torch.Tensor]  # by input name, [n, ...] each


class Movable:
    """A model's margins as a function of its inputs. Holds no row between two calls."""

    def __init__(self, manifest: Manifest, predictor: Predictor | PipelinePredictor) -> None:
        self.manifest = manifest
        self.piped = isinstance(predictor, PipelinePredictor)
        self._predictor = predictor
        self._prepared = {prepared.spec.name: prepared for prepared in predictor.inputs}
        self._readers: list[tuple[Manifest, nn.Module, frozenset[str]]]  # of inputs of the whole, by their names
        if isinstance(predictor, PipelinePredictor):
            self._readers = [
                (
                    part.manifest,
                    part.predictor.module,
                    frozenset(source for one in part.member.reads for source in one.sources),
                )
                for part in predictor.parts
            ]
        else:
            self._readers = [(manifest, predictor.module, frozenset(self._prepared))]

    @property
    def whole_numbers(self) -> bool:
        """Whether a part of it computes in whole numbers, which have no gradient."""
        return any(one.compressed is not None and one.compressed.kind == INT8 for one, _, _ in self._readers)

    @property
    def scattering(self) -> bool:
        """Whether a part of it takes absolute values of wavelets, whose gradient is not a number where they vanish."""
        return any(isinstance(one.architecture, ScatterNetSpec) for one, _, _ in self._readers)

    @property
    def linear(self) -> bool:
        """Whether its margin is linear in its rows."""
        return not self.piped and isinstance(self.manifest.architecture, LinearRegressionSpec | LogisticRegressionSpec)

    @property
    def differentiable(self) -> tuple[InputTensor, ...]:
        """The inputs along which there are gradients: not ties that attention reads. It only asks whether there is a
        tie: nothing lies between a tie and none."""
        return tuple(
            spec
            for spec in self.manifest.inputs
            if not (isinstance(spec.content, GraphEdgesContent) and self._attended(spec.name))
        )

    def _attended(self, name: str) -> bool:
        kinds = [one.architecture for one, _, names in self._readers if name in names]
        return any(isinstance(kind, GraphSpec) and kind.layer == "attention" for kind in kinds)

    def row(self, inputs: Rows) -> dict[str, torch.Tensor]:
        """What is moved: `inputs` as `predict` takes them; raises BadInput for what it would not take."""
        for name, prepared in self._prepared.items():
            prepared.require(inputs[name])
        return {name: prepared.within(inputs[name]) for name, prepared in self._prepared.items()}

    def baseline(self, row: Rows) -> dict[str, torch.Tensor]:
        """The public row of nothing in particular that the row is explained against: centers, padding, no ties."""
        found: dict[str, torch.Tensor] = {}
        for spec in self.manifest.inputs:
            one = row[spec.name]
            if spec.content.vocabulary:
                found[spec.name] = torch.zeros_like(one)
            elif isinstance(spec.content, GraphEdgesContent):
                found[spec.name] = torch.diag_embed(torch.diagonal(one, dim1=1, dim2=2))  # the nodes that there are
            else:
                found[spec.name] = self._prepared[spec.name].center.unsqueeze(0).expand_as(one).clone()
        return found

    def tables(self, name: str) -> tuple[nn.Embedding, ...]:
        """Where the tokens of an input get their vectors: a table for each member that reads them."""
        return tuple(_token_table(module) for _, module, names in self._readers if name in names)

    def margins(self, rows: Rows, target: int) -> torch.Tensor:
        """[n]: as the model is served, without gradients."""
        return self._margins(rows, target, _called)

    def margins_of_vectors(
        self, rows: Rows, target: int, vectors: Sequence[tuple[nn.Embedding, torch.Tensor]]
    ) -> torch.Tensor:
        """[n], with gradients; each table gives the vectors [n, tokens, width] beside it, whatever the tokens are."""
        with _given(vectors):
            return self._margins(rows, target, _called_in_one_pass)

    def _margins(self, rows: Rows, target: int, run: Run) -> torch.Tensor:
        if isinstance(self._predictor, PipelinePredictor):
            return self._predictor.margins(rows, target, run=run)
        return self._predictor.margins(run(self._predictor.module, *self._predictor.scaled(rows)), target)


@contextlib.contextmanager
def _given(vectors: Sequence[tuple[nn.Embedding, torch.Tensor]]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for table, moved in vectors:
            handle = table.register_forward_hook(lambda *_, moved=moved: moved)
            stack.callback(handle.remove)
        yield


def _token_table(module: nn.Module) -> nn.Embedding:
    """The vectors of tokens: the first table of a module, in the order of its parts."""
    return next(part for part in module.modules() if isinstance(part, nn.Embedding))


def _called(module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """As it is."""
    return module(*inputs)  # type: ignore[no-any-return]


def _called_in_one_pass(module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """As `module(*inputs)`; a frozen encoder otherwise takes texts in an order of its own."""
    match module:
        case Encoder():
            return module.together(*inputs)
        case FrozenEncoder():
            return module.head(module.features.together(*inputs))  # type: ignore[no-any-return]
        case _:
            return module(*inputs)  # type: ignore[no-any-return]
