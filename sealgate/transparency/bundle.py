"""The evidence bundle: records first..last of a log, with all that proves them against one signed checkpoint.

    checkpoint                the signed note
    entries/00000000.ndjson   leaves, one a line, in order; a new file every so many. For a record that is no longer
                              kept (see sealgate.transparency.pruned) "-" and its hash in base64
    range-proof               hashes outside the range, one a line (base64): see sealgate.transparency.ranges
    consistency-proof         optional: that the log grew out of a smaller checkpoint that the auditor kept
    manifest.json             what the bundle is, and the SHA-256 of every other member

A ZIP of one exact form (sealgate.transparency.container). Opening one proves nothing: `verifier` does.
Trusts nothing. Never: holds more than one file of entries in memory.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import msgspec

from sealgate.errors import DecodeError
from sealgate.limits import MAX_BUNDLE_RECORDS, MAX_LEAF, MAX_MANIFEST, MAX_NOTE, MAX_PROOF_HASHES
from sealgate.protocol.canonical import canonical_json, parse_canonical_json
from sealgate.transparency.container import ContainerReader, ContainerWriter
from sealgate.transparency.merkle import HASH_SIZE

FORMAT = "sealgate-evidence-bundle@v1"
_CHECKPOINT, _RANGE, _CONSISTENCY, _MANIFEST = "checkpoint", "range-proof", "consistency-proof", "manifest.json"
_MAX_PROOF = 2 * MAX_PROOF_HASHES
_GONE = b"-"  # no leaf begins with it


@dataclass(frozen=True)
class PrunedEntry:
    """The place of a record of which only the hash is kept. Nothing says yet that it was pruned rightly."""

    hashed: bytes


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the bundle says of itself. Every field is checked against the rest before it is believed."""

    format: str
    origin: str
    first: int
    last: int
    size: int  # of the checkpoint's tree
    consistent_with: int  # size of the older tree of the consistency proof, 0 for none
    files: dict[str, str]  # name to SHA-256


class BundleWriter:
    """Writes a bundle to a stream: entries as they come, then `finish`."""

    def __init__(self, out: BinaryIO, *, origin: str, first: int, last: int, size: int, note: bytes) -> None:
        self._container = ContainerWriter(out)
        self._files: dict[str, str] = {}
        self._origin = origin
        self._first, self._last, self._size = first, last, size
        self._written = 0
        self._chunks = 0
        self._add(_CHECKPOINT, note)

    def entries(self, leaves: Sequence[bytes | PrunedEntry]) -> None:
        """The next leaves, in order: one file of the bundle."""
        self._add(f"entries/{self._chunks:08d}.ndjson", b"".join(_line(leaf) + b"\n" for leaf in leaves))
        self._chunks += 1
        self._written += len(leaves)

    def finish(
        self, range_proof: Sequence[bytes], *, consistent_with: int = 0, consistency_proof: Sequence[bytes] = ()
    ) -> None:
        """Write proofs, manifest and directory."""
        if self._written != self._last - self._first + 1:
            raise DecodeError("the bundle does not hold the entries that it announced")
        self._add(_RANGE, _encode_hashes(range_proof))
        if consistent_with:
            self._add(_CONSISTENCY, _encode_hashes(consistency_proof))
        manifest = Manifest(
            format=FORMAT,
            origin=self._origin,
            first=self._first,
            last=self._last,
            size=self._size,
            consistent_with=consistent_with,
            files=self._files,
        )
        self._container.add(_MANIFEST, canonical_json(manifest))
        self._container.close()

    def _add(self, name: str, content: bytes) -> None:
        self._container.add(name, content)
        self._files[name] = hashlib.sha256(content).hexdigest()


class Bundle:
    """A bundle whose form is right: members, digests, counts. What it says is still only said.

    Raises DecodeError from the constructor, and from `entries` for a damaged file of entries.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._container = ContainerReader(stream)
        content = self._container.read(_MANIFEST)
        try:
            self.manifest = msgspec.convert(parse_canonical_json(content, limit=MAX_MANIFEST), Manifest)
        except msgspec.ValidationError as error:
            raise DecodeError("the bundle's manifest is not one") from error
        self._check_members()
        self.note = self._read(_CHECKPOINT, MAX_NOTE)
        self.range_proof = _decode_hashes(self._read(_RANGE, 64 * _MAX_PROOF))
        self.consistency_proof: list[bytes] = []
        if self.manifest.consistent_with:
            self.consistency_proof = _decode_hashes(self._read(_CONSISTENCY, 64 * _MAX_PROOF))

    @property
    def count(self) -> int:
        return self.manifest.last - self.manifest.first + 1

    def entries(self) -> Iterator[bytes]:
        """The leaves in order: exactly `count` of them, or DecodeError. For who needs every record to be there."""
        for entry in self.items():
            if isinstance(entry, PrunedEntry):
                raise DecodeError("records of this range are no longer kept: only their hashes are")
            yield entry

    def items(self) -> Iterator[bytes | PrunedEntry]:
        """The leaves in order, or what stands for those that are no longer kept: exactly `count`, or DecodeError."""
        given = 0
        for name in self._entry_files():
            content = self._read(name, None)
            if not content.endswith(b"\n"):
                raise DecodeError("a file of entries is cut off")
            for line in io.BytesIO(content):
                if not 1 < len(line) <= MAX_LEAF + 1:
                    raise DecodeError("an entry has no leaf's size")
                given += 1
                if given > self.count:
                    raise DecodeError("the bundle holds more entries than it announces")
                yield _parse_line(line[:-1])
        if given != self.count:
            raise DecodeError("the bundle does not hold the entries that it announces")

    def _entry_files(self) -> list[str]:
        return [name for name in self._container.names if name.startswith("entries/")]

    def _check_members(self) -> None:
        manifest = self.manifest
        if manifest.format != FORMAT or not 0 <= manifest.first <= manifest.last < manifest.size:
            raise DecodeError("the bundle's manifest announces no range of a log")
        if self.count > MAX_BUNDLE_RECORDS:
            raise DecodeError("the bundle announces more records than a bundle may hold")
        expected = [_CHECKPOINT, *(f"entries/{at:08d}.ndjson" for at in range(len(self._entry_files()))), _RANGE]
        if manifest.consistent_with:
            expected.append(_CONSISTENCY)
        if list(self._container.names) != [*expected, _MANIFEST] or set(manifest.files) != set(expected):
            raise DecodeError("the bundle does not hold the members that its manifest names")

    def _read(self, name: str, limit: int | None) -> bytes:
        content = self._container.read(name)
        if limit is not None and len(content) > limit:
            raise DecodeError(f"the bundle's member '{name}' is too large")
        if hashlib.sha256(content).hexdigest() != self.manifest.files[name]:
            raise DecodeError(f"the bundle's member '{name}' does not have the digest in its manifest")
        return content


def _line(entry: bytes | PrunedEntry) -> bytes:
    return _GONE + base64.b64encode(entry.hashed) if isinstance(entry, PrunedEntry) else entry


def _parse_line(line: bytes) -> bytes | PrunedEntry:
    if not line.startswith(_GONE):
        return line
    try:
        entry = PrunedEntry(base64.b64decode(line[1:], validate=True))
    except (binascii.Error, ValueError) as error:
        raise DecodeError("an entry stands for no record") from error
    if len(entry.hashed) != HASH_SIZE or _line(entry) != line:
        raise DecodeError("an entry stands for no record")
    return entry


def _encode_hashes(hashes: Sequence[bytes]) -> bytes:
    return b"".join(base64.b64encode(item) + b"\n" for item in hashes)


def _decode_hashes(content: bytes) -> list[bytes]:
    lines = content.split(b"\n")
    try:
        hashes = [base64.b64decode(line, validate=True) for line in lines[:-1]]
    except (binascii.Error, ValueError) as error:
        raise DecodeError("a proof in the bundle is malformed") from error
    if len(hashes) > _MAX_PROOF or any(len(item) != HASH_SIZE for item in hashes):
        raise DecodeError("a proof in the bundle is malformed")
    if _encode_hashes(hashes) != content:
        raise DecodeError("a proof in the bundle is malformed")
    return hashes
