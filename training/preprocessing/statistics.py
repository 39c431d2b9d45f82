"""What is computed of the private rows before training: planned and paid for before they are read, then released once.

A configuration with `[preprocessing]` has blanks: scales, categories, words. `spending_of` says what filling them
costs, and what is left for the mechanism; until then placeholders of the same sizes stand there (`sections`), so that
model, plan and audit are settled before the rows are read; `fill` puts private releases in their places. All rows
count, those that are held out, too.

Trusts: that masking and reading treat each row by itself. Never: uses a count of rows, or a value that has no noise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from sealgate.ambient import Entropy
from sealgate.certificate.accounting.account import Account, WithStatistics
from sealgate.certificate.decimals import MICRO, decimal_text
from sealgate.certificate.schema import Masked, Preprocessing, Statistic
from sealgate.errors import ConfigurationError, DecodeError
from secure_runtime.models.tokenizers import words_of
from training.centering import Centering, centering_of
from training.columns import Columns, numbers_of
from training.configuration import Configuration, micro
from training.preprocessing.counting import COUNT_UNITS, UNITS, Release, plan_names, plan_sum
from training.preprocessing.encoding import texts_of
from training.preprocessing.sections import (
    CategoriesSection,
    StandardiseSection,
    VocabularySection,
    preprocessing_section,
    with_categories,
    with_words,
)
from training.randomness import Keystream

_LEAST_SCALE = Decimal("0.001")  # of half a column's range: what is nearly constant is not blown up
_SIGNIFICANT = Context(prec=12)
_DIGITS = 6  # of a center or scale, in half ranges


class _Step(Protocol):
    """One release that fills one kind of blank."""

    @property
    def release(self) -> Release: ...

    def fill(self, configuration: Configuration, columns: Columns, stream: Keystream) -> Configuration: ...


@dataclass(frozen=True, kw_only=True)
class Standardise:
    """Center and scale of columns from noisy counts, sums and sums of squares, all in one release.

    A value v in [-1, 1] of its range enters as v and v^2 - 1/2, of which v^2 + (v^2 - 1/2)^2 <= 5/4 and
    |v| + |v^2 - 1/2| <= 3/2; the row itself as 1.
    """

    names: tuple[str, ...]
    release: Release

    @classmethod
    def of(cls, section: StandardiseSection, configuration: Configuration) -> Standardise:
        """The least noise that the section's epsilon allows; raises ConfigurationError."""
        names = section.columns or tuple(configuration.columns)
        release = plan_sum(
            f"center and scale of {len(names)} columns",
            epsilon_micro=micro(section.epsilon, "[preprocessing.standardise] epsilon"),
            delta=_delta(section.delta),
            norm_l1=1 + 1.5 * len(names),
            norm_l2=math.sqrt(1 + 1.25 * len(names)),
        )
        return cls(names=names, release=release)

    def sums(self, configuration: Configuration, columns: Columns) -> NDArray[np.int64]:
        """The count of rows, and for each column two sums, all in 1/UNITS: [1 + 2 columns]. Private, without noise."""
        found = [len(columns[self.names[0]]) * UNITS]
        for name in self.names:
            low, high = map(float, configuration.columns[name][:2])
            values = np.clip((numbers_of(name, columns[name]) - (low + high) / 2) / ((high - low) / 2), -1.0, 1.0)
            # Rounded towards zero: no row adds more than its bound.
            found += [int(np.trunc(one * UNITS).astype(np.int64).sum()) for one in (values, values**2 - 0.5)]
        return np.array(found, dtype=np.int64)

    def fill(self, configuration: Configuration, columns: Columns, stream: Keystream) -> Configuration:
        """Columns with private centers and scales."""
        sums = self.sums(configuration, columns)
        noisy = self.release.noisy(sums, units=UNITS, stream=stream).tolist()
        count = max(noisy[0], UNITS)
        least = math.sqrt(self.release.deviation * UNITS / count)
        scaled = dict(configuration.columns)
        for place, name in enumerate(self.names):
            mean, square = (Fraction(one, count) for one in noisy[1 + 2 * place : 3 + 2 * place])
            scaled[name] = _standardised(configuration.columns[name], mean, square, least=least)
        return msgspec.structs.replace(configuration, columns=scaled)


def _standardised(
    numbers: tuple[Decimal, ...], mean: Fraction, square: Fraction, *, least: float
) -> tuple[Decimal, ...]:
    """[low, high, center, scale] from a mean in half ranges and a mean square less one half.

    A scale is at least `least` half ranges: a spread that the noise would hide anyway is not blown up.
    """
    low, high = numbers[:2]
    half, middle = (high - low) / 2, (high + low) / 2
    mean = min(max(mean, Fraction(-1)), Fraction(1))
    variance = min(max(float(square + Fraction(1, 2) - mean * mean), 0.0), 1.0)
    spread = max(round(Decimal(max(math.sqrt(variance), min(least, 1.0))), _DIGITS), _LEAST_SCALE)
    center = round(Decimal(mean.numerator) / mean.denominator, _DIGITS)
    found = (_SIGNIFICANT.create_decimal(middle + half * center), _SIGNIFICANT.create_decimal(half * spread))
    try:
        for number in found:
            decimal_text(number)
    except DecodeError as error:
        raise ConfigurationError(f"[columns] the range [{low}, {high}] is too fine to be standardised") from error
    return low, high, *found


@dataclass(frozen=True, kw_only=True)
class Categories:
    """The most frequent values of a column; each row counts for its own value."""

    name: str
    most: int
    release: Release

    @classmethod
    def of(cls, name: str, section: CategoriesSection) -> Categories:
        """The least noise that the section's epsilon allows; raises ConfigurationError."""
        release = plan_names(
            f"categories of '{name}'",
            epsilon_micro=micro(section.epsilon, f"[preprocessing.categories] '{name}' epsilon"),
            delta=_delta(section.delta),
            contributions=1,
        )
        return cls(name=name, most=section.most, release=release)

    def counts(self, configuration: Configuration, columns: Columns) -> Counter[str]:
        """How often each value occurs. Private, without noise."""
        return Counter(texts_of(self.name, columns[self.name]))

    def fill(self, configuration: Configuration, columns: Columns, stream: Keystream) -> Configuration:
        """The values that were told; places that are left stay placeholders."""
        values = told(self.release, self.counts(configuration, columns), most=self.most, stream=stream)
        return with_categories(configuration, self.name, values, most=self.most)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The most frequent words; each text counts for the first few different ones."""

    most: int
    words_per_text: int
    release: Release

    @classmethod
    def of(cls, section: VocabularySection) -> Vocabulary:
        """The least noise that the section's epsilon allows; raises ConfigurationError."""
        release = plan_names(
            "vocabulary",
            epsilon_micro=micro(section.epsilon, "[preprocessing.vocabulary] epsilon"),
            delta=_delta(section.delta),
            contributions=section.words_per_text,
        )
        return cls(most=section.most, words_per_text=section.words_per_text, release=release)

    def counts(self, configuration: Configuration, columns: Columns) -> Counter[str]:
        """In how many texts each word occurs, of the first few of each. Private, without noise."""
        counts: Counter[str] = Counter()
        for text in columns[configuration.text.get("column", "text")].tolist():
            counts.update(words_of(text, most=self.words_per_text))
        return counts

    def fill(self, configuration: Configuration, columns: Columns, stream: Keystream) -> Configuration:
        """The words that were told; places that are left stay placeholders."""
        words = told(self.release, self.counts(configuration, columns), most=self.most, stream=stream)
        return with_words(configuration, words, most=self.most)


def told(release: Release, counts: Counter[str], *, most: int, stream: Keystream) -> tuple[str, ...]:
    """The names whose noisy counts reach the threshold, the largest noisy counts first.

    Names are put in an order that does not depend on rows first: noise comes in that order.
    """
    names = sorted(counts)
    exact = np.array([counts[name] * COUNT_UNITS for name in names], dtype=np.int64)
    noisy = release.noisy(exact, units=COUNT_UNITS, stream=stream)
    order = np.argsort(-noisy, kind="stable")
    passed = [int(place) for place in order if noisy[place] >= release.threshold * COUNT_UNITS]
    return tuple(names[place] for place in passed[:most])


def _delta(delta: Decimal) -> str:
    try:
        if 0 <= delta < 1:
            return decimal_text(delta)
    except DecodeError:
        pass
    raise ConfigurationError("[preprocessing] a delta must lie in [0, 1) and have at most 17 decimals")


@dataclass(frozen=True, kw_only=True)
class Spending:
    """Everything that is computed of the private rows before training, a centre of fixed features included."""

    steps: tuple[_Step, ...]
    centering: Centering | None

    @property
    def parts(self) -> tuple[Statistic, ...]:
        """What the certificate says of each."""
        center = self.centering.preprocessing.parts if self.centering else ()
        return (*(step.release.statistic for step in self.steps), *center)

    def left(self, configuration: Configuration) -> Configuration:
        """What the mechanism may spend; raises ConfigurationError."""
        privacy = configuration.privacy
        epsilon_micro, delta = _sum(self.parts)
        left = privacy.delta - delta
        epsilon = None if privacy.epsilon is None else privacy.epsilon - Decimal(epsilon_micro) / MICRO
        if left <= 0 or (epsilon is not None and epsilon <= 0):
            raise ConfigurationError("[preprocessing] and [center] spend all of epsilon or delta; give them less")
        return msgspec.structs.replace(
            configuration, privacy=msgspec.structs.replace(privacy, delta=left, epsilon=epsilon)
        )

    def account(self, mechanism: Account, *, delta: str) -> Account:
        """The mechanism's account and these statistics', at their common delta."""
        if not self.parts:
            return mechanism
        return WithStatistics(
            account=mechanism,
            statistics_micro=sum(part.epsilon_micro for part in self.parts),
            statistics_replace_one_micro=sum(part.epsilon_replace_one_micro for part in self.parts),
            delta=delta,
        )

    def fill(self, configuration: Configuration, columns: Columns, *, entropy: Entropy) -> Configuration:
        """The configuration with private releases where it had blanks; makes each release once."""
        for step in self.steps:
            configuration = step.fill(configuration, columns, Keystream(entropy))
        return configuration

    def preprocessing(self, masked: tuple[Masked, ...]) -> Preprocessing:
        """What the certificate says of all of it."""
        parts = self.parts
        if not parts:
            return Preprocessing(statistics="public-constants", epsilon_micro=0, masked=masked)
        return Preprocessing(
            statistics="dp",
            epsilon_micro=sum(part.epsilon_micro for part in parts),
            epsilon_replace_one_micro=sum(part.epsilon_replace_one_micro for part in parts),
            delta=decimal_text(_sum(parts)[1]),
            parts=parts,
            masked=masked,
        )


def _sum(parts: Iterable[Statistic]) -> tuple[int, Decimal]:
    found = tuple(parts)
    return sum(part.epsilon_micro for part in found), sum((Decimal(part.delta) for part in found), Decimal(0))


def spending_of(configuration: Configuration) -> Spending:
    """What the configuration asks to be computed before training, with its cost; raises ConfigurationError."""
    section = preprocessing_section(configuration)
    steps: list[Any] = []
    if section.standardise:
        steps.append(Standardise.of(section.standardise, configuration))
    steps += [Categories.of(name, one) for name, one in section.categories.items()]
    if section.vocabulary:
        steps.append(Vocabulary.of(section.vocabulary))
    return Spending(steps=tuple(steps), centering=centering_of(configuration))


def columns_wanted(configuration: Configuration) -> list[str]:
    """The columns that `Spending.fill` reads, as texts where it counts names."""
    section = preprocessing_section(configuration)
    return [*section.categories, *([configuration.text.get("column", "text")] if section.vocabulary else [])]
