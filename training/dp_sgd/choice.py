"""Which way to per-example gradients: checked against a loop and timed, on made-up data and never on the private rows.

The check catches what no rule can see: layers that mix rows, parameters used beside their layer, first dimensions that
are not the examples. The fastest mode that is right is kept for all later runs of the same module in this process, so
that two runs on neighbouring data take the same path.

Trusts: nothing. Never: draws from torch's generator, or leaves a module changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import nn

from sealgate.ambient import monotonic_ns
from training.dp_sgd.book_keeping import BookKeeping
from training.dp_sgd.modes import ExpandedWeights, Functorch, Ghost, Hooks, Inputs, Loop, Mode, Vmap
from training.errors import TrainingError
from training.limits import CHECK_ROWS, MEASURED_ROUNDS, MEASURED_ROWS
from training.losses import Loss
from training.randomness import Keystream

MODES: dict[str, type[Mode]] = {
    one.name: one for one in (BookKeeping, Hooks, ExpandedWeights, Ghost, Functorch, Vmap, Loop)
}
AUTO = "auto"
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}  # of the largest coordinate, in the check


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The chosen mode, and for each candidate seconds per step of `MEASURED_ROWS` examples, or why it is out."""

    mode: str
    seconds: dict[str, float]
    refused: dict[str, str]

    def __str__(self) -> str:
        """The mode and why it was taken, for people."""
        if not self.seconds:
            return f"{self.mode}: no faster way is right for this model"
        of = ", ".join(f"{name} {1000 * taken:.1f}" for name, taken in sorted(self.seconds.items(), key=itemgetter(1)))
        return f"{self.mode} (milliseconds for {MEASURED_ROWS} made-up examples: {of})"


_CHOSEN: dict[tuple[object, ...], Choice] = {}


def made_up(
    module: nn.Module, inputs: Inputs, *, loss: Loss, count: int, dtype: torch.dtype
) -> tuple[Inputs, torch.Tensor]:
    """Examples shaped like the inputs, with values of a fixed keystream: numbers around zero, tokens that exist."""
    stream = Keystream(lambda size: bytes(size))
    tables = [layer.num_embeddings for layer in module.modules() if isinstance(layer, nn.Embedding)]
    rows: list[torch.Tensor] = []
    for one in inputs:
        shape = (count, *one.shape[1:])
        values = torch.from_numpy(stream.uniform(torch.Size(shape).numel()).copy()).view(shape)
        if one.is_floating_point():
            rows.append((2.0 * values - 1.0).to(dtype))
        else:
            rows.append((values * min(tables, default=2)).to(one.dtype))
    chances = torch.from_numpy(stream.uniform(count).copy())
    targets = (chances * loss.classes).floor() if loss.classes else 2.0 * chances - 1.0
    return tuple(rows), targets.to(dtype)


def choose(module: nn.Module, inputs: Inputs, *, loss: Loss, wanted: str = AUTO, rows: int = 1) -> Choice:
    """The mode to use: the fastest right one for `auto`, else the wanted one if it is right; raises TrainingError.

    inputs give shapes and types only. The module's weights are made up for the time of the check.
    """
    if wanted not in (AUTO, *MODES):
        raise TrainingError(f"no gradient mode is called '{wanted}'", code="gradients-unsupported")
    dtype = next(module.parameters()).dtype
    if wanted == Ghost.name and dtype != torch.float64:
        raise TrainingError(
            "gradients 'ghost' need [engine] arithmetic = \"float64\": in float32 their norms may come out too small, "
            "where terms cancel, and then nothing is clipped",
            code="gradients-unsupported",
        )
    shapes = tuple((tuple(one.shape[1:]), one.dtype) for one in inputs)
    key = (type(module), str(module), shapes, dtype, loss, wanted, rows, torch.get_num_threads())
    if key not in _CHOSEN:
        with _made_up_weights(module):
            _CHOSEN[key] = _choose(module, inputs, loss=loss, wanted=wanted, rows=rows, dtype=dtype)
    return _CHOSEN[key]


def _choose(module: nn.Module, inputs: Inputs, *, loss: Loss, wanted: str, rows: int, dtype: torch.dtype) -> Choice:
    _require_independent_rows(module, inputs, loss=loss, dtype=dtype)
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name in _candidates(wanted, dtype):
        try:
            best = min(seconds.values(), default=math.inf)
            seconds[name] = _timed(name, module, inputs, loss=loss, rows=rows, dtype=dtype, best=best)
        except Exception as error:  # whatever a library says about a module, it is not a mode for it
            refused[name] = _told(error)
    for name in sorted(seconds, key=seconds.__getitem__):
        try:
            _check(name, module, inputs, loss=loss, rows=rows, dtype=dtype)
            return Choice(mode=name, seconds=seconds, refused=refused)
        except Exception as error:
            refused[name] = _told(error)
            del seconds[name]
    if wanted != AUTO:
        raise TrainingError(
            f"gradients '{wanted}' do not suit this model: {refused[wanted]}", code="gradients-unsupported"
        )
    return Choice(mode=Loop.name, seconds={}, refused=refused)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", maxsplit=1)[0][:200]


def _candidates(wanted: str, dtype: torch.dtype) -> tuple[str, ...]:
    """Modes to time. Opacus' functorch is never faster than vmap; its ghost norms may cancel in float32."""
    if wanted != AUTO:
        return (wanted,)
    usual = (BookKeeping.name, Vmap.name, Hooks.name, ExpandedWeights.name)
    return usual if dtype == torch.float32 else (*usual, Ghost.name)


def _require_independent_rows(module: nn.Module, inputs: Inputs, *, loss: Loss, dtype: torch.dtype) -> None:
    """Raise TrainingError unless each example's answer is its own: what clipping per example rests on."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise TrainingError(
                f"{type(layer).__name__} mixes the examples of a batch, so no example's gradient is its own; take "
                "GroupNorm or LayerNorm",
                code="gradients-unsupported",
            )
    rows, _ = made_up(module, inputs, loss=loss, count=max(CHECK_ROWS), dtype=dtype)
    with torch.no_grad():
        together = module(*rows)
        alone = [module(*(one[index : index + 1] for one in rows)) for index in range(len(rows[0]))]
    if len(together) != len(rows[0]) or not _close(torch.cat(alone), together, dtype):
        raise TrainingError(
            "an example's answer depends on the other examples of its batch, or on chance (dropout?), so no example's "
            "gradient is its own",
            code="gradients-unsupported",
        )


def _check(name: str, module: nn.Module, inputs: Inputs, *, loss: Loss, rows: int, dtype: torch.dtype) -> None:
    """Raise whatever speaks against a mode: an error of its own, or a result that differs from the loop's."""
    for units in CHECK_ROWS:
        given, targets = made_up(module, inputs, loss=loss, count=units * rows, dtype=dtype)
        weights = targets.new_full((len(targets),), 1.0 / rows) if rows > 1 else None
        # Some units are above the median norm and are clipped, the others are not.
        oracle = Loop(module, loss=loss, clip_norm=1.0)
        norms = oracle.gradients(given, targets, rows=rows, weights=weights)[0].sqrt()
        oracle.clip_norm = max(float(norms.median()), 1e-6)
        expected = oracle.clipped_sum(given, targets, rows=rows, weights=weights)
        mode = MODES[name](module, loss=loss, clip_norm=oracle.clip_norm)
        try:
            found = mode.clipped_sum(given, targets, rows=rows, weights=weights)
        finally:
            mode.close()
        largest = max(float(one.abs().max()) for one in expected)
        for ours, theirs in zip(found, expected, strict=True):
            if ours.shape != theirs.shape or not _close(ours, theirs, dtype, scale=largest):
                raise TrainingError("it differs from a loop over examples", code="gradients-unsupported")


def _timed(
    name: str, module: nn.Module, inputs: Inputs, *, loss: Loss, rows: int, dtype: torch.dtype, best: float
) -> float:
    """Seconds per `MEASURED_ROWS` units; a mode that is slower than `best` with a quarter of them is left at that."""
    mode = MODES[name](module, loss=loss, clip_norm=1.0)
    try:
        fastest = math.inf
        for count in (MEASURED_ROWS // 4, *(MEASURED_ROWS,) * MEASURED_ROUNDS):
            given, targets = made_up(module, inputs, loss=loss, count=count * rows, dtype=dtype)
            weights = targets.new_full((len(targets),), 1.0 / rows) if rows > 1 else None
            start = monotonic_ns()
            mode.clipped_sum(given, targets, rows=rows, weights=weights)
            taken = (monotonic_ns() - start) / 1e9
            if count < MEASURED_ROWS and taken > best:
                return taken * (MEASURED_ROWS / count)
            fastest = taken if count == MEASURED_ROWS and taken < fastest else fastest
        return fastest
    finally:
        mode.close()


def _close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, *, scale: float | None = None) -> bool:
    largest = float(expected.abs().max()) if scale is None else scale
    return bool(((found - expected).abs() <= TOLERANCE[dtype] * max(largest, 1e-30)).all())


@contextmanager
def _made_up_weights(module: nn.Module) -> Iterator[None]:
    """Weights that are neither zero nor symmetric, for the check; then the old ones again."""
    stream = Keystream(lambda size: bytes([1]) * size)
    parameters = list(module.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter in parameters:
                spread = (3.0 / max(1, parameter[0].numel() if parameter.dim() > 1 else 3)) ** 0.5
                values = torch.from_numpy(stream.uniform(parameter.numel()).copy()).view(parameter.shape)
                parameter.copy_((2.0 * values - 1.0) * spread)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
                parameter.grad = None
