"""What an answer may be in size: told before it is written where that can be told, and again when it is.

Numbers as text become many times their size as objects at whoever reads them, so JSON has a bound of its own; a large
answer is asked for as binary data. Trusts: the plan for how large a message is. Never: cuts an answer.
"""

from __future__ import annotations

from collections.abc import Iterable

from sealgate.limits import MAX_FIELD_SECTION, MAX_INFERENCE_JSON
from sealgate.protocol.inference import HEADER_LENGTH_FIELD, BinaryOutputs
from secure_runtime.errors import BadInput
from secure_runtime.worker.engine.tensors import OutputRows

_JSON_NUMBER = 2  # bytes that a number takes at least, with what divides it from the next


def too_large(what: str = "answer") -> BadInput:
    """The refusal of an answer that does not fit."""
    return BadInput(
        f"the {what} would be larger than a message may be; send fewer rows at once, or ask for binary outputs",
        status=413,
    )


def body_room(max_message: int) -> int:
    """Bytes of an answer's body: what stands around it has room."""
    return max_message - MAX_FIELD_SECTION


def require_room(outputs: Iterable[OutputRows], rows: int, wants_binary: BinaryOutputs, *, max_body: int) -> None:
    """Raise BadInput for an answer of so many rows that cannot fit, before it is written."""
    as_text = as_bytes = 0
    for one in outputs:
        if wants_binary == "all" or one.name in wants_binary:
            as_bytes += rows * one.row_bytes
        else:
            as_text += rows * one.numbers * _JSON_NUMBER
    if as_text > MAX_INFERENCE_JSON or as_text + as_bytes > max_body:
        raise too_large()


def require_fitting(fields: Iterable[tuple[str, str]], body: bytes, *, max_body: int, what: str = "answer") -> None:
    """Raise BadInput for an encoded answer that does not fit."""
    as_text = int(dict(fields).get(HEADER_LENGTH_FIELD, len(body)))
    if len(body) > max_body or as_text > MAX_INFERENCE_JSON:
        raise too_large(what)
