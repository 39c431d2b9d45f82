"""Which tensors a compressed model has: weights in fewer bits, as its manifest declares them. Data only.

    int8   every matrix, kernel and table as whole numbers from -127 to 127, with one FP32 scale per row of its first
           axis ("NAME.scale"); linear layers then multiply whole numbers (`secure_runtime.models.int8`)
    bf16   every matrix, kernel and table as bfloat16

Biases, normalisations and centres are small and stay FP32. What is behind it is `compressing.py`: no data, no choice,
so that anybody who has the original makes the same bytes.

Trusts: nothing. Never: touches weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import msgspec

INT8, BF16 = "int8", "bf16"
KINDS = (INT8, BF16)
SCALE = ".scale"  # behind the name of the tensor that it belongs to
FP32_DTYPE, BF16_DTYPE, INT8_DTYPE = "F32", "BF16", "I8"  # as safetensors calls them
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

Shape = tuple[int, ...]
Tensors = Mapping[str, tuple[str, Shape]]
"""Name -> (safetensors datatype, shape): all that a file of weights may and must hold."""


class Compression(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`frozen_digest` is of the compressed public part of a frozen encoder: who has the public weights can compress
    them and compare. Empty for all other families."""

    kind: str
    frozen_digest: str = ""

    def refusals(self, *, frozen: bool) -> Iterator[str]:
        """What is wrong with it, for a model with or without a frozen public part."""
        if self.kind not in KINDS:
            yield f"its compression is none of {', '.join(KINDS)}"
        if frozen and not _SHA256.match(self.frozen_digest):
            yield "its compression does not name the compressed public weights"
        if not frozen and self.frozen_digest:
            yield "its compression names public weights that it does not have"


def is_compressed(shape: Shape) -> bool:
    """Whether a tensor of this shape is one that compression changes."""
    return len(shape) >= 2


def expected_tensors(shapes: Mapping[str, Shape], compression: Compression | None) -> Tensors:
    """The tensors of a model with weights of these shapes, compressed so or not at all."""
    if compression is None:
        return {name: (FP32_DTYPE, shape) for name, shape in shapes.items()}
    found: dict[str, tuple[str, Shape]] = {}
    for name, shape in shapes.items():
        if not is_compressed(shape):
            found[name] = (FP32_DTYPE, shape)
        elif compression.kind == BF16:
            found[name] = (BF16_DTYPE, shape)
        else:
            found[name] = (INT8_DTYPE, shape)
            found[name + SCALE] = (FP32_DTYPE, shape[:1])
    return found
