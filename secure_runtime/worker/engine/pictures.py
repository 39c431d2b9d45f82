"""Encoded pictures to pixels: PNG and JPEG, decoded by Pillow inside the sandbox, exactly as large as the model takes.

Nothing is resized, turned or recoloured, because each would be a conversion that nobody declared: a picture of another
size, of more or other channels, with transparency, with more than 8 bits, with several frames or with an orientation
that its camera wrote beside the pixels is refused, and the text says what it is and what was expected. A palette is
looked up. Colour profiles and gamma are not applied, as in most programs that make training data.

Decoding is where pictures attack. So: only these two decoders are reached, chosen by the first bytes; a header's size
must be the model's before a pixel is decoded, which leaves no decompression bomb; and bytes, passes over the picture
and texts beside it are bounded. What then still breaks a decoder breaks it in a process without files and network.

Trusts: Pillow, as far as the sandbox does. Never: keeps a picture; lets Pillow choose a decoder.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import struct
import warnings
from collections.abc import Callable
from typing import Any

import torch

from sealgate.certificate.inputs import InputTensor
from sealgate.limits import MAX_TENSOR_ELEMENTS
from sealgate.protocol.inference import Tensor, tensor_to_list
from secure_runtime.errors import BadInput
from secure_runtime.limits import MAX_ENCODED_FACTOR, MAX_ENCODED_ROOM, MAX_JPEG_SCANS, MAX_PNG_TEXTS

try:
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile
except ModuleNotFoundError:  # tensors need no Pillow
    OFFERED = False
else:
    OFFERED = True

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_IHDR = struct.Struct(">I4sIIBB")  # length, type, width, height, bit depth, colour type
_CHUNK, _CHECKSUM = struct.Struct(">I4s"), 4  # length and type, then so many bytes, then the checksum's
_COMPRESSED = frozenset({b"zTXt", b"iTXt", b"iCCP"})
_PALETTE = 3  # of PNG's colour types
_START_OF_SCAN = b"\xff\xda"
_ORIENTATION = 0x0112  # of EXIF
_UPRIGHT = 1
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_CALLED = {"1": "black and white", "L": "grey", "RGB": "RGB", "RGBA": "RGBA", "LA": "grey with transparency"}


def is_offered(spec: InputTensor) -> bool:
    """Whether this input also comes as pictures: 8-bit pixels, in a number of channels that pictures have."""
    return OFFERED and spec.datatype == "UINT8" and spec.content.takes_pictures and spec.shape[1] in _MODES


def pixels_of(tensor: Tensor, spec: InputTensor, *, go_on: Callable[[], None]) -> torch.Tensor:
    """BYTES [rows] of PNG or JPEG as uint8 [rows, channels, height, width]; raises BadInput.

    In JSON they are base64, and the tensor's parameter `content_type` says so. `go_on` is called before each.
    """
    name, shape = tensor.name, spec.shape[1:]
    if not is_offered(spec):
        raise BadInput(f"input '{name}' is BYTES, expected {spec.datatype}: encoded pictures are not offered for it")
    if len(tensor.shape) != 1:
        raise BadInput(f"input '{name}' is BYTES {list(tensor.shape)}, expected [rows]: one picture in each")
    if not tensor.shape[0]:
        raise BadInput(f"input '{name}' has no rows")
    if tensor.shape[0] * math.prod(shape) > MAX_TENSOR_ELEMENTS:
        raise BadInput(f"input '{name}' has too many pictures; send fewer at once", status=413)
    kind = tensor.parameters.get("content_type", "")
    if kind not in ("", "base64"):
        raise BadInput(f"input '{name}' has the content_type '{kind}', expected none or 'base64'")
    most = MAX_ENCODED_FACTOR * math.prod(shape) + MAX_ENCODED_ROOM
    pixels = torch.empty(tensor.shape[0], *shape, dtype=torch.uint8)
    for row, data in enumerate(tensor_to_list(tensor)):
        go_on()
        label = f"input '{name}', row {row + 1}"
        if kind == "base64":
            data = _from_base64(data, label)
        if len(data) > most:
            raise BadInput(f"{label}: a picture of {len(data)} bytes, expected at most {most}", status=413)
        pixels[row] = _decoded(data, label, shape)
    return pixels


def _from_base64(data: bytes, label: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise BadInput(f"{label}: is not base64, as its content_type says") from None


def _decoded(data: bytes, label: str, shape: tuple[int, ...]) -> torch.Tensor:
    """uint8 [channels, height, width]."""
    channels, height, width = shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd EXIF; nobody reads it here
            picture = _opened(data, label)
            _require_fit(picture, label, channels=channels, height=height, width=width)
            picture.load()
            if picture.mode != _MODES[channels]:
                picture = picture.convert(_MODES[channels])  # a palette: looked up, nothing is lost
            raw = picture.tobytes()
    except BadInput:
        raise
    except Exception:  # of a decoder: whatever it says may quote the picture
        raise BadInput(f"{label}: the picture is damaged or incomplete") from None
    if len(raw) != math.prod(shape):
        raise BadInput(f"{label}: the picture is damaged or incomplete")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(height, width, channels).permute(2, 0, 1)


def _opened(data: bytes, label: str) -> Any:
    """The picture by its header alone."""
    if data.startswith(_PNG):
        _, kind, _, _, depth, colours = _IHDR.unpack_from(data, len(_PNG))
        if kind != b"IHDR" or (depth != 8 and colours != _PALETTE):
            raise BadInput(f"{label}: a PNG of {depth} bits a channel, expected 8")
        if _texts(data) > MAX_PNG_TEXTS:
            raise BadInput(f"{label}: a PNG of more than {MAX_PNG_TEXTS} texts and colour profiles")
        return PngImageFile(io.BytesIO(data))
    if data.startswith(_JPEG):
        if data.count(_START_OF_SCAN) > MAX_JPEG_SCANS:
            raise BadInput(f"{label}: a JPEG of more than {MAX_JPEG_SCANS} scans")
        return JpegImageFile(io.BytesIO(data))
    raise BadInput(f"{label}: neither PNG nor JPEG")


def _texts(data: bytes) -> int:
    """How many chunks beside the picture Pillow would decompress, each to a megabyte: found by their lengths alone."""
    at, found = len(_PNG), 0
    while at + _CHUNK.size <= len(data):
        length, kind = _CHUNK.unpack_from(data, at)
        if kind == b"IEND":
            break
        found += kind in _COMPRESSED
        at += _CHUNK.size + length + _CHECKSUM
    return found


def _require_fit(picture: Any, label: str, *, channels: int, height: int, width: int) -> None:
    """Raise BadInput, before a pixel is decoded, for a picture that is not exactly what the model takes."""
    if picture.size != (width, height):
        raise BadInput(
            f"{label}: a picture {picture.size[0]} wide and {picture.size[1]} high, expected {width} by {height}",
            code="input-shape",
        )
    if getattr(picture, "n_frames", 1) != 1:
        raise BadInput(f"{label}: a picture of several frames, expected one")
    if "transparency" in picture.info:
        raise BadInput(f"{label}: a picture with transparency, expected {_CALLED[_MODES[channels]]}")
    if picture.mode != _MODES[channels] and (picture.mode, channels) != ("P", 3):
        called = _CALLED.get(picture.mode, "a palette" if picture.mode == "P" else picture.mode)
        raise BadInput(f"{label}: a picture in {called}, expected {_CALLED[_MODES[channels]]}", code="input-shape")
    if picture.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
        raise BadInput(f"{label}: its EXIF says that it lies on its side or is mirrored; turn the pixels first")
