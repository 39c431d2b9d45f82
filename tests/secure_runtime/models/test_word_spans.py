"""Words of a text and where they stand: right also where lower case is longer, and cheap however long the text is."""

from __future__ import annotations

import hashlib
import re
import sys
import tracemalloc
from itertools import islice
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sealgate.certificate.inputs import HashedWords, Utf8Bytes, Words
from secure_runtime.models import tokenizers
from secure_runtime.models.tokenizers import NOWHERE, spans_of, tokens_of, words_of

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


ODD = st.text(alphabet="aA1!'\u0130\u03a3\u02b0 .\u00df\u0307\u3000\x1f\x85", max_size=40)
"""Of every kind: letters, one that is two in lower case, the one that depends on its neighbours, what it looks beyond,
marks, white space."""


@pytest.fixture(params=[3, 1 << 16])
def piece(request: Any, monkeypatch: Any) -> int:
    """Texts of a few characters are long ones too."""
    monkeypatch.setattr(tokenizers, "_PIECE", request.param)
    monkeypatch.setattr(tokenizers, "_LOOK_AHEAD", 2)
    return int(request.param)


@given(ODD)
@example("a\u03a3 a\u03a3\u0307\u3000\u03a3" * 4)
@example("a\u03a3" + "'" * 20 + "a\u03a3" + "'." * 9 + "!\u03a3a")
@example("aaaaaa.aaaaaaaaa!!!!aaa")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_words_are_those_of_the_whole_text_in_lower_case(piece: int, text: str) -> None:
    words = _WORD.findall(text.lower())
    hashed = [int.from_bytes(hashlib.blake2b(one.encode(), digest_size=8).digest(), "big") % 999 + 1 for one in words]
    for length in (1, 5, 80):
        padded = [*hashed[:length], *[0] * (length - len(hashed))]
        assert tokens_of([text], HashedWords(length=length, buckets=999))[0].tolist() == padded
    known = tuple(sorted(set(words[::2])))
    if known:
        numbers = [known.index(one) + 2 if one in known else 1 for one in words]
        assert tokens_of([text], Words(length=len(words), vocabulary=known))[0].tolist() == numbers
    assert words_of(text, most=100) == list(dict.fromkeys(words))
    octets = [octet + 1 for octet in text.encode()[:7]]
    assert tokens_of([text], Utf8Bytes(length=7))[0].tolist() == [*octets, *[0] * (7 - len(octets))]


def test_white_space_parts_what_lower_case_depends_on() -> None:
    """What reading run by run stands on, for every character of Unicode."""
    for code in range(sys.maxunicode + 1):
        one = chr(code)
        assert one.isspace() == bool(re.match(r"\s", one))
        if one.isspace():
            for text in (
                f"a\u03a3{one}a",
                f"\u03a3{one}a",
                f"a{one}\u03a3",
                f"a{one}\u03a3a",
                f"a\u03a3\u0307{one}\u0307a",
            ):
                assert text.lower() == one.join(part.lower() for part in text.split(one))
        elif code != 0x3A3 and not 0xD800 <= code < 0xE000:
            assert f"a{one}a{one}".lower() == f"a{one.lower()}a{one.lower()}"


@given(ODD.map(lambda text: "".join(text.split())))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_run_is_lowered_part_by_part_as_the_whole(piece: int, text: str) -> None:
    assert tokenizers._lower(text, lambda: None) == text.lower()


class _Ended(Exception):
    """Nobody waits."""


LONG_RUNS = {
    "letters": "a" * LONG,
    "wide-letters": "\u00c9" * LONG,
    "sigmas": "Xy\u03a3" * (LONG // 3),
    "nothing-with-case": "a\u03a3" + "'" * LONG,
    "marks": "." * LONG,
}


@pytest.mark.parametrize("text", LONG_RUNS.values(), ids=LONG_RUNS)
@pytest.mark.parametrize("work", ["tokens", "spans"])
def test_a_text_without_white_space_is_looked_up_from_again_and_again(text: str, work: str, monkeypatch: Any) -> None:
    """No step reads more than a piece: the whole run counts as one word, or as thousands of them."""
    monkeypatch.setattr(tokenizers, "_PIECE", 1000)
    taken: list[int] = [0]
    monkeypatch.setattr(tokenizers, "_WORD", _Counted(tokenizers._WORD, taken))
    monkeypatch.setattr(tokenizers, "_MORE_WORD", _Counted(tokenizers._MORE_WORD, taken))
    monkeypatch.setattr(tokenizers, "_RUN", _Counted(tokenizers._RUN, taken))
    monkeypatch.setattr(tokenizers, "_MORE_RUN", _Counted(tokenizers._MORE_RUN, taken))
    monkeypatch.setattr(tokenizers, "_SPACE", _Counted(tokenizers._SPACE, taken))
    between: list[int] = []

    def go_on() -> None:
        between.append(taken[0])
        taken[0] = 0

    tokenizer = HashedWords(length=4, buckets=999)
    if work == "tokens":
        found = tokens_of([text], tokenizer, go_on=go_on)[0].tolist()
        words = [word.group() for word in islice(_WORD.finditer(text.lower()), 4)]
        hashed = [int.from_bytes(hashlib.blake2b(one.encode(), digest_size=8).digest(), "big") % 999 for one in words]
        assert found == [*(one + 1 for one in hashed), *[0] * (4 - len(words))]
    else:
        assert spans_of(text, tokenizer, go_on=go_on)[0][0] == 0
    assert len(between) > 3 * LONG // 1000 or text.startswith(".")
    assert 0 < max(between) <= 3000


class _Counted:
    """A pattern that counts the characters that it may look at."""

    def __init__(self, pattern: re.Pattern[str], taken: list[int]) -> None:
        self._pattern, self._taken = pattern, taken

    def _count(self, text: str, at: int, stop: int) -> tuple[str, int, int]:
        self._taken[0] += max(0, min(stop, len(text)) - at)
        return text, at, stop

    def search(self, text: str, at: int, stop: int) -> Any:
        return self._pattern.search(*self._count(text, at, stop))

    def match(self, text: str, at: int, stop: int) -> Any:
        return self._pattern.match(*self._count(text, at, stop))

    def finditer(self, text: str, at: int, stop: int) -> Any:
        return self._pattern.finditer(*self._count(text, at, stop))


@pytest.mark.parametrize(
    "text",
    [" " * 900, " a" * 450, "\u0130" * 900, "\u0130" + "a" * 900, "\u3000" * 900 + "\u0130a"],
    ids=["spaces", "words", "two-in-lower-case", "one-long-word", "spaces-before"],
)
@pytest.mark.parametrize("tokenizer", [HashedWords(length=8000, buckets=9), Words(length=8000, vocabulary=("a",))])
@pytest.mark.parametrize("work", ["tokens", "spans"])
def test_one_long_text_is_no_longer_read_than_somebody_waits(
    text: str, tokenizer: Any, work: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tokenizers, "_PIECE", 100)
    looks = 0

    def go_on() -> None:
        nonlocal looks
        looks += 1
        if looks == 5:
            raise _Ended

    read: dict[str, Any] = {"tokens": lambda: tokens_of([text], tokenizer, go_on=go_on)}
    read["spans"] = lambda: spans_of(text, tokenizer, go_on=go_on)
    with pytest.raises(_Ended):
        read[work]()


@given(ODD)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_words_stand_where_they_do_in_the_text_as_it_was_sent(piece: int, text: str) -> None:
    """The dotted capital I of Turkish is two characters in lower case."""
    places = [at for at, one in enumerate(text) for _ in one.lower()]
    found = [(places[word.start()], places[word.end() - 1] + 1) for word in _WORD.finditer(text.lower())]
    assert [one for one in spans_of(text, HashedWords(length=40, buckets=9)) if one != NOWHERE] == found
