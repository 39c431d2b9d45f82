"""`[preprocessing]`: what may be computed of the private rows, at which share of the budget.

Each part is given an epsilon and a delta of its own, which come off those of `[privacy]`. With `delta = 0` the noise
of `standardise` is Laplace's, otherwise Gaussian; names need a delta. Until names are counted, placeholders stand for
them, as many as there may be. Trusts: the person who wrote it. Never: looks at rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import msgspec

from sealgate.errors import ConfigurationError
from sealgate.toml_words import in_words
from training.configuration import Configuration
from training.limits import MAX_PRIVATE_NAMES

EVERYTHING_ELSE = "*"


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all parts."""


class StandardiseSection(_Part, frozen=True):
    """`[preprocessing.standardise]`: center and scale of these columns (all, if none is named) from one release."""

    epsilon: Decimal
    delta: Decimal = Decimal(0)
    columns: tuple[str, ...] = ()


class CategoriesSection(_Part, frozen=True):
    """`[preprocessing.categories.COLUMN]`: its `most` frequent values; all others are one more, "*"."""

    epsilon: Decimal
    delta: Decimal
    most: int = 16


class VocabularySection(_Part, frozen=True):
    """`[preprocessing.vocabulary]`: the `most` frequent words; a text counts for its first `words_per_text` ones."""

    epsilon: Decimal
    delta: Decimal
    most: int = 1000
    words_per_text: int = 32


class PreprocessingSection(_Part, frozen=True):
    """`[preprocessing]`."""

    standardise: StandardiseSection | None = None
    categories: dict[str, CategoriesSection] = {}
    vocabulary: VocabularySection | None = None


def preprocessing_section(configuration: Configuration) -> PreprocessingSection:
    """The section, checked against the rest of the configuration; raises ConfigurationError."""
    try:
        found = msgspec.convert(configuration.preprocessing, PreprocessingSection)
    except msgspec.ValidationError as error:
        raise ConfigurationError(in_words(error, PreprocessingSection, under=("preprocessing",))) from error
    data, tokenizer = configuration.data, configuration.text.get("tokenizer")
    standardise, vocabulary = found.standardise, found.vocabulary
    sizes = [one.most for one in found.categories.values()]
    sizes += [] if vocabulary is None else [vocabulary.most, vocabulary.words_per_text]
    missing = [name for name in (standardise.columns if standardise else ()) if name not in configuration.columns]
    without_norm = configuration.privacy.mechanism != "dp-sgd" and configuration.privacy.row_norm is None
    for holds, what in (
        (not configuration.preprocessing or not data.person, "bounds what one row adds, not what a person does"),
        (
            not configuration.preprocessing or not configuration.engine.checkpoint_every,
            "cannot be resumed without spending twice: leave [engine] checkpoint_every out",
        ),
        (data.kind == "table" or not (standardise or found.categories), "standardise and categories belong to tables"),
        (not missing, f"standardise names '{missing[0] if missing else ''}', which is not in [columns]"),
        (not standardise or configuration.columns, "standardise has no columns: [columns] is empty"),
        (
            not standardise or not without_norm,
            "standardised rows are longer than [columns] says: give [privacy] row_norm",
        ),
        (
            vocabulary is None or tokenizer == "words",
            'vocabulary belongs to [text] tokenizer = "words"',
        ),
        (
            all(1 <= size <= MAX_PRIVATE_NAMES for size in sizes),
            f"most and words_per_text must lie between 1 and {MAX_PRIVATE_NAMES}",
        ),
    ):
        if not holds:
            raise ConfigurationError(f"[preprocessing] {what}")
    return found


def with_placeholders(configuration: Configuration) -> Configuration:
    """The configuration with placeholders where names are yet to be counted, as many as there may be."""
    found = preprocessing_section(configuration)
    for name, one in found.categories.items():
        if name not in configuration.categories:
            configuration = with_categories(configuration, name, (), most=one.most)
    if found.vocabulary and not configuration.text.get("words"):
        configuration = with_words(configuration, (), most=found.vocabulary.most)
    return configuration


def with_categories(configuration: Configuration, name: str, values: Sequence[str], *, most: int) -> Configuration:
    """The configuration with these values of a column, and one for all others."""
    listed = (*_filled([value for value in values if value != EVERYTHING_ELSE], most), EVERYTHING_ELSE)
    return msgspec.structs.replace(configuration, categories={**configuration.categories, name: listed})


def with_words(configuration: Configuration, words: Sequence[str], *, most: int) -> Configuration:
    """The configuration with these words of its texts."""
    return msgspec.structs.replace(configuration, text={**configuration.text, "words": _filled(words, most)})


def _filled(names: Sequence[str], most: int) -> tuple[str, ...]:
    """As many names as there are places."""
    return (*names, *(f"(unused {place})" for place in range(len(names) + 1, most + 1)))
