"""What a plan is: everything about a mechanism that is decided before the rows are read.

Trusts: public constants. Never: holds anything that was computed from rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from sealgate.ambient import Entropy
from sealgate.certificate.accounting.account import Account
from sealgate.certificate.mechanisms import Mechanism
from sealgate.certificate.schema import Search
from sealgate.errors import ConfigurationError

if TYPE_CHECKING:
    from training.mechanisms.sgd import SgdPlan

OnStep = Callable[[int], None]


class Plan(Protocol):
    """A mechanism with its public constants, ready to be accounted, stated and run."""

    @property
    def account(self) -> Account:
        """What it costs."""

    @property
    def unit(self) -> str:
        """Whose privacy it is: "example", "user", "graph", "node" or "edge"."""

    @property
    def steps(self) -> int:
        """How many steps a person waits for; one for a mechanism that solves."""

    @property
    def audited(self) -> SgdPlan | None:
        """The run of DP-SGD that an audit of the trainer stands for; None where there are no steps."""

    def part(self, *, coordinates: int, steps_executed: int, fresh: bool) -> Mechanism:
        """The certificate's part, of a run that released `coordinates` numbers at a time.

        `fresh` says that all randomness came from the operating system.
        """

    def search(self, *, fresh: bool) -> Search | None:
        """The certificate's part about a choice among runs, if there was one."""

    def train(
        self,
        module: nn.Module,
        inputs: tuple[torch.Tensor, ...],
        targets: torch.Tensor,
        *,
        groups: torch.Tensor | None,
        entropy: Entropy,
        on_step: OnStep,
    ) -> int:
        """Train the module in place; returns the number of steps executed. Raises TrainingError.

        inputs: scaled, each [n, ...]; targets: [n]; groups: int64 [n], equal for the rows of one person.
        """


def only_layer(module: nn.Module) -> nn.Linear:
    """The one linear layer of a linear model; raises ConfigurationError for any other."""
    layers = [one for one in module.modules() if isinstance(one, nn.Linear)]
    (count, weights) = (len(layers), sum(one.numel() for one in module.parameters()))
    if count != 1 or layers[0].out_features != 1 or weights != layers[0].in_features + 1:
        raise ConfigurationError("[privacy] this mechanism trains one linear layer with one output, and nothing else")
    return layers[0]


def fill(layer: nn.Linear, solution: torch.Tensor) -> None:
    """Put weights with the intercept last into the layer: [d + 1]."""
    with torch.no_grad():
        layer.weight.copy_(solution[:-1].reshape(1, -1))
        layer.bias.copy_(solution[-1:])
