"""What an answer may be in size: told from the manifest's outputs before the model runs, and again when it is written.

Numbers as text become many times their size as objects at whoever reads them, so JSON has a bound of its own; a large
answer is asked for as binary data. Trusts: the plan for how large a message is, and the checked manifest for what the
model gives for a row. Never: cuts an answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from sealgate.certificate.manifest import OutputTensor
from sealgate.limits import MAX_FIELD_SECTION, MAX_INFERENCE_JSON, MAX_NAME
from sealgate.protocol.frames import Obligations
from sealgate.protocol.inference import HEADER_LENGTH_FIELD, BinaryOutputs
from secure_runtime.errors import BadInput
from secure_runtime.limits import JSON_NUMBER_BYTES
from secure_runtime.models.wire import READ_AS

_JSON_NUMBER = 2  # bytes that a number takes at least, with what divides it from the next
_TEXT = 4  # bytes before a text of BYTES, which may be empty


def too_large(what: str = "answer") -> BadInput:
    """The refusal of an answer that does not fit."""
    return BadInput(
        f"the {what} would be larger than a message may be; send fewer rows at once, or ask for binary outputs",
        status=413,
    )


def body_room(max_message: int) -> int:
    """Bytes of an answer's body: what stands around it has room."""
    return max_message - MAX_FIELD_SECTION


def given(outputs: Sequence[OutputTensor], obligations: Obligations, wanted: Iterable[str]) -> list[OutputTensor]:
    """The outputs that an answer has under these obligations; `wanted` names those that were asked for, none: all."""
    names = frozenset(wanted)
    return [
        one
        for one in outputs
        if (not names or one.name in names) and not (obligations.hide_scores and one.role == "scores")
    ]


def require_room(outputs: Iterable[OutputTensor], rows: int, wants_binary: BinaryOutputs, *, max_body: int) -> int:
    """Raise BadInput for an answer of so many rows that cannot fit, before the model runs; else the memory that forming
    it takes, about, in bytes."""
    as_text = as_bytes = memory = 0
    for one in outputs:
        numbers = rows * math.prod(one.shape[1:])
        named = one.datatype == "BYTES"  # by a class's name
        memory += numbers * MAX_NAME if named else 0
        if wants_binary == "all" or one.name in wants_binary:
            size = numbers * (_TEXT if named else READ_AS[one.datatype].itemsize)
            as_bytes += size
            memory += size
        else:
            as_text += numbers * _JSON_NUMBER
            memory += numbers * JSON_NUMBER_BYTES
    if as_text > MAX_INFERENCE_JSON or as_text + as_bytes > max_body:
        raise too_large()
    return memory


def require_fitting(fields: Iterable[tuple[str, str]], body: bytes, *, max_body: int, what: str = "answer") -> None:
    """Raise BadInput for an encoded answer that does not fit."""
    as_text = int(dict(fields).get(HEADER_LENGTH_FIELD, len(body)))
    if len(body) > max_body or as_text > MAX_INFERENCE_JSON:
        raise too_large(what)
