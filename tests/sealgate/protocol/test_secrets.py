"""Holders of secrets show nothing on any path that prints, compares, copies or serialises."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle
from typing import Any

import msgspec
import pytest

from sealgate.protocol.secrets import Plaintext, Secret

CONTENT = b"correct horse battery staple"
KINDS = [Secret, Plaintext]


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_form_shows_content(kind: type[Any], caplog: pytest.LogCaptureFixture) -> None:
    holder = kind(CONTENT)
    texts = [repr(holder), str(holder), f"{holder}", f"{holder!r:>40}", f"{holder}", f"{[holder]}", f"{holder:x}"]
    caplog.set_level(logging.INFO)
    logging.getLogger("test").info("%s %r", holder, holder)

    @dataclasses.dataclass
    class Wrapper:
        inner: object

    texts += [repr(Wrapper(holder)), caplog.text]
    for text in texts:
        assert "horse" not in text
        assert CONTENT.hex() not in text
        assert kind.__name__ in text
    assert not hasattr(holder, "__dict__")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "act",
    [
        pickle.dumps,
        copy.copy,
        copy.deepcopy,
        json.dumps,
        msgspec.json.encode,
        msgspec.msgpack.encode,
        bytes,
        bytearray,
        memoryview,
        list,
        hash,
    ],
)
def test_no_way_to_copy_or_serialise(kind: type[Any], act: Any) -> None:
    with pytest.raises(TypeError):
        act(kind(CONTENT))


@pytest.mark.parametrize("kind", KINDS)
def test_wiping_clears_the_buffer_that_was_handed_over(kind: type[Any]) -> None:
    buffer = bytearray(CONTENT)
    holder = kind(buffer)
    holder.wipe()
    assert buffer == bytes(len(CONTENT))
    holder.wipe()
    with pytest.raises(ValueError, match="wiped") as caught:
        holder.reveal() if kind is Secret else holder.view()
    assert "horse" not in str(caught.value)


def test_secret_reveals_and_compares_only_with_secrets() -> None:
    secret = Secret(CONTENT)
    assert secret.reveal() == CONTENT
    assert secret == Secret(CONTENT)
    assert secret != Secret(CONTENT + b"!")
    assert secret != CONTENT
    wiped = Secret(CONTENT)
    wiped.wipe()
    assert wiped != secret
    assert wiped == wiped  # identity is all that is left


def test_plaintext_views_are_read_only_and_read_zero_after_the_block() -> None:
    with Plaintext(CONTENT) as plaintext:
        view = plaintext.view()
        assert view == CONTENT
        assert len(plaintext) == len(CONTENT)
        with pytest.raises(TypeError):
            view[0] = 0  # type: ignore[index]
    assert bytes(view) == bytes(len(CONTENT))
    assert Plaintext(CONTENT) != Plaintext(CONTENT)
