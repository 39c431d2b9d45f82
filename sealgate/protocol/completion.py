"""The worker's signed statement that one grant came to one end.

The worker signs it with the instance key that its evidence names; the host copies its fields into the log record
unchanged, so a client or auditor rebuilds the statement from the record and checks the signature without the host.
The counter `seq` is contiguous per instance: a completion that the host drops leaves a visible gap.

One signature serves a whole sweep: it stands under the root of a Merkle tree over the sweep's statements (hashed as in
RFC 9162 section 2.1), and each completion carries it with its own path, so each is checked without the others. Binary
form of `signature`, before base64url:

    one statement    Ed25519(context || statement)                                              64 bytes
    of several       Ed25519(context of sweeps || count (4) || root (32)) || index (2) || count (2) || path (32 each)

A path shows hashes of other statements, which name random grants and commit to ciphertexts: nobody can guess them.
Trusts: nothing. Never: contains payload, caller identity or floats.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Sequence

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sealgate.errors import DecodeError, VerificationError
from sealgate.protocol.canonical import canonical_json

_CONTEXT = b"sealgate completion v1\x00"
_SWEEP_CONTEXT = b"sealgate completions of a sweep v1\x00"
_PLACE = struct.Struct(">HH")  # index, count
_SIGNATURE, _HASH = 64, 32
MAX_SIGNED_TOGETHER = 64  # statements under one signature: a path of six hashes, which a record has room for


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What the worker says about one grant. Digests are lowercase hex SHA-256, "" where there is none.

    `outcome` is `completed`, `failed` (the request was opened but could not be answered as asked) or `refused`
    (the gatekeeper turned it away). `reason` is "" or a stable reason code. `eps_micro` is the epsilon, in millionths,
    that noised answers of this grant spent.
    """

    instance: str
    seq: int
    grant: str
    outcome: str
    reason: str
    model: str
    model_digest: str
    certificate_digest: str
    units: int
    req_commit: str
    resp_commit: str
    eps_micro: int = 0

    def signed_bytes(self) -> bytes:
        """Domain-separated canonical bytes."""
        return _CONTEXT + canonical_json(self)


class Completion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A statement with its Ed25519 signature (base64url without padding)."""

    statement: Statement
    signature: str


def sign_completion(statement: Statement, key: Ed25519PrivateKey) -> Completion:
    """Sign one statement with the worker instance's key."""
    return Completion(statement=statement, signature=_text(key.sign(statement.signed_bytes())))


def sign_completions(statements: Sequence[Statement], key: Ed25519PrivateKey) -> list[Completion]:
    """The same for all statements of a sweep, with one signature for each MAX_SIGNED_TOGETHER of them."""
    completions: list[Completion] = []
    for start in range(0, len(statements), MAX_SIGNED_TOGETHER):
        together = statements[start : start + MAX_SIGNED_TOGETHER]
        if len(together) == 1:
            completions.append(sign_completion(together[0], key))
            continue
        levels = _tree([_leaf(statement) for statement in together])
        count = len(together)
        signature = key.sign(_sweep_bytes(count, levels[-1][0]))
        for index, statement in enumerate(together):
            form = b"".join((signature, _PLACE.pack(index, count), *_path(levels, index)))
            completions.append(Completion(statement=statement, signature=_text(form)))
    return completions


class CompletionVerifier:
    """Verifies the completions of one worker instance. Remembers the last sweep's root that verified, so that the rest
    of the sweep costs hashes only. Owned by one thread."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self._verified: tuple[bytes, bytes] = (b"", b"")  # signature, and what it is over

    def verify(self, completion: Completion) -> Statement:
        """The statement if the signature holds; raises VerificationError."""
        try:
            raw = base64.b64decode(completion.signature + "=" * (-len(completion.signature) % 4), b"-_", validate=True)
            signature, signed = raw[:_SIGNATURE], _signed(completion.statement, raw[_SIGNATURE:])
            if (signature, signed) != self._verified:
                self._key.verify(signature, signed)
                self._verified = (signature, signed)
        except (InvalidSignature, DecodeError, binascii.Error, ValueError) as error:
            raise VerificationError(
                "the worker's completion signature does not hold", code="completion-signature"
            ) from error
        return completion.statement


def verify_completion(completion: Completion, key: Ed25519PublicKey) -> Statement:
    """Return the statement if the signature holds; raises VerificationError."""
    return CompletionVerifier(key).verify(completion)


def _text(form: bytes) -> str:
    return base64.urlsafe_b64encode(form).rstrip(b"=").decode()


def _signed(statement: Statement, placed: bytes) -> bytes:
    """What the signature must be over; `placed` says where in its sweep the statement stands. Raises ValueError."""
    if not placed:
        return statement.signed_bytes()
    if len(placed) < _PLACE.size or (len(placed) - _PLACE.size) % _HASH:
        raise ValueError("a place in a sweep is an index, a count and whole hashes")
    index, count = _PLACE.unpack_from(placed)
    if not index < count <= MAX_SIGNED_TOGETHER or count < 2:
        raise ValueError("no sweep has such a place")
    path = [placed[at : at + _HASH] for at in range(_PLACE.size, len(placed), _HASH)]
    return _sweep_bytes(count, _root(_leaf(statement), index, count, path))


def _sweep_bytes(count: int, root: bytes) -> bytes:
    return _SWEEP_CONTEXT + count.to_bytes(4, "big") + root


# The tree of a sweep: neighbours are joined level by level, and an odd one out goes up as it is. ----------------------


def _leaf(statement: Statement) -> bytes:
    return hashlib.sha256(b"\x00" + statement.signed_bytes()).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _tree(leaves: list[bytes]) -> list[list[bytes]]:
    levels = [leaves]
    while len(below := levels[-1]) > 1:
        above = [_node(below[at], below[at + 1]) for at in range(0, len(below) - 1, 2)]
        levels.append(above + below[len(above) * 2 :])
    return levels


def _path(levels: list[list[bytes]], index: int) -> list[bytes]:
    path = []
    for level in levels[:-1]:
        if index ^ 1 < len(level):
            path.append(level[index ^ 1])
        index >>= 1
    return path


def _root(running: bytes, index: int, count: int, path: list[bytes]) -> bytes:
    """Where the path leads. Raises ValueError unless it is exactly as long as this place's is."""
    at = 0
    while count > 1:
        if index ^ 1 < count:
            if at == len(path):
                raise ValueError("the path ends early")
            running = _node(path[at], running) if index & 1 else _node(running, path[at])
            at += 1
        index, count = index >> 1, (count + 1) >> 1
    if at != len(path):
        raise ValueError("the path is too long")
    return running
