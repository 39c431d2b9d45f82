"""Attesters: what turns a runtime's claims into evidence that somebody vouches for.

`SoftwareAttester` is the operator's word: an Ed25519 key on the host. It proves that the operator started this runtime,
nothing about the hardware or the operator's honesty, and says so: clients grade it `software` and refuse it unless
their trust file opts in. Attesters with a hardware root implement the same interface and add their endorsement over
the same `bind`.

Trusts: the caller for the claims, the file system for the key. Never: signs claims that state another assurance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sealgate.errors import ConfigurationError
from sealgate.evidence.claims import Claims, encode_claims
from sealgate.evidence.token import SOFTWARE, bind_payload, endorse_software, sign_token


class Attester(Protocol):
    """Turns claims into evidence. MUST endorse `bind_payload(encode_claims(claims))` with every root that it has, MUST
    refuse claims whose `assurance` is not its own, MUST NOT change a claim."""

    @property
    def assurance(self) -> str:
        """The strongest kind of endorsement that it adds: what the claims must state."""
        ...

    def attest(self, claims: Claims) -> bytes:
        """The evidence, `application/eat+cwt`. May wait for a device: call it from a thread. Raises EndorserFailed."""
        ...

    def close(self) -> None:
        """Let go of its devices, if it has any."""
        ...


class SoftwareAttester:
    """The operator's word. Stateless beyond its key; safe to use from several threads."""

    def __init__(self, operator_key: Ed25519PrivateKey) -> None:
        self._key = operator_key

    @classmethod
    def load(cls, path: Path) -> SoftwareAttester:
        """Read the operator's PKCS#8 PEM; raises ConfigurationError."""
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise ConfigurationError(f"operator key {path} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"operator key {path} is not an unencrypted PKCS#8 PEM") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigurationError(f"operator key {path} is not an Ed25519 key")
        return cls(key)

    @property
    def assurance(self) -> str:
        return SOFTWARE

    @property
    def public_key(self) -> bytes:
        """Raw Ed25519 public key, as clients list it under `operator_keys`."""
        return self._key.public_key().public_bytes_raw()

    def attest(self, claims: Claims) -> bytes:
        """Sign and endorse; raises ConfigurationError for claims of another assurance."""
        if claims.assurance != SOFTWARE:
            raise ConfigurationError(f"a software attester cannot attest assurance '{claims.assurance}'")
        endorsement = endorse_software(bind_payload(encode_claims(claims)), self._key)
        return sign_token(claims, self._key, (endorsement,))

    def close(self) -> None:
        """It has none."""
