"""Private prediction: answers that say little about the training data, whatever model gave them.

Each row's answer is put on a grid of whole numbers, discrete Laplace noise is added, and everything that leaves is
computed from the noised numbers: probabilities, labels, values, and what other obligations make of them. For one row
this is epsilon-differentially private (pure: delta is 0) with respect to the training data, even if all of it changed:

- Scores are made points of {n >= 0, sum n = GRID}. Any two such points differ by at most 2 * GRID in the L1 norm, so
  noise of rate epsilon / (2 * GRID) on each number suffices (Dwork, McSherry, Nissim, Smith 2006). Of two scores one
  says all: it alone is noised, at rate epsilon / GRID, and the other is what is missing to GRID.
- A value is made a whole number from 0 to GRID, by its manifest's public range: rate epsilon / GRID.

That bound needs no knowledge of the model, so it holds for every model; it is also large: what one row says about one
person in the data is mostly noise unless epsilon is several units. Epsilons of rows add up; who counts them is the
host, against privacy budgets. It protects the rows that a model was trained on, not those that it is asked about, and
not metadata, refusals or time.

Trusts: the grant's epsilon, the manifest's public range, the entropy. Never: lets the true answer out by another
output; keeps random bytes from one request to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import torch

from sealgate.ambient import Entropy
from sealgate.certificate.manifest import Manifest, ValueRange
from secure_runtime.errors import BadInput
from secure_runtime.limits import MAX_NOISED_NUMBERS
from secure_runtime.worker.engine.discrete_laplace import DiscreteLaplace

GRID = 1 << 20
"""Steps between 0 and 1: finer than any useful noise, and far below where products of whole numbers grow large."""

_MICRO = 1_000_000


def require_few_rows(rows: int, manifest: Manifest, *, noise_rows: int) -> None:
    """Raise BadInput for more rows than one noised request may have. Its budget was held for no more."""
    numbers = rows * max(len(output.labels) or 1 for output in manifest.outputs)
    if rows > noise_rows or numbers > MAX_NOISED_NUMBERS:
        raise BadInput(
            f"answers of this model are noised here: send at most {noise_rows} rows (and {MAX_NOISED_NUMBERS} scores) "
            "at once",
            status=413,
            code="too-many-noised-rows",
        )


def noised(
    outputs: Mapping[str, torch.Tensor], manifest: Manifest, *, epsilon_micro: int, entropy: Entropy
) -> dict[str, torch.Tensor]:
    """All outputs of one request, computed anew from noised ones. Each row spends `epsilon_micro` once.

    Raises BadInput for outputs whose range nobody declared: nothing bounds what those could say.
    """
    named = {output.role: output.name for output in manifest.outputs}
    if set(named) == {"scores", "label"}:
        scores, labels = _noised_scores(outputs[named["scores"]], epsilon_micro=epsilon_micro, entropy=entropy)
        return {named["scores"]: scores, named["label"]: labels}
    if set(named) == {"value"} and manifest.value_range is not None:
        values = outputs[named["value"]]
        noise = DiscreteLaplace(numerator=epsilon_micro, denominator=GRID * _MICRO, entropy=entropy)
        return {named["value"]: _noised_values(values, manifest.value_range, noise)}
    raise BadInput("the model declares no range of its outputs, so they cannot be noised", code="noise-without-bounds")


def _noised_scores(scores: torch.Tensor, *, epsilon_micro: int, entropy: Entropy) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities [n, classes] and labels [n], both from the same noised numbers."""
    width = sensitivity(scores.shape[1])
    noise = DiscreteLaplace(numerator=epsilon_micro, denominator=width * _MICRO, entropy=entropy)
    rows = [noised_row(row, noise) for row in scores.double().tolist()]
    labels = torch.tensor([row.index(max(row)) for row in rows], dtype=torch.int64)
    return torch.tensor([nearest_probabilities(row) for row in rows], dtype=torch.float32), labels


def sensitivity(classes: int) -> int:
    """How far apart, in the L1 norm, the numbers that are noised can be."""
    return GRID if classes == 2 else 2 * GRID


def noised_row(row: list[float], noise: DiscreteLaplace) -> list[int]:
    """The mechanism itself: after this the true row is not looked at again."""
    numbers = on_simplex(row)
    if len(numbers) == 2:
        second = numbers[1] + noise.draw()
        return [GRID - second, second]
    return [number + noise.draw() for number in numbers]


def on_simplex(row: list[float]) -> list[int]:
    """Whole numbers of at least 0 that sum to GRID, whatever the model gave: NaN counts as 0, nothing as all alike."""
    clipped = [int(min(max(score, 0.0), 1.0) * GRID) if score == score else 0 for score in row]
    total = sum(clipped)
    if total == 0:
        clipped, total = [1] * len(row), len(row)
    shared = [number * GRID // total for number in clipped]
    for index in range(GRID - sum(shared)):  # fewer than there are classes
        shared[index] += 1
    return shared


def nearest_probabilities(row: list[int]) -> list[float]:
    """The point of the probability simplex next to a noised one (Euclidean). Looks at nothing but noised numbers."""
    total = 0
    level = 0.0
    for count, number in enumerate(sorted(row, reverse=True), start=1):
        total += number
        candidate = (total - GRID) / count
        if number <= candidate:
            break
        level = candidate
    return [max(0.0, number - level) / GRID for number in row]


def _noised_values(values: torch.Tensor, span: ValueRange, noise: DiscreteLaplace) -> torch.Tensor:
    low, high = Decimal(span.low), Decimal(span.high)
    width = float(high - low)
    given = []
    for value in values.double().tolist():
        place = (value - float(low)) / width if value == value else 0.5
        step = int(min(max(place, 0.0), 1.0) * GRID) + noise.draw()
        given.append(float(low + (high - low) * min(max(step, 0), GRID) / GRID))
    return torch.tensor(given, dtype=torch.float32)
