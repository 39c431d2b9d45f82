"""A sweep: the same training at several epsilons, some times each, to see what privacy costs on these data.

Every run of it sees the private rows, so its figures are releases: each model is private by itself, and all of them
together cost at most the sum (basic composition). The certificate lists them as not covered by the epsilon of the
weights. Choosing an epsilon by a sweep is a choice on private data that nothing here accounts for.

Trusts: the configuration. Never: keeps a model of the sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Self

import msgspec

from sealgate.certificate.decimals import micro_text
from sealgate.certificate.schema import Measured, Release
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_MEASURED
from training.configuration import Configuration, micro

Run = Callable[[Configuration], Measured]
Told = Callable[[Measured], None]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Which epsilons, and how often each; every run draws fresh randomness."""

    epsilons: tuple[Decimal, ...]
    repeats: int

    @classmethod
    def of(cls, epsilons: str, *, repeats: int) -> Self:
        """From "1,3,8"; raises ConfigurationError."""
        try:
            found = tuple(Decimal(text) for text in epsilons.split(","))
        except InvalidOperation as error:
            raise ConfigurationError(f"--sweep needs epsilons as in 1,3,8, not '{epsilons[:40]}'") from error
        if not all(micro(one, "--sweep: an epsilon") > 0 for one in found) or len(set(found)) != len(found):
            raise ConfigurationError("--sweep: epsilons must be above zero and differ from each other")
        if not 1 <= repeats <= MAX_MEASURED - 1 or len(found) * repeats > MAX_MEASURED - 1:
            raise ConfigurationError(f"--sweep: at most {MAX_MEASURED - 1} runs, and each epsilon at least once")
        return cls(epsilons=found, repeats=repeats)

    def configurations(self, configuration: Configuration) -> Iterator[Configuration]:
        """The configuration with each epsilon in turn, as often as it is wanted."""
        for epsilon in self.epsilons:
            privacy = msgspec.structs.replace(configuration.privacy, epsilon=epsilon, sigma=None)
            for _ in range(self.repeats):
                yield msgspec.structs.replace(configuration, privacy=privacy)

    def measured(self, configuration: Configuration, run: Run, *, told: Told) -> tuple[Measured, ...]:
        """What every run of the sweep came to; `run` trains one, measures it and throws it away."""
        found = []
        for one in self.configurations(configuration):
            found.append(run(one))
            told(found[-1])
        return tuple(found)


def sweep_release(measured: tuple[Measured, ...], *, delta: str) -> Release:
    """What the certificate says of the runs beside its own."""
    together = sum(one.epsilon_micro for one in measured)
    return Release(
        what=f"quality of {len(measured)} more models of a sweep over epsilon, thrown away; together at most epsilon "
        f"{micro_text(together)} at delta {len(measured)} x {delta}",
        where="certificate, card.md and terminal",
        covered=False,
    )
