"""Session cookies: only what was sealed here, for that very use, in time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.console.sessions import SESSION, SIGN_IN, Sessions
from gateway.errors import Problem, Unauthenticated
from gateway.limits import MAX_COOKIE, MAX_TOKEN, SIGN_IN_S

NOW = 1_900_000_000_000_000
KEY = b"k" * 32


class Clock:
    now = NOW

    def __call__(self) -> int:
        return self.now


def sessions(key: bytes = KEY, clock: Clock | None = None) -> Sessions:
    return Sessions(key, clock=clock or Clock())


def kept(cookies) -> dict[str, str]:
    """What a browser keeps of them."""
    return {cookie.key: cookie.value for cookie in cookies if cookie.max_age}


@pytest.mark.parametrize("size", [1, 900, 3000, MAX_TOKEN])
def test_a_token_comes_back_as_it_was(size):
    cookies = kept(sessions().start("t" * size, expires_us=NOW + 60_000_000))
    assert all(len(value) <= MAX_COOKIE for value in cookies.values())
    assert sessions().token(cookies) == "t" * size


def test_every_cookie_is_for_this_host_alone_and_ends_with_the_token():
    made = sessions().start("token", expires_us=NOW + 90_000_000)
    assert {cookie.key for cookie in made} == {SESSION, f"{SESSION}-1", f"{SESSION}-2", SIGN_IN}
    for cookie in made:
        assert cookie.key.startswith("__Host-")
        assert (cookie.path, cookie.domain, cookie.secure, cookie.httponly) == ("/", None, True, True)
        assert cookie.samesite == "strict"
        assert cookie.max_age == (90 if cookie.key == SESSION else 0)


def test_the_token_cannot_be_read_from_the_cookie():
    cookies = kept(sessions().start("secret-token", expires_us=NOW + 60_000_000))
    assert "secret" not in "".join(cookies.values())


def test_time_ends_it():
    clock = Clock()
    cookies = kept(sessions().start("token", expires_us=NOW + 60_000_000))
    clock.now += 59_999_999
    assert sessions(clock=clock).token(cookies) == "token"
    clock.now += 1
    with pytest.raises(Unauthenticated) as refused:
        sessions(clock=clock).token(cookies)
    assert refused.value.code == "session-invalid"


@settings(max_examples=60)
@given(at=st.integers(0, 200), flip=st.integers(1, 63))
def test_no_changed_cookie_opens(at, flip):
    cookies = kept(sessions().start("token", expires_us=NOW + 60_000_000))
    value = cookies[SESSION]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    at %= len(value)
    other = alphabet[(alphabet.index(value[at]) + flip) % 64]
    with pytest.raises(Unauthenticated):
        sessions().token({SESSION: value[:at] + other + value[at + 1 :]})


@pytest.mark.parametrize("value", ["", "x", "????", "A" * 40, "A" * 4000, "\u00e9"])
def test_rubbish_does_not_open(value):
    with pytest.raises(Unauthenticated):
        sessions().token({SESSION: value})


def test_a_cookie_is_for_one_use_and_one_key():
    signed_in = kept(sessions().start("token", expires_us=NOW + 60_000_000))
    begun, cookie = sessions().begin("/console")
    for jar in ({SIGN_IN: signed_in[SESSION]}, {SESSION: cookie.value}):
        with pytest.raises(Unauthenticated):
            sessions().begun(jar)
        with pytest.raises(Unauthenticated):
            sessions().token(jar)
    with pytest.raises(Unauthenticated):
        sessions(b"x" * 32).token(signed_in)
    assert sessions().begun({SIGN_IN: cookie.value}) == begun


def test_a_sign_in_is_begun_once_each_and_not_for_long():
    clock = Clock()
    one, cookie = sessions().begin("/console")
    other, _ = sessions().begin("/console")
    assert len({one.state, other.state, one.verifier, other.verifier}) == 4
    assert len(one.verifier) >= 43  # RFC 7636 section 4.1
    assert (cookie.samesite, cookie.max_age) == ("lax", SIGN_IN_S)
    clock.now += SIGN_IN_S * 1_000_000
    with pytest.raises(Unauthenticated):
        sessions(clock=clock).begun({SIGN_IN: cookie.value})


def test_a_form_token_is_of_one_credential():
    mine = sessions().form_token("binding")
    sessions().require_form_token(mine, "binding")
    for given_token, binding in ((mine, "other"), ("", "binding"), (mine[:-1], "binding"), ("\u00e9", "binding")):
        with pytest.raises(Problem):
            sessions().require_form_token(given_token, binding)
