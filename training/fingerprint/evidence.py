"""What agreeing answers are worth. Labels are uniform and independent, so for any model that was made without the key,
the number of its answers that agree is binomial with probability 1/classes, whatever the model is: the probability
given here is exact, and needs no other models to compare with. It is the chance of a false accusation.

Trusts: that the key was not chosen after looking at the model; the certificate's commitment shows when it was fixed.
Never: rounds a probability down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from training.fingerprint.triggers import Triggers
from training.limits import FINGERPRINT_CHANCE


@dataclass(frozen=True)
class Evidence:
    """`matches` of `count` answers were the expected ones, each with probability 1/`classes` by chance."""

    matches: int
    count: int
    classes: int

    @property
    def chance(self) -> Fraction:
        """That a model made without the key agrees at least as often."""
        hit = Fraction(1, self.classes)
        return sum(
            (
                math.comb(self.count, one) * hit**one * (1 - hit) ** (self.count - one)
                for one in range(self.matches, self.count + 1)
            ),
            Fraction(0),
        )

    @property
    def shown(self) -> bool:
        """Whether it is improbable enough to say that the model carries the fingerprint."""
        return self.chance <= FINGERPRINT_CHANCE

    def __str__(self) -> str:
        chance = self.chance
        # A power of ten that is not below the chance; Fractions are exact, and logarithms of long integers are too.
        power = math.ceil(math.log10(chance.numerator) - math.log10(chance.denominator) + 1e-9)
        words = f"at most 1e{power}" if power < -1 else f"{float(chance):.2f}"
        return (
            f"{self.matches} of {self.count} answers are those of the key; a model made without it agrees that often "
            f"with probability {words}"
        )


def least_matches(count: int, classes: int) -> int:
    """From how many on the fingerprint is shown."""
    return next(one for one in range(count + 2) if one > count or Evidence(one, count, classes).shown)


def compare(triggers: Triggers, answers: NDArray[np.int64]) -> Evidence:
    """answers: int64 [count], the classes that the model said."""
    return Evidence(int((answers == triggers.labels).sum()), len(triggers), triggers.classes)
