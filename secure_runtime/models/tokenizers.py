"""From texts to tokens by public rules, the same for training and for serving. Token 0 is padding.

Words are those of a text in lower case. A text may be as long as a message, so it is read in pieces that end at white
space: no word crosses it, and no letter's lower case depends on what lies beyond (Unicode's final sigma, the only
letter that looks at its neighbours, looks at letters and marks). Whoever waits is asked between pieces of a long text,
and within one: a single word may be as long as the text, so it is found, lowered and hashed part by part.

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

_WORD, _MORE_WORD = re.compile(r"\w+|[^\w\s]"), re.compile(r"(?<=\w)\w+")
_RUN, _MORE_RUN = re.compile(r"\S+"), re.compile(r"(?<=\S)\S+")
_SPACE = re.compile(r"\s")
_PIECE = 64 * 1024  # characters of a text, about, between two looks at whether anybody waits
_LOOK_AHEAD = 64  # characters behind a part, at first: words are seldom longer
_SIGMA, _MIDDLE, _FINAL = "\u03a3", "\u03c3", "\u03c2"
_CASED, _UNCASED = "a", "1"


def _go_on() -> None:
    """Nobody waits."""


def tokens_of(texts: Sequence[str], tokenizer: Tokenizer, *, go_on: Callable[[], None] = _go_on) -> torch.Tensor:
    """Texts as tokens: int64 [n, length], cut or padded with zeros at the end. `go_on` is called before each text and
    each piece of a long one, and ends the work by raising.
    """
    found = torch.zeros(len(texts), tokenizer.length, dtype=torch.int64)
    for row, text in enumerate(texts):
        go_on()
        numbers = _numbers(text, tokenizer, go_on)
        if numbers:
            found[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
    return found


def _numbers(text: str, tokenizer: Tokenizer, go_on: Callable[[], None]) -> list[int]:
    match tokenizer:
        case Utf8Bytes(length=length):
            return [byte + 1 for byte in text[:length].encode()[:length]]
        case HashedWords(length=length, buckets=buckets):
            return [_bucket(word, buckets, go_on) for word in islice(_words(text, go_on), length)]
        case WordPiece(length=length, vocabulary=vocabulary):
            return _pieces_of(vocabulary).numbers(text, length=length)
        case Words(length=length, vocabulary=vocabulary):
            places = _places_of(vocabulary)
            words = islice(_words(text, go_on), length)
            return [places.get(word, 1) if len(word) <= MAX_NAME else 1 for word in words]  # no longer one is listed


def _bucket(word: str, buckets: int, go_on: Callable[[], None]) -> int:
    digest = hashlib.blake2b(word[:_PIECE].encode(), digest_size=8)
    for at in range(_PIECE, len(word), _PIECE):
        go_on()
        digest.update(word[at : at + _PIECE].encode())
    return int.from_bytes(digest.digest(), "big") % buckets + 1


def _pieces(text: str, go_on: Callable[[], None]) -> Iterator[tuple[int, str]]:
    """A text in pieces that end where white space begins, each with where it begins."""
    at = 0
    while at < len(text):
        go_on()
        end = at + _PIECE
        while (space := _SPACE.search(text, end, end + _PIECE)) is None and end < len(text):
            go_on()
            end += _PIECE
        end = space.start() if space is not None else len(text)
        yield at, text[at:end]
        at = end


def _lower(piece: str, go_on: Callable[[], None]) -> str:
    """The piece in lower case, part by part. A capital sigma is a final one behind a letter with case where none
    follows; apostrophes, marks and the like between do not count. So each part is lowered between two characters that
    stand for what lies beyond it."""
    if len(piece) <= _PIECE:
        return piece.lower()
    looks = _SIGMA in piece
    before, parts = _UNCASED, list[str]()
    for at in range(0, len(piece), _PIECE):
        go_on()
        part = piece[at : at + _PIECE]
        after = _next_of(piece, at + _PIECE, go_on) if looks and _SIGMA in part else _UNCASED
        parts.append(f"{before}{part}{after}".lower()[1:-1])
        if looks:
            before = _CASED if f"{before}{part}{_SIGMA}".lower()[-1] == _FINAL else _UNCASED
    return "".join(parts)


def _next_of(piece: str, at: int, go_on: Callable[[], None]) -> str:
    """A letter that stands for what a sigma ahead of this place looks at, as Python itself tells."""
    size = _LOOK_AHEAD
    while at < len(piece):
        part = piece[at : at + size]
        if f"{_CASED}{_SIGMA}{part}".lower()[1] == _MIDDLE:
            return _CASED
        if f"{_CASED}{_SIGMA}{part}{_CASED}".lower()[1] == _FINAL:
            return _UNCASED
        go_on()  # nothing in it has to do with case
        at, size = at + size, _PIECE
    return _UNCASED


def _words(text: str, go_on: Callable[[], None]) -> Iterator[str]:
    for _, piece in _pieces(text, go_on):
        if not piece.isspace():
            lower = _lower(piece, go_on)
            if len(lower) <= _PIECE:
                yield from (word.group() for word in _WORD.finditer(lower))
            else:
                yield from (lower[start:end] for start, end in _found(_WORD, _MORE_WORD, lower, go_on))


def _found(
    pattern: re.Pattern[str], more: re.Pattern[str], text: str, go_on: Callable[[], None]
) -> Iterator[tuple[int, int]]:
    """Where the pattern matches, one after the other; `more` is what a match may go on with behind its end."""
    if len(text) <= _PIECE:
        yield from (match.span() for match in pattern.finditer(text))
        return
    at = 0
    while at < len(text):
        stop = at + _PIECE
        start = end = at
        for match in pattern.finditer(text, at, stop):
            if end > start:
                yield start, end
            start, end = match.span()
        go_on()
        while end == stop and (further := more.match(text, stop, stop + _PIECE)) is not None:
            go_on()
            end, stop = further.end(), stop + _PIECE
        if end > start:
            yield start, end
        at = max(end, at + _PIECE)


NOWHERE = (-1, -1)
"""Where a token stands that is of no word: padding, or a mark at the ends of a text."""


def spans_of(text: str, tokenizer: Tokenizer, *, go_on: Callable[[], None] = _go_on) -> list[tuple[int, int]]:
    """Where in the text each of its `length` tokens stands: (first character, one past the last). A piece of a word
    stands where the run of characters between two spaces does that the word is of. `go_on` as for `tokens_of`."""
    match tokenizer:
        case Utf8Bytes(length=length):
            spans = [(at, at + 1) for at, one in enumerate(text[:length]) for _ in one.encode()]
        case WordPiece(length=length, vocabulary=vocabulary):
            spans = [NOWHERE if one is None else one for one in _pieces_of(vocabulary).spans(text, length=length)]
        case HashedWords(length=length) | Words(length=length):
            spans = list(islice(_word_spans(text, go_on), length))
    return [*spans[:length], *[NOWHERE] * (length - len(spans))]


def _word_spans(text: str, go_on: Callable[[], None]) -> Iterator[tuple[int, int]]:
    """Words are those of the text in lower case, where some letters are two. Nothing is kept for each character: a text
    may be as long as a message."""
    for first, piece in _pieces(text, go_on):
        if piece.isspace():
            continue
        for begin, beyond in _found(_RUN, _MORE_RUN, piece, go_on):
            spans = _spans_in(piece[begin:beyond], go_on)
            yield from ((first + begin + start, first + begin + end) for start, end in spans)


def _spans_in(run: str, go_on: Callable[[], None]) -> Iterator[tuple[int, int]]:
    lower = _lower(run, go_on)
    words = _found(_WORD, _MORE_WORD, lower, go_on)
    if len(lower) == len(run):
        yield from words
        return
    ends = accumulate(len(one.lower()) for one in _watched(run, go_on))  # in lower case, of each character
    at, end = 0, next(ends)
    for word_start, word_end in words:
        while end <= word_start:
            at, end = at + 1, next(ends)
        start = at
        while end < word_end:
            at, end = at + 1, next(ends)
        yield start, at + 1


def _watched(run: str, go_on: Callable[[], None]) -> Iterator[str]:
    for at in range(0, len(run), _PIECE):
        go_on()
        yield from run[at : at + _PIECE]


def words_of(text: str, *, most: int) -> list[str]:
    """The first different words of a text, as `Words` tells them apart."""
    found: dict[str, None] = {}
    for word in _words(text, _go_on):
        if len(word) <= MAX_NAME:
            found[word] = None
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
