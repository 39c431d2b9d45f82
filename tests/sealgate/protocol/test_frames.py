"""Frames: what is written is read, however it is cut; anything else is one typed refusal, before memory is taken."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecodeError
from sealgate.limits import LARGE_BODY, MAX_FRAME_BODY, MAX_FRAME_HEADER
from sealgate.protocol.frames import (
    AuditRead,
    Caller,
    Cancel,
    Decision,
    Frame,
    FrameReader,
    GatewayToHost,
    HostToGateway,
    HostToWorker,
    WorkerToHost,
    encode_frame,
)

DIRECTIONS = (GatewayToHost, HostToGateway, HostToWorker, WorkerToHost)
EVERY = sorted({kind for direction in DIRECTIONS for kind in get_args(direction)}, key=lambda kind: kind.__name__)


def wire(frame: Frame, body: bytes = b"") -> bytes:
    return b"".join(map(bytes, encode_frame(frame, body)))


def example(kind: Any, salt: str) -> Any:
    """A value of a field's type, every field filled, so that nothing is left out on the wire."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = get_type_hints(kind)
        return kind(**{field.name: example(hints[field.name], salt) for field in msgspec.structs.fields(kind)})
    if origin is Literal:
        return arguments[0]
    if origin is tuple:
        return (example(arguments[0], salt), example(arguments[0], salt + "'"))
    if origin is dict:
        return {salt: example(arguments[1], salt)}
    if arguments:  # X | None
        return example(arguments[0], salt)
    return {str: "text " + salt, bytes: salt.encode() * 3, int: 1 + len(salt), bool: True, float: 0.5}[kind]


@settings(max_examples=25)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=4), st.lists(st.integers(0, 100_000), max_size=6))
@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_frame_survives_the_wire_however_it_is_cut(kind: Any, bodies: list[bytes], places: list[int]) -> None:
    frames = [(example(kind, f"ä{number}"), body) for number, body in enumerate(bodies)]
    stream = b"".join(wire(frame, body) for frame, body in frames)
    cuts = sorted(place % len(stream) for place in places)
    reader = FrameReader(next(direction for direction in DIRECTIONS if kind in get_args(direction)))
    found: list[tuple[Any, bytes]] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert found == frames
    assert reader.pending == 0


@settings(max_examples=150)
@given(st.binary(max_size=200))
@pytest.mark.parametrize("direction", DIRECTIONS, ids=["to-host", "to-gateway", "to-worker", "from-worker"])
def test_garbage_is_one_refusal(direction: Any, junk: bytes) -> None:
    for stream in (junk, struct.pack(">II", len(junk), 0) + junk):
        with contextlib.suppress(DecodeError):
            FrameReader(direction).feed(stream)


@settings(max_examples=200)
@given(st.integers(0, 60), st.integers(0, 255))
def test_one_changed_byte_never_raises_anything_else(place: int, value: int) -> None:
    stream = bytearray(wire(Cancel(id=77), b"body"))
    stream[place % len(stream)] = value
    with contextlib.suppress(DecodeError):
        FrameReader(GatewayToHost).feed(bytes(stream))


@pytest.mark.parametrize(
    ("header", "body"), [(MAX_FRAME_HEADER + 1, 0), (0, MAX_FRAME_BODY + 1), (2**32 - 1, 2**32 - 1)]
)
def test_sizes_are_refused_before_anything_is_waited_for(header: int, body: int) -> None:
    with pytest.raises(DecodeError, match="too large"):
        FrameReader(GatewayToHost).feed(struct.pack(">II", header, body))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, LARGE_BODY - 1, LARGE_BODY, LARGE_BODY + 1, 3 * LARGE_BODY]), max_size=5),
    st.lists(st.integers(LARGE_BODY // 8, 2 * LARGE_BODY), min_size=1, max_size=9),
)
def test_large_bodies_come_whole_however_they_are_cut(sizes: list[int], cuts: list[int]) -> None:
    sent = [(Cancel(id=number + 1), bytes([number + 1]) * size) for number, size in enumerate(sizes)]
    stream = memoryview(b"".join(wire(frame, body) for frame, body in sent))
    reader, found, at, turn = FrameReader(GatewayToHost), [], 0, 0
    while at < len(stream):
        found += reader.feed(stream[at : at + cuts[turn % len(cuts)]])
        at, turn = at + cuts[turn % len(cuts)], turn + 1
    assert found == sent
    assert reader.pending == 0
    assert all(type(body) is bytes for _, body in found)


def test_a_large_body_is_held_once() -> None:
    size = 64 * LARGE_BODY
    stream = wire(Cancel(id=1), bytes(size))
    reader = FrameReader(GatewayToHost)
    tracemalloc.start()
    try:
        for at in range(0, len(stream), LARGE_BODY):
            found = reader.feed(stream[at : at + LARGE_BODY])
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found[0][1]) == size
    assert size <= most < 1.3 * size


def test_a_reader_takes_no_larger_bodies_than_it_was_told() -> None:
    assert FrameReader(GatewayToHost, body_max=9).feed(wire(Cancel(id=1), bytes(9)))
    with pytest.raises(DecodeError, match="too large"):
        FrameReader(GatewayToHost, body_max=9).feed(struct.pack(">II", 20, 10))


def test_a_frame_too_large_is_not_written() -> None:
    with pytest.raises(DecodeError):
        encode_frame(Cancel(id=1), memoryview(bytearray(MAX_FRAME_BODY + 1)))


def test_unknown_fields_and_other_directions_are_refused() -> None:
    for header in ({"t": "cancel", "id": 1, "more": 2}, {"t": "hello"}, {"t": "nothing"}, {"id": 1}, []):
        raw = msgspec.msgpack.encode(header)
        with pytest.raises(DecodeError):
            FrameReader(GatewayToHost).feed(struct.pack(">II", len(raw), 0) + raw)


@pytest.mark.parametrize("kind", ["key.rotate", "worker.start", "policy.change", "inference.completed", ""])
def test_a_gateway_cannot_have_records_written_that_are_not_its_own(kind: str) -> None:
    """`key.rotate` with a detail that is no number would keep the host from ever starting again."""
    asked = AuditRead(
        caller=Caller(tenant="t", subject="s", authn="jwt", credential_binding=""),
        decision=Decision(policy_digest="d"),
        kind=kind,  # type: ignore[arg-type]
        detail={"key_ids": "none"},
    )
    with pytest.raises(DecodeError):
        FrameReader(GatewayToHost).feed(wire(asked))
