"""A witness's folder on disk.

    witness.toml            its name, and the logs that it cosigns for
    ed25519.pem, mldsa.pem  its two signing keys (0600), PKCS#8
    witness.policy          its public keys as a C2SP witness policy: hand it to those who verify
    seen.sqlite             what it remembers
    cosigned/LOG.note       the newest checkpoint of each log with this witness's cosignatures: hand these to auditors
    conflicts/LOG-SIZE-N    pairs of checkpoints that a log signed and that cannot both be true: the proof against it

Trusts: whoever may write the folder. Never: overwrites a key or a conflict.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from sealgate.ambient import Clock, now_us, random_bytes
from sealgate.errors import ConfigurationError, LogError
from sealgate.limits import MAX_TRUST_FILE, MAX_WITNESSED_LOGS
from sealgate.toml_words import in_words
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.notes import Checkpoint, NoteVerifier, require_key_name, split_note
from sealgate.witness.store import Store
from sealgate.witness.witness import Witness

_SETTINGS, _ED25519, _MLDSA, _SEEN = "witness.toml", "ed25519.pem", "mldsa.pem", "seen.sqlite"
POLICY = "witness.policy"
_UNSAFE = re.compile(r"[^A-Za-z0-9.-]")


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    logs: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_WITNESSED_LOGS)] = ()


@dataclass(frozen=True)
class WitnessFolder:
    """An opened folder: parsed settings and loaded keys."""

    root: Path
    name: str
    cosigners: tuple[Cosigner, ...]
    logs: dict[str, tuple[NoteVerifier, ...]]

    def witness(self, *, clock: Clock = now_us, tell: Callable[[str], None] = lambda line: None) -> Witness:
        """The witness that this folder is."""

        def conflict(newer: Checkpoint, kept_note: bytes, newer_note: bytes) -> None:
            tell(
                f"CONFLICT: {newer.origin} signed two trees of {newer.size} records; kept in {self.root / 'conflicts'}"
            )
            self.keep_conflict(newer.origin, newer.size, (kept_note, newer_note))

        return Witness(
            self.cosigners,
            self.logs,
            self.store,
            clock=clock,
            on_conflict=conflict,
            on_cosigned=self.keep_cosigned,
        )

    @property
    def store(self) -> Store:
        return Store(self.root / _SEEN)

    def cosigned(self, origin: str) -> Path:
        """Where the newest cosigned checkpoint of a log stands, for auditors."""
        return self.root / "cosigned" / f"{_file_name(origin)}.note"

    def keep_cosigned(self, checkpoint: Checkpoint, note: bytes) -> None:
        """Write the cosigned checkpoint for auditors; replaces the older one at once, and never a newer one.

        Whoever submits may add signature lines of nobody: a note that those make unreadable is not kept."""
        path = self.cosigned(checkpoint.origin)
        try:
            split_note(note)
        except LogError:
            return
        path.parent.mkdir(exist_ok=True)
        with self.store.held(checkpoint.origin) as seen:
            if seen is not None and seen.checkpoint.size > checkpoint.size:
                return
            new = path.with_name(f".{path.name}.{os.getpid()}")
            new.write_bytes(note)
            new.replace(path)

    def keep_conflict(self, origin: str, size: int, notes: tuple[bytes, bytes]) -> Path:
        """Keep two signed checkpoints that cannot both be true."""
        folder = self.root / "conflicts" / f"{_file_name(origin)}-{size}-{random_bytes(4).hex()}"
        folder.mkdir(parents=True)
        for name, note in zip(("kept.note", "newer.note"), notes, strict=True):
            (folder / name).write_bytes(note)
        return folder


def make_folder(root: Path, *, name: str) -> WitnessFolder:
    """A new witness with new keys. Raises ConfigurationError if the folder already is one."""
    try:
        require_key_name(name)
    except ConfigurationError as error:
        raise ConfigurationError(f"--name: {error}") from error
    if (root / _SETTINGS).exists():
        raise ConfigurationError(f"{root} already is a witness; its keys are not replaced")
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file, key in ((_ED25519, Ed25519PrivateKey.generate()), (_MLDSA, MLDSA44PrivateKey.generate())):
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            with os.fdopen(os.open(root / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.write(pem)
        _write_settings(root, _Settings(name=name))
        folder = open_folder(root)
        (root / POLICY).write_text(_policy(folder.cosigners), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{error.filename or root} cannot be written: {error.strerror}") from error
    return folder


def open_folder(root: Path) -> WitnessFolder:
    """Read a witness's folder; raises ConfigurationError that says what to mend."""
    settings = _read_settings(root)
    logs: dict[str, tuple[NoteVerifier, ...]] = {}
    for vkey in settings.logs:
        verifier = NoteVerifier.parse(vkey)
        logs[verifier.name] = (*logs.get(verifier.name, ()), verifier)
    cosigners = tuple(Cosigner(settings.name, _load_key(root / file)) for file in (_ED25519, _MLDSA))
    return WitnessFolder(root, settings.name, cosigners, logs)


def add_log(root: Path, vkey: str) -> NoteVerifier:
    """Cosign for one more log (or one more key of a log) from the next start on."""
    settings, verifier = _read_settings(root), NoteVerifier.parse(vkey)
    if verifier.vkey not in settings.logs:
        if len(settings.logs) >= MAX_WITNESSED_LOGS:
            raise ConfigurationError(f"a witness keeps at most {MAX_WITNESSED_LOGS} logs")
        _write_settings(root, _Settings(name=settings.name, logs=(*settings.logs, verifier.vkey)))
    return verifier


def _policy(cosigners: Sequence[Cosigner]) -> str:
    """Both signatures are asked for: the one of today, and the one that a quantum computer does not forge."""
    names = [cosigner.public.kind.name.lower().replace("_", "-") for cosigner in cosigners]
    lines = [f"witness {name} {one.public.vkey}" for name, one in zip(names, cosigners, strict=True)]
    return "\n".join([*lines, f"group both all {' '.join(names)}", "quorum both", ""])


def _read_settings(root: Path) -> _Settings:
    path = root / _SETTINGS
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TRUST_FILE + 1)
        if len(data) > MAX_TRUST_FILE:
            raise ConfigurationError(f"{path}: larger than {MAX_TRUST_FILE} bytes")
        return msgspec.convert(tomllib.loads(data.decode()), _Settings)
    except FileNotFoundError:
        raise ConfigurationError(f"{path} does not exist; make a witness with: sealgate witness init {root}") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"{path}: {in_words(error, _Settings)}") from error


def _write_settings(root: Path, settings: _Settings) -> None:
    logs = "".join(f"  {_quoted(vkey)},\n" for vkey in settings.logs)
    new = root / f".{_SETTINGS}.{os.getpid()}"
    new.write_text(f"name = {_quoted(settings.name)}\nlogs = [\n{logs}]\n", encoding="utf-8")
    new.replace(root / _SETTINGS)


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's."""
    return json.dumps(text)


def _load_key(path: Path) -> Ed25519PrivateKey | MLDSA44PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} is not an unencrypted PKCS#8 PEM file") from error
    if not isinstance(key, Ed25519PrivateKey | MLDSA44PrivateKey):
        raise ConfigurationError(f"{path} must hold an Ed25519 or an ML-DSA-44 key")
    return key


def _file_name(origin: str) -> str:
    """The origin as a file's name, readable, and with a digest behind it so that no two origins share one."""
    return f"{_UNSAFE.sub('_', origin)[:80]}-{hashlib.sha256(origin.encode()).hexdigest()[:8]}"
