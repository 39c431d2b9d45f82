"""Open Inference Protocol messages: both encodings, what foreign clients write, and strict refusals."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecodeError
from sealgate.limits import MAX_INFERENCE_JSON, MAX_NAME, MAX_TENSOR_ELEMENTS, MAX_TENSORS
from sealgate.protocol import inference
from sealgate.protocol.inference import (
    HEADER_LENGTH_FIELD,
    InferRequest,
    InferResponse,
    RequestedOutput,
    Tensor,
    decode_infer_request,
    decode_infer_response,
    encode_infer_request,
    encode_infer_response,
    tensor_from_list,
    tensor_to_list,
)

ROWS = tensor_from_list("rows", "FP32", [2, 3], [[1, 2, 3], [4.5, 5, 6]])
TEXTS = tensor_from_list("texts", "BYTES", [2], ["a", "bcd"])
FLAGS = tensor_from_list("flags", "BOOL", [2], [True, False])


def plain(document: Any) -> tuple[InferRequest, Any]:
    return decode_infer_request([("content-type", "application/json")], json.dumps(document).encode())


def mixed(document: Any, raw: bytes, length: int | None = None) -> tuple[InferRequest, Any]:
    head = json.dumps(document).encode()
    return decode_infer_request(
        [("Inference-Header-Content-Length", str(len(head) if length is None else length))], head + raw
    )


def one(**changes: Any) -> dict[str, Any]:
    """A request with one valid input, changed; None removes a member."""
    tensor = {"name": "x", "datatype": "INT32", "shape": [2], "data": [1, 2]} | changes
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}


# What others write ----------------------------------------------------------------------------------------------------


def test_request_as_the_protocol_document_shows_it() -> None:
    request, wanted = plain(
        {
            "id": "42",
            "inputs": [
                {"name": "input0", "shape": [2, 2], "datatype": "UINT32", "data": [1, 2, 3, 4]},
                {"name": "input1", "shape": [3], "datatype": "BOOL", "data": [True, False, True]},
            ],
            "outputs": [{"name": "output0"}],
        }
    )
    assert request.id == "42"
    assert tensor_to_list(request.inputs[0], nested=True) == [[1, 2], [3, 4]]
    assert request.inputs[1].data == b"\x01\x00\x01"
    assert request.outputs == (RequestedOutput("output0"),)
    assert wanted == frozenset()


def test_request_as_the_binary_extension_shows_it() -> None:
    """Two inputs, the second one raw, and one output asked for as raw bytes."""
    request, wanted = mixed(
        {
            "inputs": [
                {"name": "input0", "shape": [2, 2], "datatype": "UINT32", "parameters": {"binary_data_size": 16}},
                {"name": "input1", "shape": [3], "datatype": "BOOL", "parameters": {"binary_data_size": 3}},
                {"name": "input2", "shape": [1], "datatype": "BYTES", "data": ["x"]},
            ],
            "outputs": [
                {"name": "output0", "parameters": {"binary_data": True, "classification": 3}},
                {"name": "output1"},
            ],
        },
        struct.pack("<4I", 1, 2, 3, 4) + b"\x01\x00\x01",
    )
    assert tensor_to_list(request.inputs[0], nested=True) == [[1, 2], [3, 4]]
    assert tensor_to_list(request.inputs[1]) == [True, False, True]
    assert tensor_to_list(request.inputs[2]) == [b"x"]
    assert request.inputs[0].parameters == {}
    assert request.outputs == (RequestedOutput("output0", {"classification": 3}), RequestedOutput("output1"))
    assert wanted == frozenset({"output0"})


@pytest.mark.parametrize(
    ("parameters", "outputs", "wanted"),
    [
        ({}, [], frozenset()),
        ({"binary_data_output": True}, [], "all"),
        ({"binary_data_output": False}, [], frozenset()),
        ({"binary_data_output": True}, [{"name": "a"}, {"name": "b"}], frozenset({"a", "b"})),
        (
            {"binary_data_output": True},
            [{"name": "a", "parameters": {"binary_data": False}}, {"name": "b"}],
            frozenset({"b"}),
        ),
    ],
)
def test_which_outputs_are_raw(parameters: Any, outputs: Any, wanted: Any) -> None:
    request, got = plain(one() | {"parameters": parameters, "outputs": outputs})
    assert got == wanted
    assert request.parameters == {}


def test_response_bytes() -> None:
    response = InferResponse("m", "3", (ROWS, TEXTS), "42", {"note": 1})
    fields, body = encode_infer_response(response, binary_outputs=frozenset())
    assert fields == [("content-type", "application/json")]
    assert json.loads(body) == {
        "model_name": "m",
        "model_version": "3",
        "id": "42",
        "parameters": {"note": 1},
        "outputs": [
            {"name": "rows", "shape": [2, 3], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.5, 5.0, 6.0]},
            {"name": "texts", "shape": [2], "datatype": "BYTES", "data": ["a", "bcd"]},
        ],
    }
    fields, body = encode_infer_response(response, binary_outputs=frozenset({"rows"}))
    length = int(dict(fields)[HEADER_LENGTH_FIELD])
    assert body[length:] == struct.pack("<6f", 1, 2, 3, 4.5, 5, 6)
    described = json.loads(body[:length])["outputs"]
    assert described[0]["parameters"] == {"binary_data_size": 24}
    assert "data" not in described[0]
    assert described[1]["data"] == ["a", "bcd"]


def test_white_space_and_nesting() -> None:
    request, _ = decode_infer_request(
        [], b'{ "inputs" : [ {"name":"x","datatype":"FP64","shape":[2,1], "data" : [ [ 1 ] ,\n\t[ 2e0 ] ] } ] } '
    )
    assert tensor_to_list(request.inputs[0]) == [1.0, 2.0]


def test_raw_data_is_not_copied() -> None:
    head = json.dumps(one(data=None, parameters={"binary_data_size": 8})).encode()
    body = bytearray(head + struct.pack("<2i", 1, 2))
    request, _ = decode_infer_request([(HEADER_LENGTH_FIELD, str(len(head)))], memoryview(body))
    body[:] = bytes(len(body))
    assert tensor_to_list(request.inputs[0]) == [0, 0]


def test_non_finite_answers_need_raw_bytes() -> None:
    odd = Tensor("y", "FP32", (2,), struct.pack("<2f", math.nan, math.inf))
    response = InferResponse("m", "1", (odd,))
    with pytest.raises(DecodeError, match="output 'y': NaN and Infinity"):
        encode_infer_response(response, binary_outputs=frozenset())
    fields, body = encode_infer_response(response, binary_outputs="all")
    assert decode_infer_response(fields, body).outputs[0].data == odd.data
    with pytest.raises(DecodeError, match="output 'b': BYTES that are not UTF-8"):
        encode_infer_response(
            InferResponse("m", "1", (tensor_from_list("b", "BYTES", [1], [b"\xff"]),)), binary_outputs=frozenset()
        )


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (one(data=[1, 2, 3]), r"input 'x': expected INT32 data of shape \[2\]: 2 values, got 3"),
        (one(data=[1, 2.5]), "input 'x': expected INT32 .* integers from -2147483648 to 2147483647"),
        (one(data=[1, 2**31]), "input 'x': expected INT32"),
        (one(data=[1, True]), "input 'x': expected INT32"),
        (one(data=[1, "2"]), "input 'x': expected INT32"),
        (one(data=[[[1, 2]]]), "input 'x': .* a flat list or one nested 1 deep"),
        (one(shape=[2, 1], data=[[1, 2]]), "input 'x': .* lists nested like the shape"),
        (one(shape=[1, 2], data=[[1], 2]), "input 'x': expected INT32"),
        (one(data=1), "input 'x': .* a flat list"),
        (one(data="12"), "input 'x': .* a flat list"),
        (one(data={"0": 1}), "input 'x': .* a flat list"),
        (one(shape=[-2]), "input 'x': a shape"),
        (one(shape=[2] * 9), "input 'x': a shape"),
        (one(shape=[2**40]), "input 'x': more than"),
        (one(shape="2"), r"expected array, got str at \$\.inputs\[0\]\.shape"),
        (one(shape=[2.0]), r"expected int, got float at \$\.inputs\[0\]\.shape"),
        (one(datatype="FP8"), "input 'x': unknown datatype; known are BOOL"),
        (one(datatype=7), r"at \$\.inputs\[0\]\.datatype"),
        (one(name=""), "input: a name"),
        (one(name="x" * (MAX_NAME + 1)), "input: a name"),
        (one(name=None), r"the field 'name' is missing at \$\.inputs\[0\]"),
        (one(data=None), "input 'x': expected either data or the parameter binary_data_size"),
        (one(parameters={"binary_data_size": 8}), "input 'x': expected either data"),
        (one(data=None, parameters={"binary_data_size": 8}), "input 'x': expected binary_data_size bytes"),
        (one(parameters={"a": [1]}), r"at \$\.inputs\[0\]\.parameters"),
        (
            one(secret_extra=1),
            r"an unknown field at \$\.inputs\[0\]; known are name, shape, datatype, parameters, data",
        ),
        (one() | {"secret_extra": 1}, "an unknown field; known are inputs, id, parameters, outputs"),
        (one() | {"outputs": [{"name": "y", "secret_extra": 1}]}, r"at \$\.outputs\[0\]; known are name, parameters"),
        (one() | {"id": 7}, r"at \$\.id"),
        (one() | {"id": "x" * (MAX_NAME + 1)}, "id"),
        (one() | {"outputs": [{"name": "y"}, {"name": "y"}]}, "two outputs have the same name"),
        (one() | {"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "output 'y': .* true or false"),
        (one() | {"parameters": {"binary_data_output": "yes"}}, "binary_data_output must be true or false"),
        ({"inputs": one()["inputs"] * 2}, "two inputs have the same name"),
        ({"inputs": [one(name=f"x{i}")["inputs"][0] for i in range(MAX_TENSORS + 1)]}, "more than"),
        ({}, "inference request: the field 'inputs' is missing"),
        ([], "inference request: expected object, got array"),
        (None, "inference request"),
    ],
)
def test_refusals_name_the_place_and_what_was_expected(document: Any, text: str) -> None:
    with pytest.raises(DecodeError, match=text) as caught:
        plain(document)
    assert caught.value.code == "malformed"
    assert "secret_extra" not in str(caught.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "1e39", "nan", "+1", "01", ".5", "null"])
def test_numbers_beyond_json_are_refused(number: str) -> None:
    body = '{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[NUMBER]}]}'.replace("NUMBER", number)
    with pytest.raises(DecodeError):
        decode_infer_request([], body.encode())


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"inputs":[]} x', b"[" * 100_000, b'{"inputs":[],"id":"\\ud800"}']
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    for decode in (decode_infer_request, decode_infer_response):
        with pytest.raises(DecodeError):
            decode([], body)


@pytest.mark.parametrize(
    ("size", "raw", "length"),
    [
        (8, bytes(7), None),  # less than said
        (8, bytes(9), None),  # more than said
        (4, bytes(4), None),  # not what the shape calls for
        (-1, bytes(8), None),
        (8.0, bytes(8), None),
        (True, bytes(8), None),
        ("8", bytes(8), None),
        (8, bytes(8), 10_000),  # header longer than the body
        (8, bytes(8), 10),  # header cut
    ],
)
def test_raw_sizes_must_fit(size: Any, raw: bytes, length: int | None) -> None:
    document = one(data=None, parameters={"binary_data_size": size})
    with pytest.raises(DecodeError):
        mixed(document, raw, length)


@pytest.mark.parametrize("value", ["", "-1", "+1", "1.0", " 1", "1 ", "0x1", "١", "9" * 40])
def test_header_length_must_be_digits(value: str) -> None:
    body = json.dumps(one()).encode()
    with pytest.raises(DecodeError, match="Inference-Header-Content-Length"):
        decode_infer_request([(HEADER_LENGTH_FIELD, value)], body)


def test_header_length_stands_once() -> None:
    body = json.dumps(one()).encode()
    field = (HEADER_LENGTH_FIELD, str(len(body)))
    assert decode_infer_request([field], body)
    with pytest.raises(DecodeError):
        decode_infer_request([field, field], body)


def test_sizes_are_bounded() -> None:
    for fields in ([], [("inference-header-content-length", str(MAX_INFERENCE_JSON + 1))]):
        with pytest.raises(DecodeError, match="more than 16 MiB of JSON; send its tensors as binary data"):
            decode_infer_request(fields, b" " * (MAX_INFERENCE_JSON + 1))


def test_binary_numbers_may_be_more_than_those_that_are_made_one_by_one() -> None:
    count = MAX_TENSOR_ELEMENTS + 1
    tensor = Tensor("x", "UINT8", (count,), bytes(count))
    fields, body = encode_infer_request(InferRequest((tensor,)), binary=True)
    assert len(decode_infer_request(fields, body)[0].inputs[0].data) == count
    described = f'{{"inputs":[{{"name":"x","datatype":"UINT8","shape":[{count}],"data":[0]}}]}}'
    with pytest.raises(DecodeError, match=f"more than {MAX_TENSOR_ELEMENTS} elements"):
        decode_infer_request([], described.encode())
    texts = described.replace("UINT8", "BYTES").replace('"data":[0]', '"parameters":{"binary_data_size":0}')
    with pytest.raises(DecodeError, match=f"more than {MAX_TENSOR_ELEMENTS} elements"):
        decode_infer_request([("inference-header-content-length", str(len(texts)))], texts.encode())


@pytest.mark.parametrize("name", ["binary_data_size", "binary_data", "binary_data_output"])
def test_parameters_of_the_transport_are_not_the_callers(name: str) -> None:
    tensor = Tensor("x", "INT8", (1,), b"\x01", {name: True})
    clean = Tensor("x", "INT8", (1,), b"\x01")
    for request in (
        InferRequest((tensor,)),
        InferRequest((clean,), parameters={name: True}),
        InferRequest((clean,), (RequestedOutput("y", {name: True}),)),
    ):
        with pytest.raises(DecodeError, match="set by the encoding"):
            encode_infer_request(request, binary=True)


@pytest.mark.parametrize("binary", [False, True])
def test_the_encoder_checks_tensors_made_by_hand(binary: bool) -> None:
    with pytest.raises(DecodeError):
        encode_infer_request(InferRequest((Tensor("x", "FP32", (2,), bytes(7)),)), binary=binary)
    with pytest.raises(DecodeError):
        encode_infer_request(InferRequest((ROWS, ROWS)), binary=binary)
    with pytest.raises(DecodeError):
        encode_infer_request(InferRequest((ROWS,), id="\ud800"), binary=binary)


def test_responses_are_read_as_strictly() -> None:
    good = {"model_name": "m", "outputs": [one()["inputs"][0]]}
    assert decode_infer_response([], json.dumps(good).encode()).model_version == ""
    for bad in (
        good | {"model_name": ""},
        good | {"model_name": None},
        good | {"model_version": "v" * (MAX_NAME + 1)},
        good | {"error": "x"},
        {"outputs": []},
        good | {"outputs": good["outputs"] * 2},
    ):
        with pytest.raises(DecodeError):
            decode_infer_response([], json.dumps(bad).encode())


# Properties -----------------------------------------------------------------------------------------------------------

names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)
parameters = st.dictionaries(
    st.text(max_size=8).filter(lambda name: not name.startswith("binary_data")),
    st.text(max_size=8)
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False),
    max_size=3,
)
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
ELEMENTS: dict[str, st.SearchStrategy[Any]] = {
    "BOOL": st.booleans(),
    "UINT8": st.integers(0, 255),
    "INT16": st.integers(-(2**15), 2**15 - 1),
    "UINT64": st.integers(0, 2**64 - 1),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "FP16": st.floats(width=16, allow_nan=False, allow_infinity=False),
    "FP32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "FP64": st.floats(allow_nan=False, allow_infinity=False),
    "BF16": st.integers(-256, 256).map(float),
    "BYTES": st.text(max_size=6),
}


@st.composite
def tensors(draw: st.DrawFn, name: str) -> Tensor:
    datatype = draw(st.sampled_from(sorted(ELEMENTS)))
    shape = draw(shapes)
    count = math.prod(shape)
    values = draw(st.lists(ELEMENTS[datatype], min_size=count, max_size=count))
    made = tensor_from_list(name, datatype, shape, values)
    return Tensor(made.name, made.datatype, made.shape, made.data, draw(parameters))


@st.composite
def messages(draw: st.DrawFn) -> InferRequest:
    inputs = tuple(draw(tensors(name)) for name in draw(st.lists(names, max_size=3, unique=True)))
    outputs = tuple(RequestedOutput(name, draw(parameters)) for name in draw(st.lists(names, max_size=3, unique=True)))
    return InferRequest(inputs, outputs, draw(st.none() | st.text(max_size=10)), draw(parameters))


@settings(max_examples=200, deadline=None)
@given(messages(), st.booleans())
def test_requests_round_trip(request_: InferRequest, binary: bool) -> None:
    fields, body = encode_infer_request(request_, binary=binary)
    decoded, wanted = decode_infer_request(fields, body)
    assert decoded == request_
    everything = frozenset(output.name for output in request_.outputs) if request_.outputs else "all"
    assert wanted == (everything if binary else frozenset())


@settings(max_examples=200, deadline=None)
@given(messages(), st.data())
def test_responses_round_trip(request_: InferRequest, data: st.DataObject) -> None:
    response = InferResponse("model", "1", request_.inputs, request_.id, request_.parameters)
    chosen = [tensor.name for tensor in request_.inputs]
    wanted = data.draw(st.just("all") | st.sets(st.sampled_from(chosen or ["none"])).map(frozenset))
    fields, body = encode_infer_response(response, binary_outputs=wanted)
    assert decode_infer_response(fields, body) == response


def outcome(body: bytes) -> Any:
    try:
        return decode_infer_request([], body)
    except DecodeError as error:
        return str(error)


@st.composite
def odd_tensors(draw: st.DrawFn) -> dict[str, Any]:
    """Often right, often wrong by a little: a number out of range or of another type, one too many, lists in lists."""
    datatype = draw(st.sampled_from([*ELEMENTS, "UINT9"]))
    shape = draw(shapes)
    elements = ELEMENTS.get(datatype, st.integers())
    stranger = st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=2)
    count = math.prod(shape) + draw(st.sampled_from([0, 0, 0, 1]))
    data: Any = draw(st.lists(draw(st.sampled_from([elements, elements | stranger])), min_size=count, max_size=count))
    data = draw(st.sampled_from([data, data, data, [data], None, 7]))
    members = {"name": draw(names), "shape": shape, "datatype": datatype, "data": data, "parameters": draw(parameters)}
    if draw(st.booleans()):
        del members[draw(st.sampled_from(sorted(members)))]
    return dict(draw(st.permutations(sorted(members.items()))))


@settings(max_examples=400, deadline=None)
@given(st.lists(odd_tensors(), max_size=2))
def test_one_pass_and_two_say_the_same(described: list[dict[str, Any]]) -> None:
    body = json.dumps({"inputs": described}).encode()
    at_once = outcome(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "ONE_PASS_JSON", -1)
        patch.setattr(inference, "_flat_request_decoder", None)  # nothing is read by it
        assert outcome(body) == at_once


def test_flat_lists_are_read_in_one_pass_and_long_documents_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_request_decoder", None)
    assert plain(one(shape=[600], data=[1] * 600))[0].inputs[0].shape == (600,)
    with pytest.raises(AttributeError):  # by the other one, which is not there
        plain(one(shape=[600_000], data=[1] * 600_000))


def decode_anything(fields: list[tuple[str, str]], body: bytes) -> None:
    for decode in (decode_infer_request, decode_infer_response):
        text = ""
        try:
            decode(fields, body)
        except DecodeError as error:
            text = str(error)
        assert len(text) < 500
        assert text.isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), json_values, st.integers(0, 80))
def test_garbage_is_refused_in_one_way(data: bytes, value: Any, length: int) -> None:
    decode_anything([], data)
    decode_anything([], json.dumps(value).encode())
    decode_anything([(HEADER_LENGTH_FIELD, str(length))], json.dumps(value).encode() + data)


@settings(max_examples=400, deadline=None)
@given(st.data(), json_values)
def test_damaged_messages_are_refused_in_one_way(data: st.DataObject, value: Any) -> None:
    # One member replaced by anything.
    document: dict[str, Any] = one(shape=[2, 1], parameters={"p": 1}) | {"outputs": [{"name": "y"}], "id": "1"}
    places = [document, document["inputs"][0], document["outputs"][0]]
    place = data.draw(st.sampled_from(places))
    place[data.draw(st.sampled_from(sorted(place)))] = value
    decode_anything([], json.dumps(document).encode())
    # One byte replaced by anything, or the end cut off, in a message with raw data.
    fields, body = encode_infer_request(InferRequest((ROWS, TEXTS, FLAGS)), binary=True)
    at = data.draw(st.integers(0, len(body) - 1))
    decode_anything(fields, body[:at] + data.draw(st.binary(min_size=1, max_size=1)) + body[at + 1 :])
    decode_anything(fields, body[:at])
