"""The loss of each example alone: what DP-SGD differentiates, clips and never averages over a batch.

`mse` is half the squared error, `huber` is Huber's loss (1964: quadratic within `transition`, linear beyond),
`cross-entropy` is the negative log-likelihood of the class: of a sigmoid for two classes, of a softmax for more.
Values are compared on the model's scale, where targets lie in [-1, 1]. Trusts: targets that were checked when the data
was read. Never: takes a mean over examples, whose divisor would be the private size of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

LOSSES = ("mse", "huber", "cross-entropy")


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss by name. `classes` is 0 for values; `transition` belongs to huber."""

    kind: str
    classes: int = 0
    transition: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in LOSSES or (self.kind == "cross-entropy") != (self.classes >= 2):
            raise ValueError(f"no loss '{self.kind}' for {self.classes} classes")
        if not self.transition > 0:
            raise ValueError("the transition of a loss must be above zero")

    @classmethod
    def usual(cls, classes: int) -> Loss:
        """Cross-entropy for classes, half the squared error for values (0 classes)."""
        return cls(kind="cross-entropy" if classes else "mse", classes=classes)

    def each(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of each example, in the arithmetic of the logits: [n, logits], [n] -> [n]."""
        targets = targets.to(logits.dtype)
        if self.kind == "mse":
            return 0.5 * (logits[:, 0] - targets) ** 2
        if self.kind == "huber":
            return functional.huber_loss(logits[:, 0], targets, reduction="none", delta=self.transition)
        if self.classes == 2:
            return functional.binary_cross_entropy_with_logits(logits[:, 0], targets, reduction="none")
        return functional.cross_entropy(logits, targets.long(), reduction="none")
