"""Reading a bundle's directory: exactly its plain files, none a pickle, each bounded, no link followed.

There are five; in an encrypted bundle the weights are two others. A bundle that was made from another one has that
one's certificate and manifest, too. One more is optional: a signature for other tools.

Where the system allows it (everywhere but Windows) all is read relative to one open directory, so that swapping the
directory meanwhile changes nothing. Trusts: nothing. Never: trusts a size that it saw earlier; opens what is no plain
file for longer than it takes to see that.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sealgate.certificate.refusals import refusal
from sealgate.limits import (
    MAX_BUNDLE_FILES,
    MAX_CARD,
    MAX_CERTIFICATE,
    MAX_KEY_ENVELOPE,
    MAX_MANIFEST,
    MAX_MODEL_SIGNATURE,
    MAX_WEIGHTS,
)

WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"
CERTIFICATE = "certificate.dsse.json"
CARD = "card.md"
SIGNATURE = "bundle.sig"
SEALED_WEIGHTS = "model.safetensors.sealed"  # with KEY in the place of WEIGHTS
KEY = "model.key"
MODEL_SIGNATURE = "model.sig"  # OpenSSF model signing; optional
ORIGINAL_CERTIFICATE = "original.dsse.json"  # of the bundle that this one was made from, with its manifest
ORIGINAL_MANIFEST = "original.json"
ORIGINAL = (ORIGINAL_CERTIFICATE, ORIGINAL_MANIFEST)
SIGNED = (WEIGHTS, MANIFEST, CERTIFICATE, CARD)
FILE_LIMITS = {
    WEIGHTS: MAX_WEIGHTS,
    MANIFEST: MAX_MANIFEST,
    CERTIFICATE: MAX_CERTIFICATE,
    CARD: MAX_CARD,
    SIGNATURE: MAX_CERTIFICATE,
}
_ENCRYPTED_LIMITS = {SEALED_WEIGHTS: MAX_WEIGHTS + MAX_WEIGHTS // 1024, KEY: MAX_KEY_ENVELOPE}
_ORIGINAL_LIMITS = {ORIGINAL_CERTIFICATE: MAX_CERTIFICATE, ORIGINAL_MANIFEST: MAX_MANIFEST}
_LIMITS = {**FILE_LIMITS, **_ENCRYPTED_LIMITS, **_ORIGINAL_LIMITS, MODEL_SIGNATURE: MAX_MODEL_SIGNATURE}
_PICKLE_SUFFIXES = frozenset(
    (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz", ".dill", ".h5")
)
_HAS_DIRECTORIES = os.open in os.supports_dir_fd and hasattr(os, "O_DIRECTORY")
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def looks_pickled(data: bytes) -> bool:
    """Whether bytes start like a binary pickle or like the zip that torch.save writes.

    0x80 and a protocol number open a pickle. A safetensors file may open with the same two bytes (a header of 640
    bytes, say), but its length is below 2^24, so bytes three to seven are zero; no pickle has that. Text pickles
    (protocols 0 and 1) need no sniffing: none of them is JSON, Markdown that is executed, or safetensors.
    """
    if data[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return True
    return len(data) > 2 and data[0] == 0x80 and data[1] <= 5 and data[3:8] != b"\0\0\0\0\0"


@contextmanager
def _refusing_errors(path: Path) -> Iterator[None]:
    """Turns what the system says about the bundle's files into the refusal `bundle-unreadable`."""
    try:
        yield
    except OSError as error:
        raise refusal("bundle-unreadable", f"{path} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class Listing:
    """Which of the forms that a bundle can have its directory has."""

    encrypted: bool
    model_signature: bool
    derived: bool = False

    @property
    def signed(self) -> tuple[str, ...]:
        """The files that `bundle.sig` must list: exactly these."""
        return (*SIGNED, *ORIGINAL) if self.derived else SIGNED

    @property
    def plain(self) -> tuple[str, ...]:
        """The files that are read whole, in the clear, whatever became of the weights."""
        return (*(name for name in self.signed if name != WEIGHTS), SIGNATURE)


@dataclass(frozen=True)
class BundleFolder:
    """An open bundle directory. `descriptor` is None where the system has no directory descriptors."""

    path: Path
    descriptor: int | None

    def check_listing(self) -> Listing:
        """Raise CertificateError unless the directory holds exactly the plain files of a bundle, none too large."""
        names: list[str] = []
        place = self.path if self.descriptor is None else self.descriptor
        with _refusing_errors(self.path), os.scandir(place) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) > MAX_BUNDLE_FILES:
                    raise refusal("unexpected-file", f"{self.path} holds more than the files of a bundle")
                self._check_entry(entry)
        encrypted = any(name in names for name in _ENCRYPTED_LIMITS)
        if encrypted and WEIGHTS in names:
            raise refusal("unexpected-file", f"{self.path} holds its weights twice: encrypted, and in plain")
        found = Listing(
            encrypted=encrypted,
            model_signature=MODEL_SIGNATURE in names,
            derived=any(name in names for name in ORIGINAL),
        )
        for name in (*(_ENCRYPTED_LIMITS if encrypted else (WEIGHTS,)), *found.plain):
            if name not in names:
                raise refusal("missing-file", f"{self.path} lacks {name!r}")
        return found

    def _check_entry(self, entry: os.DirEntry[str]) -> None:
        if Path(entry.name).suffix.lower() in _PICKLE_SUFFIXES:
            raise refusal("pickle-in-bundle", f"{self.path} holds {entry.name!r}: pickled files are never loaded")
        limit = _LIMITS.get(entry.name)
        if limit is None:
            raise refusal("unexpected-file", f"{self.path} holds {entry.name!r}, which is no part of a bundle")
        status = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise refusal("not-a-plain-file", f"{entry.name!r} in {self.path} is not a plain file")
        if status.st_size > limit:
            raise refusal("file-too-large", f"{entry.name!r} in {self.path} is larger than {limit} bytes")

    def read(self, name: str) -> bytes:
        """The whole of one of the files; raises CertificateError."""
        with self.open(name) as file:
            data = file.read(_LIMITS[name] + 1)
        if len(data) > _LIMITS[name]:
            raise refusal("file-too-large", f"{name!r} is larger than {_LIMITS[name]} bytes")
        if looks_pickled(data):
            raise refusal("pickle-in-bundle", f"{name!r} is a pickle: pickled files are never loaded")
        return data

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """One of the files for the time of the block, to be read in pieces; raises CertificateError."""
        place = self.path / name if self.descriptor is None else name
        with _refusing_errors(self.path):
            descriptor = os.open(place, os.O_RDONLY | _NO_FOLLOW | _BINARY, dir_fd=self.descriptor)
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise refusal("not-a-plain-file", f"{name!r} is not a plain file")
                yield file


@contextmanager
def open_folder(path: Path) -> Iterator[BundleFolder]:
    """The directory for the time of the block; raises CertificateError if it is none, or a link."""
    descriptor = None
    with _refusing_errors(path):
        if _HAS_DIRECTORIES:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _NO_FOLLOW)
        elif path.is_symlink():
            raise refusal("bundle-unreadable", f"{path} is a symbolic link")
    try:
        yield BundleFolder(path, descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)
