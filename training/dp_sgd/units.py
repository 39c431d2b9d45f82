"""Whose gradient is clipped: an example's, or all rows of a person together, each perhaps in several augmentations.

A unit is what the guarantee protects. Poisson sampling draws units; a person's rows (at most a public number of them,
the first ones) and an example's augmentations enter as the mean of their gradients, clipped once. So the sum changes by
at most the clip norm when a person comes or goes with all rows (user-level privacy: McMahan et al. 2018; augmentation
multiplicity: De et al. 2022).

Trusts: group labels that say truly which rows are one person's. Never: lets a unit enter twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from training.dp_sgd.modes import Inputs
from training.randomness import Keystream


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Public choices: `multiplicity` random variants of each image, shifted by up to `shift` pixels, flipped or not.

    Pixels that come in from outside are those of the mirrored image.
    """

    multiplicity: int
    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.multiplicity < 1 or self.shift < 0:
            raise ValueError("an augmentation needs a multiplicity of at least one and shifts of at least zero")

    def of(self, inputs: Inputs, stream: Keystream) -> Inputs:
        """Each image [m, C, H, W] `multiplicity` times, each variant by its own draw; other inputs repeated."""
        found = []
        for one in inputs:
            repeated = one.repeat_interleave(self.multiplicity, dim=0)
            found.append(self._varied(repeated, stream) if repeated.dim() == 4 and len(repeated) else repeated)
        return tuple(found)

    def _varied(self, images: torch.Tensor, stream: Keystream) -> torch.Tensor:
        count, _, height, width = images.shape
        if self.flip:
            flips = torch.from_numpy(stream.uniform(count) < 0.5)
            images = torch.where(flips[:, None, None, None], images.flip(3), images)
        if self.shift:
            sides = 2 * self.shift + 1
            padded = functional.pad(images, [self.shift] * 4, mode="reflect")
            down = torch.from_numpy((stream.uniform(count) * sides).astype("int64"))
            right = torch.from_numpy((stream.uniform(count) * sides).astype("int64"))
            rows = down[:, None, None] + torch.arange(height)[:, None]  # [m, H, 1]
            columns = right[:, None, None] + torch.arange(width)  # [m, 1, W]
            images = padded.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows, columns].permute(0, 3, 1, 2)
        return images


class Units:
    """The examples of a run by unit. `count` units take part in the drawing; `rows` is a unit's greatest size."""

    def __init__(
        self,
        inputs: Inputs,
        targets: torch.Tensor,
        *,
        groups: torch.Tensor | None = None,
        rows: int = 1,
        augmentation: Augmentation | None = None,
        stream: Keystream | None = None,
    ) -> None:
        """groups: int64 [n], equal for rows of one person; of each person the first `rows` rows are used."""
        if any(len(one) != len(targets) for one in inputs) or (groups is not None and len(groups) != len(targets)):
            raise ValueError("inputs, targets and groups must have as many rows as each other")
        if (augmentation is None) != (stream is None):
            raise ValueError("an augmentation needs a stream, and only an augmentation does")
        self._inputs = inputs
        self._targets = targets
        self._augmentation = augmentation
        self._stream = stream
        self._table = None if groups is None else _table(groups, rows)
        self.count = len(targets) if self._table is None else len(self._table[0])
        self.rows = (1 if groups is None else rows) * (augmentation.multiplicity if augmentation else 1)

    def of(self, drawn: torch.Tensor) -> tuple[Inputs, torch.Tensor, torch.Tensor | None]:
        """Inputs, targets and weights of the units with these numbers, a unit's rows beside each other."""
        weights = None
        if self._table is not None:
            members, shares = self._table
            weights = shares[drawn].flatten().to(self._targets.dtype)
            drawn = members[drawn].flatten()
        inputs, targets = tuple(one[drawn] for one in self._inputs), self._targets[drawn]
        if self._augmentation is None or self._stream is None:
            return inputs, targets, weights
        times = self._augmentation.multiplicity
        weights = torch.ones_like(targets) if weights is None else weights
        return (
            self._augmentation.of(inputs, self._stream),
            targets.repeat_interleave(times),
            weights.repeat_interleave(times) / times,
        )


def _table(groups: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row numbers [units, rows] and each one's share [units, rows]: one over the person's rows, zero where none is."""
    if rows < 1:
        raise ValueError("a person must have room for at least one row")
    _, unit, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    order = torch.argsort(unit, stable=True)
    first = sizes.cumsum(0) - sizes  # where each unit starts in `order`
    used = sizes.clamp_max(rows)
    place = torch.arange(rows)  # [rows]
    there = place < used[:, None]  # [units, rows]
    members = order[first[:, None] + torch.where(there, place, 0)]
    return members, there.to(torch.float64) / used[:, None]
