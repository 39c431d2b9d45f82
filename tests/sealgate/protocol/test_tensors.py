"""Tensors: numpy as the second opinion on bytes, every datatype, and strict refusals that say what was expected."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from sealgate.errors import DecodeError
from sealgate.limits import MAX_NAME, MAX_PARAMETERS, MAX_TENSOR_ELEMENTS, MAX_TENSOR_RANK
from sealgate.protocol.tensors import DATATYPES, Tensor, check_tensor, tensor_from_list, tensor_to_list

NUMPY = {
    "BOOL": "?",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
INTEGERS = [name for name in NUMPY if "INT" in name]
FLOATS = ["FP16", "FP32", "FP64", "BF16"]
shapes = st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def test_every_datatype_of_the_protocol_is_known() -> None:
    assert set(DATATYPES) == {*NUMPY, "BF16", "BYTES"}


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(sorted(NUMPY)), shapes, st.booleans())
def test_numpy_agrees(data: st.DataObject, datatype: str, shape: tuple[int, ...], nested: bool) -> None:
    dtype = np.dtype(NUMPY[datatype])
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    values = data.draw(st_numpy.arrays(dtype, shape, elements=st_numpy.from_dtype(dtype, **finite)))
    given_values = values.tolist() if nested and shape else values.ravel().tolist()
    tensor = tensor_from_list("x", datatype, shape, given_values)
    assert bytes(tensor.data) == values.tobytes()
    assert tensor_to_list(tensor) == values.ravel().tolist()
    if shape:
        assert tensor_to_list(tensor, nested=True) == values.tolist()
    raw = Tensor("x", datatype, shape, memoryview(values.tobytes()))
    assert tensor_to_list(raw) == values.ravel().tolist()


@settings(max_examples=500, deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bf16_is_the_nearest_value(value: float) -> None:
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    low, high = bits >> 16 << 16, (bits >> 16) + 1 << 16

    def as_float(pattern: int) -> float:
        return float(struct.unpack("<f", struct.pack("<I", pattern))[0])

    if not math.isfinite(as_float(high)) and abs(value - as_float(low)) * 2 >= abs(as_float(low)) * 2**-7:
        return  # rounds to infinity, see below
    (rounded,) = tensor_to_list(tensor_from_list("x", "BF16", [1], [value]))
    candidates = [one for one in (as_float(low), as_float(high)) if math.isfinite(one)]
    assert abs(rounded - value) == min(abs(one - value) for one in candidates)
    assert math.copysign(1, rounded) == math.copysign(1, value)


def test_bf16_ties_go_to_even_and_overflow_is_refused() -> None:
    tie_down, tie_up = 1 + 2**-8, 1 + 3 * 2**-8
    assert tensor_to_list(tensor_from_list("x", "BF16", [2], [tie_down, tie_up])) == [1.0, 1 + 2**-6]
    assert tensor_from_list("x", "BF16", [2], [1.0, -2.0]).data == bytes.fromhex("803f00c0")
    with pytest.raises(DecodeError):
        tensor_from_list("x", "BF16", [1], [3.4e38])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=20), max_size=10))
def test_bytes_elements(elements: list[bytes]) -> None:
    tensor = tensor_from_list("x", "BYTES", [len(elements)], elements)
    assert tensor.data == b"".join(struct.pack("<I", len(one)) + one for one in elements)
    assert tensor_to_list(tensor) == elements
    assert check_tensor(tensor) is tensor


def test_text_becomes_utf_8() -> None:
    assert tensor_from_list("x", "BYTES", [1], ["é"]).data == b"\x02\x00\x00\x00\xc3\xa9"


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integer_ranges(datatype: str) -> None:
    limits = np.iinfo(np.dtype(NUMPY[datatype]))
    assert tensor_to_list(tensor_from_list("x", datatype, [2], [limits.min, limits.max])) == [limits.min, limits.max]
    for value in (int(limits.min) - 1, int(limits.max) + 1, 2**70):
        with pytest.raises(DecodeError, match=f"tensor 'x': expected {datatype} .* integers from"):
            tensor_from_list("x", datatype, [1], [value])
    for other in (1.0, True, "1", None):
        with pytest.raises(DecodeError):
            tensor_from_list("x", datatype, [1], [other])


@pytest.mark.parametrize("datatype", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, "1.0", True, None])
def test_floats_must_be_finite_numbers(datatype: str, value: Any) -> None:
    with pytest.raises(DecodeError, match="finite numbers"):
        tensor_from_list("x", datatype, [1], [value])


@pytest.mark.parametrize(("datatype", "value"), [("FP16", 65536.0), ("FP32", 1e39), ("FP32", -1e39)])
def test_floats_must_fit(datatype: str, value: float) -> None:
    with pytest.raises(DecodeError, match="range of the datatype"):
        tensor_from_list("x", datatype, [1], [value])


@pytest.mark.parametrize("value", [0, 1, "true", None])
def test_bool_takes_only_booleans(value: Any) -> None:
    with pytest.raises(DecodeError, match="true or false"):
        tensor_from_list("x", "BOOL", [1], [value])


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ([2, 3], [1, 2, 3, 4, 5]),
        ([2, 3], [[1, 2], [3, 4], [5, 6]]),
        ([2, 3], [[1, 2, 3], [4, 5]]),
        ([2, 3], [[1, 2, 3], 4]),
        ([2, 2], [[1, 2], [3, [4]]]),
        ([2, 2], [1, 2, [3, 4]]),
        ([4], [[1, 2], [3, 4]]),
        ([1], 1),
        ([1], "1"),
        ([1], {0: 1}),
        ([0], [1]),
        ([2, 0], [[], [], []]),
        ([], []),
        ([], [1, 2]),
    ],
)
def test_values_must_fit_the_shape(shape: list[int], values: Any) -> None:
    with pytest.raises(DecodeError, match="tensor 'x'"):
        tensor_from_list("x", "INT32", shape, values)


@pytest.mark.parametrize(
    "shape",
    [
        [-1],
        [True],
        [1.0],
        ["1"],
        [1] * (MAX_TENSOR_RANK + 1),
        [MAX_TENSOR_ELEMENTS + 1],
        [2**62, 2**62, 2**62],
        [0, 2**62],
        [10**4000],
    ],
)
def test_shapes_are_bounded(shape: list[Any]) -> None:
    with pytest.raises(DecodeError, match="tensor 'x'"):
        tensor_from_list("x", "INT32", shape, [])
    with pytest.raises(DecodeError, match="tensor 'x'"):
        check_tensor(Tensor("x", "INT32", tuple(shape), b""))


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", (2,), bytes(7)),
        ("FP32", (2,), bytes(9)),
        ("BOOL", (2,), b"\x00\x02"),
        ("BYTES", (1,), b"\x01\x00\x00\x00"),
        ("BYTES", (1,), b"\x01\x00\x00"),
        ("BYTES", (1,), b"\xff\xff\xff\xff"),
        ("BYTES", (2,), b"\x01\x00\x00\x00x"),
        ("BYTES", (0,), b"\x00\x00\x00\x00"),
        ("FP8", (1,), b"\x00"),
        ("", (1,), b"\x00"),
        ("fp32", (1,), bytes(4)),
    ],
)
def test_raw_data_must_fit(datatype: str, shape: tuple[int, ...], data: bytes) -> None:
    with pytest.raises(DecodeError, match="input 'x'"):
        check_tensor(Tensor("x", datatype, shape, data), "input")


@pytest.mark.parametrize("name", ["", "x" * (MAX_NAME + 1), "a\nb", "a\x00", "\ud800"])
def test_names_are_short_and_printable(name: str) -> None:
    with pytest.raises(DecodeError) as caught:
        tensor_from_list(name, "INT32", [1], [1])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("parameters", [{"a": None}, {"a": [1]}, {"a": math.nan}, {"a": 2**63}, {"a": b"x"}])
def test_parameters_are_plain_values(parameters: dict[str, Any]) -> None:
    with pytest.raises(DecodeError, match="parameters"):
        check_tensor(Tensor("x", "INT8", (1,), b"\x01", parameters))


def test_parameters_are_few() -> None:
    check_tensor(Tensor("x", "INT8", (1,), b"\x01", {str(one): True for one in range(MAX_PARAMETERS)}))
    with pytest.raises(DecodeError):
        check_tensor(Tensor("x", "INT8", (1,), b"\x01", {str(one): True for one in range(MAX_PARAMETERS + 1)}))


def test_no_value_in_errors_or_repr() -> None:
    with pytest.raises(DecodeError) as caught:
        tensor_from_list("x", "INT8", [2], [77, 123456789])
    assert "123456789" not in str(caught.value)
    assert "secret" not in repr(Tensor("x", "BYTES", (1,), b"\x06\x00\x00\x00secret", {"p": "secret"}))
