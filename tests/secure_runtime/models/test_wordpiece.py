"""WordPiece tokens against those that Hugging Face's tokenizers computed, and bounds on the work."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.certificate.inputs import TextContent, WordPiece
from secure_runtime.models import wordpiece
from secure_runtime.models.tokenizers import tokens_of
from secure_runtime.models.wordpiece import WordPieces

VECTORS = json.loads((Path(__file__).parent / "wordpiece_vectors.json").read_text())
VOCABULARY = tuple(VECTORS["vocabulary"])


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: ascii(case["text"][:20]))
def test_tokens_are_those_of_the_published_tokenizer(case: dict[str, object]) -> None:
    assert WordPieces(VOCABULARY).numbers(str(case["text"]), length=400) == case["numbers"]


@settings(max_examples=200, deadline=None)
@given(text=st.text(), length=st.integers(3, 20))
def test_any_text_is_so_many_tokens_of_the_vocabulary(text: str, length: int) -> None:
    numbers = WordPieces(VOCABULARY).numbers(text, length=length)
    assert 2 <= len(numbers) <= length
    assert VOCABULARY[numbers[0]] == "[CLS]"
    assert VOCABULARY[numbers[-1]] == "[SEP]"
    assert all(0 < number < len(VOCABULARY) for number in numbers)


def test_a_text_without_end_is_read_for_a_while_only() -> None:
    words = WordPieces(VOCABULARY)
    long = "\u200b" * 1_000_000 + "cat"
    assert words.numbers(long, length=8) == words.numbers("", length=8)


def test_texts_are_padded_behind() -> None:
    tokens = tokens_of(["cat", ""], WordPiece(vocabulary=VOCABULARY, length=5))
    assert tokens.tolist() == [[2, VOCABULARY.index("cat"), 3, 0, 0], [2, 3, 0, 0, 0]]


@pytest.mark.parametrize(
    ("vocabulary", "length", "why"),
    [
        (VOCABULARY[1:], 5, "begin with"),
        (VOCABULARY[:3], 5, "hold"),
        ((*VOCABULARY, "cat"), 5, "twice"),
        ((*VOCABULARY, ""), 5, "empty"),
        ((*VOCABULARY, "x" * 200), 5, "too long"),
        (VOCABULARY, 2, "room"),
        (VOCABULARY, 10**6, "sizes"),
    ],
)
def test_vocabularies_that_are_refused(vocabulary: tuple[str, ...], length: int, why: str) -> None:
    content = TextContent(tokenizer=WordPiece(vocabulary=vocabulary, length=length))
    assert any(why in reason for reason in content.refusals("BYTES", (-1,)))
    good = TextContent(tokenizer=WordPiece(vocabulary=VOCABULARY, length=5))
    assert not list(good.refusals("BYTES", (-1,)))


class Counted(dict[str, int]):
    """Says how often it was asked."""

    asked = 0

    def get(self, key: str, default: int | None = None) -> int | None:  # type: ignore[override]
        self.asked += 1
        return super().get(key, default)


def test_words_that_fail_at_their_end_are_not_tried_in_every_length() -> None:
    """Each such word is one token for a hundred characters: without a bound, 4950 attempts for each."""
    words = WordPieces(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##a"))
    words._numbers = Counted(words._numbers)
    numbers = words.numbers(("a" * 99 + "\u0416 ") * 256, length=256)
    assert numbers.count(1) == 256 * 64 // 101  # the last word is cut, and known
    assert words._numbers.asked < 6 * 256 * 64


def test_marks_without_end_are_not_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Normalising puts the marks of one letter in order, in time that grows with the square of their number."""
    lengths = []
    normalize = unicodedata.normalize

    def measured(form: str, text: str) -> str:
        runs = re.findall("[\u0301\u0327\U0001d165\U0001d16d]+", text)
        lengths.append(max(map(len, runs), default=0))
        return normalize(form, text)

    monkeypatch.setattr(wordpiece.unicodedata, "normalize", measured)
    words = WordPieces(VOCABULARY)
    for marks in ("\u0301\u0327", "\U0001d165\U0001d16d"):
        words.numbers("a" + marks * 8000, length=256)
    assert words.numbers("cat" + "\u0301\u0327" * 8000, length=256) == words.numbers("cat", length=256)
    assert max(lengths) <= 30
