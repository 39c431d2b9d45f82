"""Open Inference Protocol v2 `infer` messages: JSON, and the extension that carries tensors as raw bytes behind it.

    plain   body := JSON
    binary  body := JSON (its length in the field Inference-Header-Content-Length) | raw data of each binary tensor

Works on header fields and a body, whatever carries them. A tensor is binary if its parameter `binary_data_size` says
so; an answer's output is binary if the request asked (`binary_data` of the output, else `binary_data_output` of the
request). Those three parameters belong to the transport: they are set and removed here, and never seen elsewhere.

Trusts nothing: fields that the protocol does not name, missing or trailing bytes, sizes that do not fit, doubled names
and non-finite JSON numbers are refused. Texts name the tensor and what was expected, never a value. They are meant for
the caller, inside the seal. Never: looks at what a model accepts; the engine does.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from sealgate.errors import DecodeError
from sealgate.limits import MAX_INFERENCE_JSON, MAX_NAME, MAX_TENSORS, ONE_PASS_JSON
from sealgate.protocol.tensors import (
    DATATYPES,
    Parameter,
    Parameters,
    Tensor,
    check_name,
    check_parameters,
    check_tensor,
    tensor_from_flat,
    tensor_from_json,
    tensor_from_list,
    tensor_to_list,
)

__all__ = [
    "DATATYPES",
    "HEADER_LENGTH_FIELD",
    "BinaryOutputs",
    "InferRequest",
    "InferResponse",
    "RequestedOutput",
    "Tensor",
    "decode_infer_request",
    "decode_infer_response",
    "encode_infer_request",
    "encode_infer_response",
    "tensor_from_list",
    "tensor_to_list",
]

HEADER_LENGTH_FIELD = "inference-header-content-length"
_NAME_SIZE = len(HEADER_LENGTH_FIELD)
_LENGTH = re.compile("[0-9]{1,9}")
_TRANSPORT = frozenset({"binary_data_size", "binary_data", "binary_data_output"})

HeaderFields: TypeAlias = Iterable[tuple[str, str]]
Bytes: TypeAlias = bytes | bytearray | memoryview
BinaryOutputs: TypeAlias = frozenset[str] | Literal["all"]
"""Which outputs of an answer are to be raw bytes."""


class RequestedOutput(msgspec.Struct, frozen=True):
    """An output that the caller wants. Without any, the model's outputs are all given."""

    name: str
    parameters: Parameters = {}

    def __repr__(self) -> str:
        return f"RequestedOutput(name={self.name!r})"


class InferRequest(msgspec.Struct, frozen=True):
    """A request to infer. Decoded, it proves that every tensor is complete and that names are unique."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    id: str | None = None
    parameters: Parameters = {}

    def __repr__(self) -> str:
        return f"InferRequest(inputs={self.inputs!r}, outputs={self.outputs!r}, id={self.id!r})"


class InferResponse(msgspec.Struct, frozen=True):
    """An answer. Decoded, it proves that every tensor is complete and that names are unique."""

    model_name: str
    model_version: str
    outputs: tuple[Tensor, ...]
    id: str | None = None
    parameters: Parameters = {}

    def __repr__(self) -> str:
        named = f"model_name={self.model_name!r}, model_version={self.model_version!r}"
        return f"InferResponse({named}, outputs={self.outputs!r}, id={self.id!r})"


# The JSON documents ---------------------------------------------------------------------------------------------------


class _JsonTensor(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: dict[str, Parameter] = {}
    data: msgspec.Raw = msgspec.Raw()

    @property
    def inline(self) -> bool:
        """Whether its data stand in the JSON."""
        return bool(bytes(self.data))

    def tensor(self, label: str) -> Tensor:
        """Of the data in the JSON; raises DecodeError."""
        return tensor_from_json(label, self.name, self.datatype, self.shape, bytes(self.data))


class _JsonOutput(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    parameters: dict[str, Parameter] = {}


class _JsonRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    inputs: list[_JsonTensor]
    id: str | None = None
    parameters: dict[str, Parameter] = {}
    outputs: list[_JsonOutput] = []


class _JsonResponse(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    model_name: str
    outputs: list[_JsonTensor]
    model_version: str = ""
    id: str | None = None
    parameters: dict[str, Parameter] = {}


class _FlatTensor(msgspec.Struct, forbid_unknown_fields=True):
    """One of a known datatype; `data`, if any stand in the JSON, are a flat list of what that is made of."""

    name: str
    shape: tuple[int, ...]
    parameters: dict[str, Parameter] = {}
    data: Any = msgspec.UNSET

    @property
    def datatype(self) -> str:
        """The tag in the JSON."""
        return _flat_tensors[type(self)]

    @property
    def inline(self) -> bool:
        """Whether its data stand in the JSON."""
        return self.data is not msgspec.UNSET

    def tensor(self, label: str) -> Tensor:
        """Of the data in the JSON; raises DecodeError."""
        return tensor_from_flat(label, self.name, self.datatype, self.shape, self.data)


def _flat_tensor(datatype: str, element: type) -> type[msgspec.Struct]:
    return msgspec.defstruct(
        f"_Flat{datatype}",
        [("data", list[element] | msgspec.UnsetType, msgspec.UNSET)],  # type: ignore[valid-type]  # made at run time
        bases=(_FlatTensor,),
        tag_field="datatype",
        tag=datatype,
        forbid_unknown_fields=True,
    )


_flat_tensors = {_flat_tensor(name, datatype.json): name for name, datatype in DATATYPES.items()}
_FlatRequest = msgspec.defstruct(
    "_FlatRequest",
    [
        ("inputs", list[functools.reduce(operator.or_, _flat_tensors)]),  # type: ignore[misc]  # made at run time
        ("id", str | None, None),
        ("parameters", dict[str, Parameter], {}),
        ("outputs", list[_JsonOutput], []),
    ],
    forbid_unknown_fields=True,
)

_Document = TypeVar("_Document", _JsonRequest, _JsonResponse)
_encoder = msgspec.json.Encoder()
_request_decoder = msgspec.json.Decoder(_JsonRequest)
_flat_request_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_FlatRequest)
_response_decoder = msgspec.json.Decoder(_JsonResponse)
_PATH = re.compile(r" - at `(\$[.\[\]a-z_0-9]*)`$")
_MISSING = re.compile(r"Object missing required field `([a-z_]+)`")
_EXPECTED = re.compile(r"Expected `([a-z |]+)`, got `([a-z]+)`")


def _parse(decoder: msgspec.json.Decoder[_Document], document: Bytes, what: str) -> _Document:
    try:
        return decoder.decode(document)
    except msgspec.ValidationError as error:
        raise DecodeError(f"{what}: {_in_words(str(error), decoder.type)}") from error
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise DecodeError(f"{what}: not a JSON document") from error


def _in_words(told: str, document: type[msgspec.Struct]) -> str:
    """What is wrong, and where. The library names places by our own field names and kinds by JSON's; of a message that
    may quote the document, nothing is shown."""
    place = _PATH.search(told)
    where = f" at {place[1]}" if place else ""
    if missing := _MISSING.match(told):
        return f"the field '{missing[1]}' is missing{where}"
    if expected := _EXPECTED.match(told):
        return f"expected {expected[1].replace(' | ', ' or ')}, got {expected[2]}{where}"
    if not told.startswith("Object contains unknown field"):
        return f"a field is out of range{where}"
    kind = document
    if place and place[1].startswith(("$.inputs", "$.outputs")):
        asked = document is _JsonRequest and place[1].startswith("$.outputs")
        kind = _JsonOutput if asked else _JsonTensor
    return f"an unknown field{where}; known are {', '.join(kind.__struct_encode_fields__)}"


# Requests -------------------------------------------------------------------------------------------------------------


def encode_infer_request(request: InferRequest, *, binary: bool) -> tuple[list[tuple[str, str]], bytes]:
    """Header fields and body. `binary` sends every input raw and asks for raw outputs."""
    _check_head(request.id, request.parameters)
    _check_unique(request.outputs, "output")
    for output in request.outputs:
        _check_own_parameters(output.parameters, "output", output.name)
    inputs, raw = _encode_tensors(request.inputs, "all" if binary else frozenset(), "input")
    document = _JsonRequest(
        inputs=inputs,
        id=request.id,
        parameters=dict(request.parameters) | ({"binary_data_output": True} if binary else {}),
        outputs=[_JsonOutput(output.name, dict(output.parameters)) for output in request.outputs],
    )
    return _assemble(document, raw)


def decode_infer_request(fields: HeaderFields, body: Bytes) -> tuple[InferRequest, BinaryOutputs]:
    """The request, and which outputs its caller wants as raw bytes. Raises DecodeError. Data are views into `body`."""
    head, raw = _disassemble(fields, body)
    document = _parse_request(head)
    inputs = _decode_tensors(document.inputs, raw, "input")
    outputs = tuple([RequestedOutput(one.name, _without_transport(one.parameters)) for one in document.outputs])
    _check_unique(outputs, "output")
    request = InferRequest(inputs, outputs, document.id, _without_transport(document.parameters))
    _check_head(request.id, request.parameters)
    default = _flag(document.parameters, "binary_data_output", "inference request", default=False)
    if not outputs:
        return request, "all" if default else frozenset()
    wanted = (
        one.name
        for one in document.outputs
        if _flag(one.parameters, "binary_data", f"output '{one.name}'", default=default)
    )
    return request, frozenset(wanted)


def _parse_request(document: memoryview) -> Any:
    """As most clients write it, flat lists, in one pass over it. What is not of that form is read in two: the data of a
    tensor once its shape is known, which also finds the words for what is wrong."""
    if len(document) <= ONE_PASS_JSON:
        try:
            return _flat_request_decoder.decode(document)
        except (msgspec.DecodeError, RecursionError, UnicodeError, OverflowError):
            pass
    return _parse(_request_decoder, document, "inference request")


# Answers --------------------------------------------------------------------------------------------------------------


def encode_infer_response(
    response: InferResponse, *, binary_outputs: BinaryOutputs
) -> tuple[list[tuple[str, str]], bytes]:
    """Header fields and body; `binary_outputs` as `decode_infer_request` gave it.

    Raises DecodeError for values that JSON cannot carry (NaN, Infinity, BYTES that are not UTF-8).
    """
    _check_head(response.id, response.parameters)
    outputs, raw = _encode_tensors(response.outputs, binary_outputs, "output")
    document = _JsonResponse(
        model_name=response.model_name,
        model_version=response.model_version,
        id=response.id,
        parameters=dict(response.parameters),
        outputs=outputs,
    )
    return _assemble(document, raw)


def decode_infer_response(fields: HeaderFields, body: Bytes) -> InferResponse:
    """The answer. Raises DecodeError. Data are views into `body`."""
    head, raw = _disassemble(fields, body)
    document = _parse(_response_decoder, head, "inference response")
    outputs = _decode_tensors(document.outputs, raw, "output")
    parameters = _without_transport(document.parameters)
    _check_head(document.id, parameters)
    check_name(document.model_name, "model")
    if len(document.model_version) > MAX_NAME:
        raise DecodeError("inference response: the model version is too long")
    return InferResponse(document.model_name, document.model_version, outputs, document.id, parameters)


# What both share ------------------------------------------------------------------------------------------------------


def _assemble(document: msgspec.Struct, raw: Sequence[Bytes]) -> tuple[list[tuple[str, str]], bytes]:
    """A body with raw tensors names the length of its JSON; one without is plain JSON."""
    try:
        head = _encoder.encode(document)
    except (UnicodeError, OverflowError) as error:
        raise DecodeError("inference message: text or a number has no form in JSON") from error
    if not raw:
        return [("content-type", "application/json")], head
    fields = [("content-type", "application/octet-stream"), (HEADER_LENGTH_FIELD, str(len(head)))]
    return fields, b"".join((head, *raw))


def _disassemble(fields: HeaderFields, body: Bytes) -> tuple[memoryview, memoryview | None]:
    """The JSON, and what follows it; None if the message says that it is JSON only."""
    view = memoryview(body).cast("B")
    lengths = [value for name, value in fields if len(name) == _NAME_SIZE and name.lower() == HEADER_LENGTH_FIELD]
    if not lengths:
        return _small_json(view), None
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]) or int(lengths[0]) > len(view):
        raise DecodeError("Inference-Header-Content-Length is not the length of a part of the body")
    return _small_json(view[: int(lengths[0])]), view[int(lengths[0]) :]


def _small_json(document: memoryview) -> memoryview:
    if len(document) > MAX_INFERENCE_JSON:
        raise DecodeError(
            f"the inference message has more than {MAX_INFERENCE_JSON >> 20} MiB of JSON; "
            "send its tensors as binary data, or fewer rows at once"
        )
    return document


def _encode_tensors(
    tensors: Sequence[Tensor], binary: BinaryOutputs, role: str
) -> tuple[list[_JsonTensor], list[Bytes]]:
    described: list[_JsonTensor] = []
    raw: list[Bytes] = []
    _check_unique(tensors, role)
    for tensor in tensors:
        _check_own_parameters(tensor.parameters, role, tensor.name)
        one = _JsonTensor(tensor.name, tuple(tensor.shape), tensor.datatype, dict(tensor.parameters))
        if binary == "all" or tensor.name in binary:
            data = memoryview(check_tensor(tensor, role).data).cast("B")
            one.parameters["binary_data_size"] = len(data)
            raw.append(data)
        else:
            one.data = msgspec.Raw(_json_values(tensor, role))
        described.append(one)
    return described, raw


def _json_values(tensor: Tensor, role: str) -> bytes:
    values = tensor_to_list(tensor)
    try:
        if tensor.datatype == "BYTES":
            return _encoder.encode([value.decode() for value in values])
        encoded = _encoder.encode(values)
    except UnicodeDecodeError as error:
        raise DecodeError(f"{role} '{tensor.name}': BYTES that are not UTF-8 must be sent as binary data") from error
    if b"n" in encoded:  # msgspec writes NaN and Infinity as null; nothing else here has an "n"
        raise DecodeError(f"{role} '{tensor.name}': NaN and Infinity must be sent as binary data")
    return encoded


def _decode_tensors(
    described: Sequence[_JsonTensor | _FlatTensor], raw: memoryview | None, role: str
) -> tuple[Tensor, ...]:
    _check_unique(described, role)
    tensors: list[Tensor] = []
    for one in described:
        parameters = _without_transport(one.parameters)
        size = one.parameters.get("binary_data_size")
        if (size is None) == (not one.inline):
            raise DecodeError(f"{role} '{one.name}': expected either data or the parameter binary_data_size")
        if size is None:
            label = f"{role} '{one.name}'"
            check_parameters(parameters, label)
            tensor = one.tensor(label)
            tensors.append(Tensor(tensor.name, tensor.datatype, tensor.shape, tensor.data, parameters))
            continue
        if raw is None or type(size) is not int or not 0 <= size <= len(raw):
            raise DecodeError(f"{role} '{one.name}': expected binary_data_size bytes of data behind the JSON")
        tensors.append(check_tensor(Tensor(one.name, one.datatype, one.shape, raw[:size], parameters), role))
        raw = raw[size:]
    if raw:
        raise DecodeError("there is data behind that of the last tensor")
    return tuple(tensors)


def _check_head(message_id: str | None, parameters: Parameters) -> None:
    if message_id is not None and len(message_id) > MAX_NAME:
        raise DecodeError(f"the message's id has more than {MAX_NAME} characters")
    _check_own_parameters(parameters, "inference message")


def _check_own_parameters(parameters: Parameters, role: str, name: str = "") -> None:
    if not parameters:
        return
    label = f"{role} '{name}'" if name else role
    check_parameters(parameters, label)
    if not _TRANSPORT.isdisjoint(parameters):
        raise DecodeError(f"{label}: {', '.join(sorted(_TRANSPORT))} are set by the encoding only")


def _check_unique(named: Sequence[Tensor | RequestedOutput | _JsonTensor | _FlatTensor], role: str) -> None:
    """Raise DecodeError for too many, for a name that is none, and for one that stands twice."""
    if len(named) > MAX_TENSORS:
        raise DecodeError(f"more than {MAX_TENSORS} {role}s")
    names = {one.name for one in named}
    for name in names:
        check_name(name, role)
    if len(names) != len(named):
        raise DecodeError(f"two {role}s have the same name")


def _without_transport(parameters: Mapping[str, Any]) -> dict[str, Parameter]:
    if not parameters:
        return {}
    return {name: value for name, value in parameters.items() if name not in _TRANSPORT}


def _flag(parameters: Mapping[str, Any], name: str, label: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise DecodeError(f"{label}: the parameter {name} must be true or false")
    return value
