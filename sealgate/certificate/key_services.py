"""Wrapping keys that live in a key service and never leave it: what all of them have in common.

    vault:FILE.toml    HashiCorp Vault or OpenBao, the transit engine (vault_key)
    awskms:FILE.toml   AWS Key Management Service (aws_kms_key)
    gcpkms:FILE.toml   Google Cloud Key Management Service (google_kms_key)
    azurekv:FILE.toml  Azure Key Vault or Managed HSM (azure_key)

A file instead of words, because an address, a key and a way to sign in are more than a command line should hold, and
secrets do not belong there at all. Opening a source reads its file and asks nobody; the service is asked when a key is
used. One attempt that finds the service away ends this object's attempts: a host that starts a worker waits for one
time-out and not for one for each model.

Trusts: the file and what it names. Never: prints what a service or its library says, which may hold what was sent.
"""

from __future__ import annotations

import logging
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from sealgate.certificate.refusals import refusal
from sealgate.certificate.sealed_weights import DATA_KEY
from sealgate.errors import CertificateError, ConfigurationError
from sealgate.limits import KEY_SERVICE_S, MAX_KEY_SERVICE_FILE, MAX_KEY_SERVICE_S
from sealgate.protocol.secrets import Secret
from sealgate.toml_words import in_words

Table = TypeVar("Table", bound=msgspec.Struct)
_HTTPS = re.compile(r"https://[A-Za-z0-9.\-\[\]:]{1,253}\Z")


class ServiceAway(Exception):
    """The service gave no answer, or one that says nothing of the key. `why` is ours. `Service` turns it into ours."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class ServiceRefused(Exception):
    """The service answered no. `why` is ours."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Service:
    """Asks, and remembers that nobody answered."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._away: str = ""

    def unwrap(self, ask: Callable[[], bytes]) -> Secret:
        """A data key out of an answer; raises CertificateError (`weights-locked`)."""
        try:
            plain = self._ask(ask)
        except (ServiceAway, ServiceRefused) as error:
            raise self._locked(error.why) from error
        if len(plain) != DATA_KEY:
            raise self._locked("what it gives back is no data key")
        return Secret(bytearray(plain))

    def wrap(self, ask: Callable[[], bytes]) -> bytes:
        """What the service made of a data key; raises ConfigurationError."""
        try:
            return self._ask(ask)
        except (ServiceAway, ServiceRefused) as error:
            raise ConfigurationError(f"key {self._name} cannot be used: {error.why}") from error

    def _ask(self, ask: Callable[[], bytes]) -> bytes:
        if self._away:
            raise ServiceAway(self._away)
        try:
            return ask()
        except ServiceAway as error:
            self._away = error.why
            raise

    def _locked(self, why: str) -> CertificateError:
        return refusal("weights-locked", f"key {self._name} does not open model.key: {why}")


def read_table(path: Path, kind: type[Table]) -> Table:
    """The settings in a file; raises ConfigurationError that says what to mend."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_SERVICE_FILE + 1)
    except OSError as error:
        raise ConfigurationError(f"the key service's file {path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_KEY_SERVICE_FILE:
        raise ConfigurationError(f"{path} is too large to name a key service")
    try:
        return msgspec.convert(tomllib.loads(data.decode()), kind)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise ConfigurationError(f"{path}: {in_words(error, kind)}") from error


def https_address(text: str, path: Path) -> str:
    """An address that only TLS reaches; raises ConfigurationError."""
    try:
        parts = urlsplit(text)
        sound = _HTTPS.match(text) and parts.hostname and (parts.port is None or parts.port)
    except ValueError:  # brackets around what is no address, or a port that is none
        sound = False
    if not sound:
        raise ConfigurationError(f"{path}: the address must be https://HOST or https://HOST:PORT")
    return text


def waiting(seconds: float | None, path: Path) -> float:
    """How long one question may take; raises ConfigurationError."""
    found = KEY_SERVICE_S if seconds is None else seconds
    if not 0 < found <= MAX_KEY_SERVICE_S:
        raise ConfigurationError(f"{path}: timeout_s must be above 0 and at most {MAX_KEY_SERVICE_S:g}")
    return found


def authority(name: str, path: Path) -> str | None:
    """The file of the only authority that counts, beside `path`; None: those of the system."""
    if not name:
        return None
    found = path.parent / name
    if not found.is_file():
        raise ConfigurationError(f"{path}: ca_file {found} is not a file")
    return str(found)


def quiet(*libraries: str) -> None:
    """Keep what libraries log off the terminal, where no operator asked for it: it may quote what was sent."""
    for name in libraries:
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
