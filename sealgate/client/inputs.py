"""From what a program holds (lists, numpy arrays, tensors) to Open Inference Protocol tensors, and back.

numpy is used if it was imported by the caller already, never imported here for its own sake. Values are converted to
the datatype that the model declares; a loss of precision from FP64 to FP32 is accepted, a wrong shape is not.

Trusts: the model's sealed metadata. Never: shows a value in an error.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from sealgate.client.errors import UsageError
from sealgate.client.metadata import ModelMetadata, TensorMetadata
from sealgate.protocol.inference import Tensor, tensor_from_list

Values: TypeAlias = Any
"""A nested list or a numpy array: whatever has the model's shape."""

Inputs: TypeAlias = "Values | Mapping[str, Values | Tensor] | Sequence[Tensor]"

_NUMPY = {
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


def ready_tensors(inputs: Inputs) -> tuple[Tensor, ...] | None:
    """The inputs, if they are tensors already and need no metadata."""
    listed = list(inputs.values()) if isinstance(inputs, Mapping) else inputs
    if isinstance(listed, list | tuple) and listed and all(isinstance(item, Tensor) for item in listed):
        return tuple(listed)
    return None


def to_tensors(inputs: Inputs, metadata: ModelMetadata) -> tuple[Tensor, ...]:
    """Tensors as the model declares them; raises UsageError that says what the model takes."""
    ready = ready_tensors(inputs)
    if ready is not None:
        return ready
    declared = {spec.name: spec for spec in metadata.inputs}
    if not isinstance(inputs, Mapping):
        if len(declared) != 1:
            raise UsageError(f"the model has {len(declared)} inputs; give them by name: {', '.join(declared)}")
        inputs = {metadata.inputs[0].name: inputs}
    columns = _columns(inputs, declared, metadata)
    unknown = sorted(set(inputs) - set(declared) - set(columns))
    if unknown:
        raise UsageError(f"the model has no input '{unknown[0]}'; it has: {', '.join(declared)}")
    return tuple(
        value if isinstance(value, Tensor) else _to_tensor(columns.get(name) or declared[name], value, metadata)
        for name, value in inputs.items()
    )


def to_numpy(tensor: Tensor) -> Any:
    """The tensor as a numpy array of its own; raises UsageError if numpy is missing or has no such type."""
    try:
        import numpy as np
    except ModuleNotFoundError as error:
        raise UsageError("numpy is not installed; use result.outputs, which are lists") from error
    if tensor.datatype not in _NUMPY:
        raise UsageError(f"numpy has no type for {tensor.datatype}; use result.outputs, which are lists")
    return np.frombuffer(tensor.data, dtype=_NUMPY[tensor.datatype]).reshape(tensor.shape).copy()


def _columns(
    inputs: Mapping[str, Any], declared: Mapping[str, TensorMetadata], metadata: ModelMetadata
) -> dict[str, TensorMetadata]:
    """For a table that is given column by column, what each of the given columns is: numbers of the table's datatype,
    or texts where the model has columns `NAME=value`."""
    first = metadata.inputs[0]
    if first.name in inputs or metadata.parameters.contents.get(first.name) != "table":
        return {}
    names = set(metadata.parameters.columns)
    kinds = {name.partition("=")[0] for name in names if "=" in name} - names
    return {
        name: TensorMetadata(name=name, datatype="BYTES" if name in kinds else first.datatype, shape=(-1,))
        for name in inputs
        if name not in declared and (name in names or name in kinds)
    }


def _pictures(spec: TensorMetadata, value: Values, metadata: ModelMetadata) -> TensorMetadata | None:
    """What an image input is where encoded pictures are given for it: BYTES [rows]."""
    given = isinstance(value, list | tuple) and bool(value) and all(isinstance(one, bytes) for one in value)
    if not given or not metadata.parameters.encodings.get(spec.name):
        return None
    return TensorMetadata(name=spec.name, datatype="BYTES", shape=(-1,))


def _to_tensor(spec: TensorMetadata, value: Values, metadata: ModelMetadata) -> Tensor:
    numpy = sys.modules.get("numpy")
    if hasattr(value, "to_numpy"):  # a column of a pandas or polars frame
        value = value.to_numpy()
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _from_numpy(numpy, spec, value)
    spec = _pictures(spec, value, metadata) or spec
    if not isinstance(value, list | tuple):
        raise UsageError(f"input '{spec.name}' must be a list, a numpy array or a Tensor")
    shape = _list_shape(value, len(spec.shape))
    _require_shape(spec, shape)
    flat = list(value)
    for _ in shape[1:]:
        flat = [item for row in flat for item in row]
    try:
        if spec.datatype in ("FP16", "BF16", "FP32", "FP64"):
            flat = [float(item) for item in flat]
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"input '{spec.name}' must hold numbers ({spec.datatype})") from error
    return tensor_from_list(spec.name, spec.datatype, shape, flat)


def _from_numpy(numpy: Any, spec: TensorMetadata, value: Any) -> Tensor:
    _require_shape(spec, value.shape)
    if spec.datatype not in _NUMPY or value.dtype.kind not in "biuf":
        return tensor_from_list(spec.name, spec.datatype, value.shape, value.reshape(-1).tolist())
    wanted = numpy.dtype(_NUMPY[spec.datatype])
    if not numpy.can_cast(value.dtype, wanted, casting="same_kind"):
        raise UsageError(f"input '{spec.name}' is {value.dtype}, the model takes {spec.datatype}")
    with numpy.errstate(over="ignore"):
        cast = numpy.ascontiguousarray(value, dtype=wanted)
    if wanted.kind == "f" and not numpy.isfinite(cast).all():
        raise UsageError(f"input '{spec.name}' holds NaN, infinity or numbers too large for {spec.datatype}")
    return Tensor(spec.name, spec.datatype, tuple(int(size) for size in value.shape), cast.tobytes())


def _require_shape(spec: TensorMetadata, shape: Sequence[int]) -> None:
    fits = len(shape) == len(spec.shape) and all(
        want in (-1, have) for want, have in zip(spec.shape, shape, strict=True)
    )
    if not fits or 0 in shape:
        want = ", ".join("rows" if size == -1 else str(size) for size in spec.shape)
        have = ", ".join(map(str, shape))
        raise UsageError(f"input '{spec.name}' has shape [{have}], the model takes [{want}]")


def _list_shape(value: Sequence[Any], rank: int) -> tuple[int, ...]:
    """The shape of nested lists, as far as the model's rank goes; ragged lists are an error."""
    shape: list[int] = []
    level: list[Any] = [value]
    for _ in range(rank):
        if not level or not all(isinstance(item, list | tuple) for item in level):
            break
        sizes = {len(item) for item in level}
        if len(sizes) != 1:
            raise UsageError("the rows of an input differ in length")
        shape.append(sizes.pop())
        level = [inner for item in level for inner in item]
    return tuple(shape)
