"""The safetensors header against the library that everybody uses, and against files made to mislead."""

from __future__ import annotations

import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from sealgate.certificate.weights import parse_weights_header
from sealgate.errors import CertificateError


def file(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else msgspec.json.encode(header)
    return struct.pack("<Q", len(text)) + text + data


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def code_of(data: bytes) -> str:
    with pytest.raises(CertificateError) as caught:
        parse_weights_header(data)
    return caught.value.code


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.lists(st.integers(1, 4), min_size=1, max_size=3),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=80)
def test_the_library_and_we_read_the_same(shapes):
    tensors = {name: np.random.default_rng(1).random(shape).astype(np.float32) for name, shape in shapes.items()}
    data = save(tensors)
    places = parse_weights_header(data)
    assert {name: place.shape for name, place in places.items()} == {n: t.shape for n, t in tensors.items()}
    for name, values in load(data).items():
        place = places[name]
        assert np.array_equal(np.frombuffer(data[place.start : place.end], "<f4").reshape(place.shape), values)


MISLEADING = {
    "empty": b"",
    "short": b"\0" * 7,
    "huge header": struct.pack("<Q", 2**63) + b"{}",
    "header beyond the file": struct.pack("<Q", 100) + b"{}",
    "no tensors": file({}, b""),
    "not json": file(b"\xff\xfe", b""),
    "array": file([1], b""),
    "deep": file(b"[" * 100_000, b""),
    "metadata": file({"__metadata__": {"a": "b"}, "x": entry(0, 4, [1])}, b"\0" * 4),
    "float16": file({"x": entry(0, 2, [1], "F16")}, b"\0" * 2),
    "gap": file({"x": entry(4, 8, [1])}, b"\0" * 8),
    "hole": file({"x": entry(0, 4, [1]), "y": entry(8, 12, [1])}, b"\0" * 12),
    "overlap": file({"x": entry(0, 4, [1]), "y": entry(0, 4, [1])}, b"\0" * 4),
    "trailing": file({"x": entry(0, 4, [1])}, b"\0" * 5),
    "too little": file({"x": entry(0, 8, [2])}, b"\0" * 4),
    "shape and size": file({"x": entry(0, 4, [2])}, b"\0" * 4),
    "negative": file({"x": entry(0, 4, [-1, -1])}, b"\0" * 4),
    "zero": file({"x": entry(0, 0, [0])}, b""),
    "overflow": file({"x": entry(0, 4, [2**31, 2**31, 4])}, b"\0" * 4),
    "bool": file({"x": entry(0, 4, [True])}, b"\0" * 4),
    "extra field": file({"x": {**entry(0, 4, [1]), "z": 1}}, b"\0" * 4),
    "many": file({f"x{i}": entry(4 * i, 4 * i + 4, [1]) for i in range(2000)}, b"\0" * 8000),
}


@pytest.mark.parametrize("name", MISLEADING)
def test_files_made_to_mislead(name):
    assert code_of(MISLEADING[name]) == "weights-header"


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=200)
def test_garbage(data, framed):
    assert code_of(file(data, b"") if framed else data) == "weights-header"
