"""Weights encrypted at rest: AES-256-GCM in chunks, so that memory is bounded and every byte is authenticated at once.

The STREAM construction (Hoang, Reyhanitabar, Rogaway and Vizar 2015): the nonce of a chunk is its number (11 bytes) and
whether it is the last (1 byte). So a chunk that was moved, repeated, left out or cut off does not open, nor does the
end of another file. A data key is drawn for one file and never used for another, which is why nonces may count from
zero. Chunks are 1 MiB; the weights' plain size and digest are associated data of each.

    model.safetensors.sealed = magic || chunk 0 || chunk 1 || ... ; a chunk is ciphertext with its 16-byte tag

Trusts: the data key. Never: hands out bytes of a chunk that did not authenticate, or of a file that is too long.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealgate.ambient import Entropy, random_bytes
from sealgate.certificate.key_envelope import KeyEnvelope, SealedWeights
from sealgate.certificate.refusals import refusal
from sealgate.protocol.secrets import Secret

MAGIC = b"sealgate-weights/1\n"
TAG = 16
DATA_KEY = 32  # bytes

DataKeyOf = Callable[[KeyEnvelope], Secret]
"""Finds the data key of one bundle; raises CertificateError (`weights-locked`)."""


def no_data_key(envelope: KeyEnvelope) -> Secret:
    """For callers that hold no keys: every encrypted bundle stays closed."""
    raise refusal("weights-locked", f"the weights are encrypted under key {envelope.key}, and no key was given")


def new_data_key(entropy: Entropy = random_bytes) -> Secret:
    """A key for the weights of one bundle."""
    return Secret(entropy(DATA_KEY))


def sealed_size(weights: SealedWeights) -> int:
    """Bytes of the whole encrypted file."""
    return len(MAGIC) + weights.size + weights.chunks * TAG


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\1" if last else b"\0")


def seal_weights(plain: bytes, weights: SealedWeights, key: Secret) -> Iterator[bytes]:
    """The file's pieces in order; `key` must be fresh."""
    if len(plain) != weights.size:
        raise ValueError("the description is of other weights")
    cipher, context, view = AESGCM(key.reveal()), weights.context, memoryview(plain)
    yield MAGIC
    for number in range(weights.chunks):
        chunk = view[number * weights.chunk : (number + 1) * weights.chunk]
        yield cipher.encrypt(_nonce(number, last=number == weights.chunks - 1), chunk, context)


def unseal_weights(file: BinaryIO, weights: SealedWeights, key: Secret) -> bytes:
    """The plain weights, in memory only: one chunk of ciphertext at a time beside them. Raises CertificateError."""
    cipher, context, plain = AESGCM(key.reveal()), weights.context, io.BytesIO()
    if file.read(len(MAGIC)) != MAGIC:
        raise refusal("weights-sealed", "the encrypted weights are not a file of this kind")
    for number in range(weights.chunks):
        last = number == weights.chunks - 1
        chunk = file.read((weights.size - number * weights.chunk if last else weights.chunk) + TAG)
        try:
            plain.write(cipher.decrypt(_nonce(number, last=last), chunk, context))
        except (InvalidTag, ValueError) as error:
            raise refusal(
                "weights-sealed",
                f"chunk {number + 1} of {weights.chunks} of the encrypted weights does not open: the file was cut off, "
                "changed or mixed with another, or model.key is another bundle's",
            ) from error
    if file.read(1):
        raise refusal("weights-sealed", "the encrypted weights go on behind their last chunk")
    return plain.getvalue()
