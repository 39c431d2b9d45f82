"""The life of request keys: active, stale, gone; identifiers that never meet; nothing printed."""

from __future__ import annotations

from typing import Any

import pytest

from sealgate.errors import UnknownKeyError
from sealgate.protocol.ohttp import SealedRequest, decode_key_configs
from secure_runtime.limits import MAX_HELD_KEYS

US = 1_000_000


def ids(bench: Any) -> list[int]:
    return [config.key_id for config in decode_key_configs(bench.keys.published())]


def test_post_quantum_is_published_first(bench: Any) -> None:
    names = [config.kem.name for config in decode_key_configs(bench.keys.published())]
    assert names == ["MLKEM768_X25519", "X25519"]


def test_a_key_is_active_then_stale_then_gone(bench: Any) -> None:
    raw, media_type, _ = bench.seal(bench.inner())
    sealed = SealedRequest.parse(raw, media_type)
    old = ids(bench)
    bench.now_us += 3600 * US - 1
    assert bench.keys.tick() is False
    assert ids(bench) == old

    bench.now_us += 1  # active is over: a new key is published, the old one still opens
    assert bench.keys.tick() is True
    assert not set(ids(bench)) & set(old)
    assert bench.keys.find(sealed).config.key_id == sealed.key_id

    bench.now_us += 600 * US - 1
    assert bench.keys.find(sealed)
    bench.now_us += 1  # stale is over, whether or not a tick came by
    with pytest.raises(UnknownKeyError):
        bench.keys.find(sealed)


def test_rotation_by_hand_shortens_the_old_keys_life(bench: Any) -> None:
    raw, media_type, _ = bench.seal(bench.inner())
    sealed = SealedRequest.parse(raw, media_type)
    bench.keys.rotate()
    assert bench.keys.find(sealed)
    bench.now_us += 600 * US
    with pytest.raises(UnknownKeyError):
        bench.keys.find(sealed)


def test_identifiers_do_not_repeat_until_all_were_used(bench: Any) -> None:
    seen = set(ids(bench))
    for _ in range(100):
        bench.keys.rotate()
        bench.now_us += 700 * US
        new = set(ids(bench))
        assert not new & seen
        seen |= new
    for _ in range(100):  # more than 256 identifiers: only keys really held are avoided
        bench.keys.rotate()
        bench.now_us += 700 * US
        assert len(ids(bench)) == 2


def test_something_changes_exactly_when_the_ring_says_so(bench: Any) -> None:
    for _ in range(6):
        wait_us = round(bench.keys.seconds_to_next_change() * US)
        assert wait_us > 0
        held = len(bench.keys._keys)
        bench.now_us += wait_us - 1
        assert bench.keys.tick() is False
        assert len(bench.keys._keys) == held
        bench.now_us += 1
        assert bench.keys.tick() or len(bench.keys._keys) < held


def test_a_half_full_replay_set_brings_the_rotation_forward(bench: Any) -> None:
    bench.keys = bench.ring(replay_max=4)
    before = ids(bench)
    for used in range(2):
        assert bench.keys.tick() is False, used
        raw, media_type, _ = bench.seal(bench.inner())
        sealed = SealedRequest.parse(raw, media_type)
        bench.keys.find(sealed).replay.remember(sealed.enc)
    assert bench.keys.tick() is True
    assert not set(ids(bench)) & set(before)
    assert bench.keys.find(sealed), "the used key still opens what was sealed to it"
    assert bench.keys.tick() is False


def test_early_rotations_are_bounded(bench: Any) -> None:
    bench.keys = bench.ring(replay_max=2)
    rotations = 0
    for _ in range(30):
        raw, media_type, _ = bench.seal(bench.inner())
        sealed = SealedRequest.parse(raw, media_type)
        bench.keys.find(sealed).replay.remember(sealed.enc)
        rotations += bench.keys.tick()
    assert rotations == MAX_HELD_KEYS // 2 - 1


def test_nothing_of_a_private_key_is_printed(bench: Any) -> None:
    raw, media_type, _ = bench.seal(bench.inner())
    held = bench.keys.find(SealedRequest.parse(raw, media_type))
    assert "private" not in repr(held)
    assert "replay" not in repr(held)
