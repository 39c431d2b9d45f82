"""What one parameter's gradient is made of, unit by unit, before anybody has multiplied it out.

A linear layer's gradient is a sum of outer products, an embedding's a sum of rows, a bias' is there already. From each
form follow the squared norm of every unit's gradient and the sum weighted by clip factors; often neither needs the
per-unit gradients themselves (ghost norm: Goodfellow 2015, Li et al. 2022; book-keeping: Bu et al. 2023).

Shapes: u units, T places that belong to one unit (time steps, pixels, calls of the same layer, rows of a person, or all
of these), d and p the widths before and behind the layer. Trusts: that place and unit were told apart correctly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from training.dp_sgd.clipping import square_norms

GHOST_GAIN = 4  # per-unit gradients are multiplied out unless the ghost norm needs this much less arithmetic
CANCELLATION = {torch.float64: 2.0**-48, torch.float32: 2.0**-32}
"""So much of the largest possible value is added to a ghost norm. Terms may cancel; then the norm must not come out too
small, nor may the weighted sum, whose terms are rounded in the gradients' own type, be longer than what it says."""


@dataclass
class Direct:
    """Per-unit gradients themselves: [u, ...] in the parameter's shape."""

    values: torch.Tensor
    beside: Outer | None = None  # a contribution whose `behind` are these values, in one place: their norms are there

    def squares(self) -> torch.Tensor:
        return square_norms(self.values) if self.beside is None else self.beside.behind_squares()

    def weighted(self, factors: torch.Tensor) -> torch.Tensor:
        return torch.mv(self.values.flatten(1).t(), factors).view(self.values.shape[1:])

    def each(self) -> torch.Tensor:
        return self.values


@dataclass
class Outer:
    """Sum over T of outer products g a^T: before [u, T, d], behind [u, T, p] -> a [p, d] gradient for each unit."""

    before: torch.Tensor
    behind: torch.Tensor
    shape: torch.Size  # of the parameter; p * d numbers
    _each: torch.Tensor | None = field(default=None, init=False)
    _behind_squares: torch.Tensor | None = field(default=None, init=False)

    @property
    def multiplied(self) -> bool:
        """Whether the per-unit gradients were multiplied out."""
        return self._each is not None

    def squares(self) -> torch.Tensor:
        places, before, behind = self.before.shape[1], self.before.shape[2], self.behind.shape[2]
        if places == 1:
            return square_norms(self.before) * self.behind_squares()
        if GHOST_GAIN * places * places * (before + behind) < before * behind * places:
            return self._ghost()
        return square_norms(self.each())

    def behind_squares(self) -> torch.Tensor:
        """Squared norm of all that is behind: float64 [u]."""
        if self._behind_squares is None:
            self._behind_squares = square_norms(self.behind)
        return self._behind_squares

    def _ghost(self) -> torch.Tensor:
        """|sum of g a^T|^2 = sum over pairs of places of (a . a')(g . g'), in float64 because terms may cancel."""
        before, behind = self.before.double(), self.behind.double()
        gram = torch.bmm(before, before.transpose(1, 2)) * torch.bmm(behind, behind.transpose(1, 2))  # [u, T, T]
        largest = (before.norm(dim=2) * behind.norm(dim=2)).sum(dim=1) ** 2  # [u]
        squares: torch.Tensor = gram.sum(dim=(1, 2)).clamp_min(0.0) + CANCELLATION[self.behind.dtype] * largest
        return squares

    def weighted(self, factors: torch.Tensor) -> torch.Tensor:
        if self._each is not None:
            return Direct(self._each).weighted(factors)
        scaled = (self.behind * factors[:, None, None]).flatten(0, 1)  # [u T, p]
        return (scaled.t() @ self.before.flatten(0, 1)).view(self.shape)

    def each(self) -> torch.Tensor:
        if self._each is None:
            product = torch.bmm(self.behind.transpose(1, 2), self.before)  # [u, p, d]
            self._each = product.view(len(product), *self.shape)
        return self._each


@dataclass
class Lookup:
    """Rows of a table: `rows` int64 [u, T], behind [u, T, d]; `rows` of `unused` (padding) learn nothing."""

    rows: torch.Tensor
    behind: torch.Tensor
    shape: torch.Size  # [table rows, d]

    def squares(self) -> torch.Tensor:
        """Sum over pairs of places that read the same row of g . g'."""
        behind = self.behind.double()
        same = self.rows[:, :, None] == self.rows[:, None, :]  # [u, T, T]
        gram = torch.bmm(behind, behind.transpose(1, 2))
        largest = behind.norm(dim=2).sum(dim=1) ** 2
        squares: torch.Tensor = (gram * same).sum(dim=(1, 2)).clamp_min(0.0) + CANCELLATION[self.behind.dtype] * largest
        return squares

    def weighted(self, factors: torch.Tensor) -> torch.Tensor:
        scaled = (self.behind * factors[:, None, None]).flatten(0, 1)
        return scaled.new_zeros(self.shape).index_add_(0, self.rows.flatten(), scaled)

    def each(self) -> torch.Tensor:
        units, places = self.rows.shape
        table = self.behind.new_zeros((units * self.shape[0], self.shape[1]))
        place = self.rows + self.shape[0] * torch.arange(units, device=self.rows.device)[:, None]
        table.index_add_(0, place.flatten(), self.behind.reshape(units * places, -1))
        return table.view(units, *self.shape)


Contribution: TypeAlias = Direct | Outer | Lookup


def joined(parts: list[Contribution]) -> Contribution:
    """One contribution for a parameter that was used several times: time steps of a cell, or tied weights."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Outer) and all(isinstance(part, Outer) for part in parts):
        outers = [part for part in parts if isinstance(part, Outer)]
        return Outer(
            torch.cat([part.before for part in outers], dim=1),
            torch.cat([part.behind for part in outers], dim=1),
            first.shape,
        )
    if isinstance(first, Lookup) and all(isinstance(part, Lookup) for part in parts):
        lookups = [part for part in parts if isinstance(part, Lookup)]
        return Lookup(
            torch.cat([part.rows for part in lookups], dim=1),
            torch.cat([part.behind for part in lookups], dim=1),
            first.shape,
        )
    total = parts[0].each().clone()
    for part in parts[1:]:
        total += part.each()
    return Direct(total)
