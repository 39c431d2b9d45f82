"""From texts to tokens by public rules, the same for training and for serving. Token 0 is padding.

Trusts: the checked manifest. Never: keeps a text, opens a file, or shows a text in an error.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, islice

import torch

from sealgate.certificate.inputs import HashedWords, Tokenizer, Utf8Bytes, WordPiece, Words
from sealgate.limits import MAX_NAME
from secure_runtime.models.wordpiece import WordPieces

_WORD = re.compile(r"\w+|[^\w\s]")


def _go_on() -> None:
    """Nobody waits."""


def tokens_of(texts: Sequence[str], tokenizer: Tokenizer, *, go_on: Callable[[], None] = _go_on) -> torch.Tensor:
    """Texts as tokens: int64 [n, length], cut or padded with zeros at the end. `go_on` is called before each text, and
    ends the work by raising.
    """
    found = torch.zeros(len(texts), tokenizer.length, dtype=torch.int64)
    for row, text in enumerate(texts):
        go_on()
        numbers = _numbers(text, tokenizer)
        if numbers:
            found[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
    return found


def _numbers(text: str, tokenizer: Tokenizer) -> list[int]:
    match tokenizer:
        case Utf8Bytes(length=length):
            return [byte + 1 for byte in text.encode()[:length]]
        case HashedWords(length=length, buckets=buckets):
            numbers: list[int] = []
            for word in _WORD.finditer(text.lower()):
                if len(numbers) == length:
                    break
                digest = hashlib.blake2b(word.group().encode(), digest_size=8).digest()
                numbers.append(int.from_bytes(digest, "big") % buckets + 1)
            return numbers
        case WordPiece(length=length, vocabulary=vocabulary):
            return _pieces_of(vocabulary).numbers(text, length=length)
        case Words(length=length, vocabulary=vocabulary):
            places = _places_of(vocabulary)
            return [places.get(word.group(), 1) for word in islice(_WORD.finditer(text.lower()), length)]


NOWHERE = (-1, -1)
"""Where a token stands that is of no word: padding, or a mark at the ends of a text."""


def spans_of(text: str, tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Where in the text each of its `length` tokens stands: (first character, one past the last). A piece of a word
    stands where the run of characters between two spaces does that the word is of."""
    match tokenizer:
        case Utf8Bytes(length=length):
            spans = [(at, at + 1) for at, one in enumerate(text[:length]) for _ in one.encode()]
        case WordPiece(length=length, vocabulary=vocabulary):
            spans = [NOWHERE if one is None else one for one in _pieces_of(vocabulary).spans(text, length=length)]
        case HashedWords(length=length) | Words(length=length):
            spans = list(islice(_word_spans(text), length))
    return [*spans[:length], *[NOWHERE] * (length - len(spans))]


def _word_spans(text: str) -> Iterator[tuple[int, int]]:
    """Words are those of the text in lower case, where some letters are two. Nothing is kept for each character: a text
    may be as long as a message."""
    lower = text.lower()
    if len(lower) == len(text):
        yield from (word.span() for word in _WORD.finditer(lower))
        return
    ends = accumulate(len(one.lower()) for one in text)  # in lower case, of each character
    at, end = 0, next(ends)
    for word in _WORD.finditer(lower):
        while end <= word.start():
            at, end = at + 1, next(ends)
        start = at
        while end < word.end():
            at, end = at + 1, next(ends)
        yield start, at + 1


def words_of(text: str, *, most: int) -> list[str]:
    """The first different words of a text, as `Words` tells them apart."""
    found: dict[str, None] = {}
    for word in _WORD.finditer(text.lower()):
        if len(word.group()) <= MAX_NAME:
            found[word.group()] = None
        if len(found) == most:
            break
    return list(found)


@functools.lru_cache(maxsize=64)
def _places_of(vocabulary: tuple[str, ...]) -> dict[str, int]:
    """The number of each word, after padding and the unknown word."""
    return {word: place for place, word in enumerate(vocabulary, start=2)}


@functools.lru_cache(maxsize=64)
def _pieces_of(vocabulary: tuple[str, ...]) -> WordPieces:
    """The index of a public vocabulary, made once: it takes milliseconds. Nothing of a text is remembered."""
    return WordPieces(vocabulary)
