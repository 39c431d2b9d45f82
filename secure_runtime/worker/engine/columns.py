"""A table that comes column by column, as frames of data are sent: each column one tensor [rows] or [rows, 1].

The names are the manifest's columns. A text column that the trainer turned into columns `NAME=value` of zeros and ones
may come as one BYTES tensor NAME, whose values are those of the public list; `NAME=*` stands for all others.

A column's numbers become those of the declared datatype: floating point is rounded to nearest, a whole number must be
one that the datatype holds. Nothing is filled in: a missing column, an unknown one or a value that does not fit is an
error that names it.

Trusts: the checked manifest. Never: guesses which column was meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import torch

from sealgate.certificate.inputs import InputTensor, TableContent
from sealgate.limits import MAX_TENSOR_ELEMENTS
from sealgate.protocol.inference import Tensor, tensor_to_list
from secure_runtime.errors import BadInput
from secure_runtime.models.wire import HELD_AS, READ_AS
from secure_runtime.worker.engine.tensors import numbers_of

_OTHERS = "*"
_SHOWN = 8  # values of a list that one error names


def columns_in(given: Set[str], spec: InputTensor) -> frozenset[str]:
    """Which of the given tensors are columns of this input; none where it is no table."""
    if not isinstance(spec.content, TableContent):
        return frozenset()
    names = {column.name for column in spec.columns}
    return frozenset(given & (names | {name.partition("=")[0] for name in names if "=" in name}))


def table_of(given: Mapping[str, Tensor], spec: InputTensor) -> torch.Tensor:
    """The table [rows, columns] that the tensors of `columns_in` make up; raises BadInput."""
    rows: int | None = None
    for name, tensor in given.items():
        if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ((), (1,)):
            raise BadInput(f"column '{name}' has shape {list(tensor.shape)}, expected [rows]", code="input-shape")
        rows = tensor.shape[0] if rows is None else rows
        if tensor.shape[0] != rows:
            raise BadInput(
                f"column '{name}' has {tensor.shape[0]} rows, expected {rows} as in the first column",
                code="input-shape",
            )
    if not rows:
        raise BadInput(f"input '{spec.name}' has no rows")
    if rows * len(spec.columns) > MAX_TENSOR_ELEMENTS:
        raise BadInput(f"input '{spec.name}' has too many rows; send fewer at once", status=413)
    table = torch.empty(rows, len(spec.columns), dtype=HELD_AS[spec.datatype])
    texts = {name: tensor_to_list(tensor) for name, tensor in given.items() if tensor.datatype == "BYTES"}
    for place, column in enumerate(spec.columns):
        kind, marked, value = column.name.partition("=")
        if column.name in given:
            table[:, place] = _converted(given[column.name], spec)
        elif marked and kind in texts:
            listed = _listed(spec, kind)
            table[:, place] = torch.tensor([_is(text, value, listed, kind) for text in texts[kind]])
        elif marked and kind in given:
            raise BadInput(f"column '{kind}' is {given[kind].datatype}, expected BYTES", code="input-datatype")
        else:
            raise BadInput(f"column '{column.name}' of input '{spec.name}' is missing; send all columns, or one tensor")
    return table


def _listed(spec: InputTensor, kind: str) -> frozenset[str]:
    """The public list of a text column's values."""
    return frozenset(column.name.partition("=")[2] for column in spec.columns if column.name.startswith(f"{kind}="))


def _is(text: bytes, value: str, listed: frozenset[str], kind: str) -> float:
    said = text.decode(errors="replace")
    known = said in listed and said != _OTHERS
    if not known and _OTHERS not in listed:
        some = ", ".join(f"'{one}'" for one in sorted(listed)[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
        raise BadInput(f"column '{kind}' has a value that is none of {some}", code="input-range")
    return float(said == value if known else value == _OTHERS)


def _converted(tensor: Tensor, spec: InputTensor) -> torch.Tensor:
    """[rows] in the type that the declared datatype is held as."""
    if tensor.datatype == "BYTES":
        raise BadInput(f"column '{tensor.name}' is BYTES, expected numbers", code="input-datatype")
    values, held = numbers_of(tensor).reshape(-1), HELD_AS[spec.datatype]
    if values.is_floating_point() and held.is_floating_point:
        converted = values.to(held)
        if bool(torch.isfinite(converted).all()):
            return converted
    elif held == torch.bool:
        converted = values != 0
        if bool((converted.to(values.dtype) == values).all()):
            return converted
    else:
        converted = values.to(held)
        exact = bool(torch.isfinite(converted).all()) and bool((converted.to(values.dtype) == values).all())
        if exact and _in_range(values, spec.datatype):
            return converted
    raise BadInput(f"column '{tensor.name}' has a number that {spec.datatype} does not hold", code="input-range")


def _in_range(values: torch.Tensor, datatype: str) -> bool:
    kind = READ_AS[datatype]
    if kind.is_floating_point:
        # Exact in the narrower type; int64's largest turns into 2**63 on the way and back into something else.
        return values.dtype == torch.bool or bool((values != torch.iinfo(values.dtype).max).all())
    least, most = torch.iinfo(kind).min, min(torch.iinfo(kind).max, torch.iinfo(torch.int64).max)
    if values.dtype == torch.bool:
        return True
    wide = values.to(torch.float64) if values.is_floating_point() else values.to(torch.int64)
    return bool(((wide >= least) & (wide <= most)).all())
