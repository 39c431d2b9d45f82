"""`[preprocessing]`: what may be computed of the private rows, at which share of the budget.

Each part is given an epsilon and a delta of its own, which come off those of `[privacy]`. With `delta = 0` the noise of
`standardise` is Laplace's, otherwise Gaussian; names need a delta. Trusts: the person who wrote it. Never: looks at rows.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

from sealgate.errors import ConfigurationError
from training.configuration import Configuration
from training.limits import MAX_PRIVATE_NAMES


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
        raise ConfigurationError(f"[preprocessing]: {error}") from error
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
            not set(found.categories) & set(configuration.categories),
            "a column of categories has a public list, too; take one of them",
        ),
        (
            (vocabulary is not None) == (tokenizer == "words" and not configuration.text.get("words")),
            'vocabulary belongs to [text] tokenizer = "words" without words, and that needs it',
        ),
        (
            all(1 <= size <= MAX_PRIVATE_NAMES for size in sizes),
            f"most and words_per_text must lie between 1 and {MAX_PRIVATE_NAMES}",
        ),
    ):
        if not holds:
            raise ConfigurationError(f"[preprocessing] {what}")
    return found
