"""Texts as words of a list: the same tokens for training and for serving."""

from __future__ import annotations

from sealgate.certificate.inputs import InputTensor, TextContent, Words
from secure_runtime.models.tokenizers import tokens_of, words_of


def tensor(*words: str) -> InputTensor:
    return InputTensor(
        name="text",
        datatype="BYTES",
        shape=(-1,),
        content=TextContent(tokenizer=Words(vocabulary=words, length=5)),
    )


def test_tokens():
    words = Words(vocabulary=("cat", "the", "!"), length=5)
    found = tokens_of(["The cat sat!", "", "the the the the the cat"], words)
    assert found.tolist() == [[3, 2, 1, 4, 0], [0, 0, 0, 0, 0], [3, 3, 3, 3, 3]]
    assert words.size == 5


def test_words_of_a_text():
    assert words_of("The cat, the Dog", most=3) == ["the", "cat", ","]
    assert words_of("a" * 5000 + " b", most=3) == ["b"]  # no name is that long
    assert words_of("", most=3) == []


def test_lists_that_are_refused():
    assert not list(tensor("cat", "the").refusals())
    for wrong in (("cat", "cat"), ("",), ("a" * 200,)):
        assert list(tensor(*wrong).refusals())
