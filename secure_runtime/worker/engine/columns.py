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

_OTHERS = b"*"
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
    table = torch.zeros(rows, len(spec.columns), dtype=HELD_AS[spec.datatype])
    names = {column.name for column in spec.columns}
    of_texts: dict[str, dict[bytes, int]] = {}  # by text column: where in the table each value of its list stands
    for place, column in enumerate(spec.columns):
        kind, marked, value = column.name.partition("=")
        if column.name in given:
            if marked and kind in given and kind not in names:
                raise BadInput(f"column '{kind}' and column '{column.name}' are one column; send one of them")
            table[:, place] = _converted(given[column.name], spec)
        elif marked and kind in given and given[kind].datatype == "BYTES":
            of_texts.setdefault(kind, {})[value.encode()] = place
        elif marked and kind in given:
            raise BadInput(f"column '{kind}' is {given[kind].datatype}, expected BYTES", code="input-datatype")
        else:
            raise BadInput(f"column '{column.name}' of input '{spec.name}' is missing; send all columns, or one tensor")
    for kind, listed in of_texts.items():
        table[torch.arange(rows), _places(given[kind], listed)] = 1
    return table


def _places(tensor: Tensor, listed: Mapping[bytes, int]) -> torch.Tensor:
    """For each row the column that is one, int64 [rows]: one look for each, however long the list is."""
    others = listed.get(_OTHERS)
    found: list[int] = []
    for text in tensor_to_list(tensor):
        place = listed.get(text, others) if text != _OTHERS else others
        if place is None:
            values = sorted(value.decode() for value in listed)
            some = ", ".join(f"'{one}'" for one in values[:_SHOWN]) + (", ..." if len(values) > _SHOWN else "")
            raise BadInput(f"column '{tensor.name}' has a value that is none of {some}", code="input-range")
        found.append(place)
    return torch.tensor(found)


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
