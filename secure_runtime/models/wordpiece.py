"""WordPiece tokens as BERT's uncased models read them (Devlin et al. 2019, after Schuster & Nakajima 2012).

    1  control characters go, white space and East Asian ideographs separate words
    2  accents and case go (Unicode NFD without its marks, then lower case)
    3  every punctuation character is a word of its own
    4  each word becomes the longest pieces that the vocabulary has, from the left; a word that cannot is [UNK]
    5  [CLS] stands before and [SEP] behind; what does not fit is cut

Work is bounded: of a text only its first characters are read, so many for each token that is wanted.
Trusts: the vocabulary of a checked manifest. Never: keeps a text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

_SEPARATORS = " \t\n\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_RUN = re.compile(f"[^{_SEPARATORS}]+")
_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f"
_IDEOGRAPH = re.compile(f"([{_IDEOGRAPHS}])")
_MAX_WORD = 100  # characters; longer words are unknown, as in the published tokenizer
_MAX_MARKS = 30  # as in Unicode's stream-safe text format (UAX 15); no language comes near
_CHARACTERS_PER_TOKEN = 64  # read of a text for each token wanted; English has about five


class WordPieces:
    """A tokenizer over one vocabulary, whose first entry is [PAD]: a token's number is its place."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self._numbers = {piece: number for number, piece in enumerate(vocabulary)}
        self._longest = max(len(piece.removeprefix("##")) for piece in self._numbers)
        self._unknown, self._begin, self._end = (self._numbers[name] for name in ("[UNK]", "[CLS]", "[SEP]"))

    def numbers(self, text: str, *, length: int) -> list[int]:
        """At most `length` tokens, the first [CLS] and the last [SEP]."""
        found = [self._begin]
        for word in _words(text[: length * _CHARACTERS_PER_TOKEN]):
            found.extend(self._pieces(word))
            if len(found) >= length:
                break
        return [*found[: length - 1], self._end]

    def spans(self, text: str, *, length: int) -> list[tuple[int, int] | None]:
        """For each of `numbers`, where in the text the run stands that it is a piece of; None for [CLS] and [SEP]."""
        found: list[tuple[int, int] | None] = [None]
        for run in _RUN.finditer(text[: length * _CHARACTERS_PER_TOKEN]):
            found.extend(run.span() for word in _words(run.group()) for _ in self._pieces(word))
            if len(found) >= length:
                break
        return [*found[: length - 1], None]

    def _pieces(self, word: str) -> list[int]:
        if len(word) > _MAX_WORD:
            return [self._unknown]
        pieces: list[int] = []
        start = 0
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                piece = self._numbers.get(word[start:end] if start == 0 else f"##{word[start:end]}")
                if piece is not None:
                    break
            else:
                return [self._unknown]
            pieces.append(piece)
            start = end
        return pieces


def _words(text: str) -> Iterator[str]:
    for run in _RUN.finditer(text):
        clean = "".join(_few_marks(one for one in run.group() if not _is_dropped(one)))
        plain = unicodedata.normalize("NFD", _IDEOGRAPH.sub(r" \1 ", clean))
        plain = "".join(one for one in plain if unicodedata.category(one) != "Mn").lower()
        for part in plain.split():
            yield from _cut_at_punctuation(part)


def _few_marks(characters: Iterable[str]) -> Iterator[str]:
    """The characters without marks beyond the first few on one letter: normalising takes the square of their number."""
    marks = 0
    for one in characters:
        marks = marks + 1 if unicodedata.combining(one) else 0
        if marks <= _MAX_MARKS:
            yield one


def _cut_at_punctuation(part: str) -> Iterator[str]:
    start = 0
    for place, one in enumerate(part):
        if _is_punctuation(one):
            if start < place:
                yield part[start:place]
            yield one
            start = place + 1
    if start < len(part):
        yield part[start:]


def _is_dropped(one: str) -> bool:
    return one == "\ufffd" or unicodedata.category(one) in ("Cc", "Cf", "Co", "Cs")  # an unassigned one (Cn) stays


def _is_punctuation(one: str) -> bool:
    # ASCII symbols such as $ and + count as punctuation here, although Unicode calls them symbols.
    return one in "$+<=>^`|~" or unicodedata.category(one).startswith("P")
