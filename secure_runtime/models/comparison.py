"""A model beside what it was compressed to: size, answers, and time, measured here and now.

Times are of the model alone, on this machine, in interleaved runs; they say which is faster, not how fast a deployment
is. Without rows whose truth is known, made-up rows from the manifest's public ranges show how alike the answers are.

Trusts: two verified models. Never: keeps rows, or says a figure that it did not measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from sealgate.ambient import monotonic_ns
from sealgate.certificate.inputs import GraphEdgesContent, ImageContent
from sealgate.certificate.manifest import Manifest
from secure_runtime.limits import COMPARED_ROWS, MADE_UP_ROWS, TIMED_RUNS, TIMED_S
from secure_runtime.models.known_rows import KnownRows
from secure_runtime.models.predictor import Predictor
from secure_runtime.models.preparation import PreparedInput
from secure_runtime.models.quality import Quality, answers, quality_of

BATCHES = (1, 32)  # rows in one call, of which the time is told
Inputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Timed:
    """Microseconds of one call."""

    p50_us: float
    p99_us: float


@dataclass(frozen=True)
class Side:
    """One of the two models. `quality` is None without rows whose truth is known."""

    quality: Quality | None
    timed: dict[int, Timed]  # by rows in a call


@dataclass(frozen=True)
class Comparison:
    """`alike` is the share of rows with the same label, or 1 for values; `furthest` the largest difference between two
    scores (or between two values, in the unit of the value)."""

    before: Side
    after: Side
    alike: float
    furthest: float
    rows: int
    made_up: bool


def compare(manifest: Manifest, before: Predictor, after: Predictor, known: KnownRows | None) -> Comparison:
    """Both on the same rows; `manifest` is of either: they differ in nothing that is used here."""
    inputs: Inputs = known.inputs if known is not None else made_up(before)
    at_once = manifest.architecture.rows_at_once(COMPARED_ROWS)
    first, second = (answers(one, manifest, inputs, at_once=at_once) for one in (before, after))
    quality: tuple[Quality | None, Quality | None] = (None, None)
    if known is not None:
        quality = (quality_of(manifest, first, known.target), quality_of(manifest, second, known.target))
    names = {output.role: output.name for output in manifest.outputs}
    numbers = names["scores" if manifest.classes else "value"]
    alike = (first[names["label"]] == second[names["label"]]).double().mean() if manifest.classes else torch.ones(())
    timed = _timed(inputs, before, after)
    return Comparison(
        before=Side(quality[0], {rows: pair[0] for rows, pair in timed.items()}),
        after=Side(quality[1], {rows: pair[1] for rows, pair in timed.items()}),
        alike=float(alike),
        furthest=float((first[numbers] - second[numbers]).abs().max()),
        rows=len(first[numbers]),
        made_up=known is None,
    )


def made_up(predictor: Predictor) -> dict[str, torch.Tensor]:
    """Rows from the manifest's public ranges, the same on every call."""
    generator = np.random.default_rng(20_240_601)  # of test data alone: no noise, no key, nothing private
    return {one.spec.name: _made_up(one, generator) for one in predictor.inputs}


def _made_up(prepared: PreparedInput, generator: np.random.Generator) -> torch.Tensor:
    shape = (MADE_UP_ROWS, *prepared.shape)
    size = prepared.spec.content.vocabulary
    if size:
        return torch.from_numpy(generator.integers(1, size, shape)).to(prepared.wire_dtype)
    if isinstance(prepared.spec.content, GraphEdgesContent):
        half = np.triu(generator.integers(0, 2, shape), 1)
        return torch.from_numpy(half + half.swapaxes(1, 2)).to(prepared.wire_dtype)
    content = prepared.spec.content
    columns = [content] if isinstance(content, ImageContent) else prepared.spec.columns
    low, high = (np.array([float(getattr(column, side)) for column in columns]) for side in ("low", "high"))
    return torch.from_numpy(low + generator.random(shape) * (high - low)).to(prepared.wire_dtype)


def _timed(inputs: Inputs, before: Predictor, after: Predictor) -> dict[int, tuple[Timed, Timed]]:
    return {rows: _pair({name: one[:rows] for name, one in inputs.items()}, before, after) for rows in BATCHES}


def _pair(inputs: Inputs, before: Predictor, after: Predictor) -> tuple[Timed, Timed]:
    def seconds(predict: Callable[[Inputs], object]) -> float:
        start = monotonic_ns()
        predict(inputs)
        return (monotonic_ns() - start) / 1000

    for one in (before, after):  # what is allocated or chosen at the first call belongs to neither
        seconds(one.predict)
    first: list[float] = []
    second: list[float] = []
    end = monotonic_ns() + round(TIMED_S * 1e9)
    while len(first) < TIMED_RUNS and (monotonic_ns() < end or not first):
        first.append(seconds(before.predict))
        second.append(seconds(after.predict))
    return _quantiles(first), _quantiles(second)


def _quantiles(us: list[float]) -> Timed:
    return Timed(float(np.quantile(us, 0.5)), float(np.quantile(us, 0.99)))
