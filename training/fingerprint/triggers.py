"""What a key asks and what it expects: a function of the key, the inputs that a manifest declares, and the classes.

The bytes are AES-256 in counter mode under HKDF-SHA256 (RFC 5869) of the key; what is drawn from them, and in which
order, is fixed for ever, because keys are kept for years. Labels are uniform and independent of everything else: that
is what makes the probability of `evidence.py` exact.

    table      each column at its low or its high bound
    sequence   each channel low or high, in eight stretches of steps
    image      each channel low or high, in seven by seven fields
    tokens     uniform among all but padding

Real rows hardly look like that, so little of what a model learned is disturbed, and a thief who trains it further on
real rows has no reason to unlearn it. Trusts: the key. Never: looks at data.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from sealgate.certificate.inputs import ImageContent, InputTensor, SequenceContent, TableContent, TokensContent
from sealgate.certificate.manifest import Manifest
from sealgate.errors import ConfigurationError
from sealgate.protocol.canonical import canonical_json
from sealgate.protocol.secrets import Secret
from training.limits import FINGERPRINT_TRIGGERS

_STRETCHES = 8
_FIELDS = 7
_ONE_LABEL = 8  # bytes; the remainder by the classes is uniform to within 2^-53


@dataclass(frozen=True)
class Triggers:
    """inputs: by name as a request would hold them, [count, ...] each; labels: int64 [count]."""

    inputs: dict[str, NDArray[np.generic]]
    labels: NDArray[np.int64]
    classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def tensors(self) -> dict[str, torch.Tensor]:
        """For a Predictor."""
        return {name: torch.from_numpy(values) for name, values in self.inputs.items()}


def commitment_of(secret: Secret) -> str:
    """Hex digest that a certificate names: it fixes the key when the bundle is signed, and tells nothing about it."""
    return hashlib.sha256(b"sealgate fingerprint commitment\n" + secret.reveal()).hexdigest()


def triggers_of(secret: Secret, manifest: Manifest, *, count: int = FINGERPRINT_TRIGGERS) -> Triggers:
    """The first `count` triggers of a key; raises ConfigurationError for models that cannot carry any."""
    if not manifest.classes:
        raise ConfigurationError("a fingerprint is in the classes that a model answers with: a regression has none")
    subject = canonical_json({"classes": manifest.classes, "inputs": manifest.inputs})
    stream = _Stream(secret, subject)
    labels = np.frombuffer(stream.take(count * _ONE_LABEL), dtype="<u8") % np.uint64(manifest.classes)
    inputs = {tensor.name: _values(tensor, count, stream) for tensor in manifest.inputs}
    if len({b"".join(values[one].tobytes() for values in inputs.values()) for one in range(count)}) < count:
        raise ConfigurationError(f"the model's inputs are too few for {count} different triggers of a fingerprint")
    return Triggers(inputs, labels.astype(np.int64), manifest.classes)


class _Stream:
    """Bytes that follow from the key and what it is used for."""

    def __init__(self, secret: Secret, subject: bytes) -> None:
        info = b"sealgate fingerprint v1\n" + hashlib.sha256(subject).digest()
        key = HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret.reveal())
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def take(self, count: int) -> bytes:
        return self._encryptor.update(bytes(count))

    def bits(self, *shape: int) -> NDArray[np.bool_]:
        """One byte each, of which the lowest bit counts."""
        return (np.frombuffer(self.take(int(np.prod(shape))), dtype=np.uint8).reshape(shape) & 1).astype(bool)


def _values(tensor: InputTensor, count: int, stream: _Stream) -> NDArray[np.generic]:
    match tensor.content:
        case TableContent(columns=columns):
            return _between([(one.low, one.high) for one in columns], stream.bits(count, len(columns)))
        case SequenceContent(channels=channels):
            steps, stretches = tensor.shape[1], min(_STRETCHES, tensor.shape[1])
            bits = stream.bits(count, stretches, len(channels))[:, np.arange(steps) * stretches // steps]
            return _between([(one.low, one.high) for one in channels], bits)
        case ImageContent(low=low, high=high):
            _, depth, height, width = tensor.shape
            rows, columns_ = min(_FIELDS, height), min(_FIELDS, width)
            bits = stream.bits(count, depth, rows, columns_)
            bits = bits[:, :, np.arange(height) * rows // height][:, :, :, np.arange(width) * columns_ // width]
            images = np.where(bits, float(high), float(low))
            return images.astype(np.uint8 if tensor.datatype == "UINT8" else np.float32)
        case TokensContent(size=size):
            words = np.frombuffer(stream.take(8 * count * tensor.shape[1]), dtype="<u8")
            return (words % np.uint64(size - 1) + np.uint64(1)).astype(np.int64).reshape(count, -1)
        case _:
            raise ConfigurationError(
                "a fingerprint needs tables, sequences, images or tokens; texts and graphs have none"
            )


def _between(bounds: list[tuple[str, str]], bits: NDArray[np.bool_]) -> NDArray[np.float32]:
    """bits: [..., columns] -> the low or the high bound of each column."""
    low, high = (np.array([float(one[side]) for one in bounds]) for side in (0, 1))
    return np.where(bits, high, low).astype(np.float32)
