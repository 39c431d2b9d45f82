"""Where words stand in a text: right also where lower case is longer, and cheap however long the text is."""

from __future__ import annotations

import re
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealgate.certificate.inputs import HashedWords, Words
from secure_runtime.models.tokenizers import NOWHERE, spans_of

_WORD = re.compile(r"\w+|[^\w\s]")
LONG = 500_000


@pytest.mark.parametrize(
    "text",
    ["a" * LONG, "ab " * (LONG // 3), "\u0130" + "a" * LONG, "a " * 20 + "\u0130" * LONG],
    ids=["one-word", "many-words", "longer-in-lower-case", "longer-behind-what-is-read"],
)
@pytest.mark.parametrize("tokenizer", [HashedWords(length=4, buckets=9), Words(length=4, vocabulary=("a",))])
def test_where_a_few_words_stand_takes_no_memory_for_each_character(text: str, tokenizer: Any) -> None:
    """A text may be as long as a message: a number for each of its characters would be more than a worker has."""
    tracemalloc.start()
    try:
        spans = spans_of(text, tokenizer)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 * len(text)
    assert spans[0] == (0, LONG if text.startswith("aa") else 2 if text.startswith("ab") else 1)


@given(st.text(alphabet="aA\u0130\u03a3 .\u00df\u0307", max_size=24))
def test_words_stand_where_they_do_in_the_text_as_it_was_sent(text: str) -> None:
    """The dotted capital I of Turkish is two characters in lower case."""
    places = [at for at, one in enumerate(text) for _ in one.lower()]
    found = [(places[word.start()], places[word.end() - 1] + 1) for word in _WORD.finditer(text.lower())]
    assert [one for one in spans_of(text, HashedWords(length=40, buckets=9)) if one != NOWHERE] == found
