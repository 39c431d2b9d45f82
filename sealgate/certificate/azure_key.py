"""A wrapping key in Azure Key Vault or Managed HSM, through azure-keyvault-keys and azure-identity (the extra `azure`).

    key = "https://VAULT.vault.azure.net/keys/NAME"   an RSA key, without a version
    ca_file = ""                         the only authority that may certify it; left out: those of the library
    timeout_s = 10

Vaults wrap by RSA alone, which takes no associated data. So what the service wraps (RSA-OAEP-256, under the newest
version of the key) is a key of one use, drawn here; under that the data key is encrypted with the context:

    wrapped := 0x01 | version of the key, 32 hex digits | length of w, 2 bytes | w | nonce | AES-256-GCM(data key)

so that a wrapped key opens for its own weights only. After a rotation old versions open as long as they are enabled;
`sealgate models rewrap` with the same key on both sides puts a bundle under the newest. How to sign in is Azure's own
affair: a managed identity, a workload's, variables, or whoever ran `az login`. Each use stands in the vault's log.

Trusts: the service behind that authority; azure-identity's way to find credentials. Never: speaks without TLS; follows
a redirect; creates or changes a key; unwraps anywhere but in the service.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealgate.ambient import Entropy, random_bytes
from sealgate.certificate.key_services import (
    Service,
    ServiceAway,
    ServiceRefused,
    authority,
    https_address,
    quiet,
    read_table,
    waiting,
)
from sealgate.certificate.sealed_weights import DATA_KEY
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_WRAPPED_KEY
from sealgate.protocol.secrets import Secret

_KEY = re.compile(r"(https://[^/]+)/keys/([A-Za-z0-9-]{1,64})\Z")
_WRAPPED = re.compile(rb"\x01([0-9a-f]{32})(..)", re.DOTALL)
_VERSION = re.compile(r"[0-9a-f]{32}\Z")
_LONGEST_NAME = 128  # of a wrapping key, as model.key takes it
_ONE_USE, _NONCE, _TAG = 32, 12, 16


class AzureKeyTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    key: str
    ca_file: str = ""
    timeout_s: float | None = None


@dataclass(frozen=True)
class AzureKey:
    """One key of a vault. Signs in when it is first used."""

    name: str
    _vault: str
    _key: str
    _options: dict[str, Any]
    _service: Service
    _credentials: list[Any] = field(default_factory=list)  # none or one

    @classmethod
    def open(cls, path: Path) -> AzureKey:
        """The key that a file names; asks nobody. Raises ConfigurationError."""
        table = read_table(path, AzureKeyTable)
        found = _KEY.match(table.key)
        if found is None:
            raise ConfigurationError(f"{path}: key must be https://VAULT/keys/NAME, without a version")
        vault = https_address(found[1], path)
        name = f"azurekv:{re.sub(r'[^A-Za-z0-9.:-]', '-', vault.removeprefix('https://'))}/{found[2]}"
        if len(name) > _LONGEST_NAME:
            raise ConfigurationError(f"{path}: vault and key have too long names together")
        seconds = waiting(table.timeout_s, path)
        options = {
            "connection_verify": authority(table.ca_file, path) or True,
            "connection_timeout": seconds,
            "read_timeout": seconds,
            "retry_total": 0,
            "permit_redirects": False,
            "logging_enable": False,
        }
        return cls(name, vault, found[2], options, Service(name))

    def wrap(self, data_key: Secret, context: bytes, *, entropy: Entropy = random_bytes) -> bytes:
        """As above; raises ConfigurationError."""
        return self._service.wrap(lambda: self._wrap(data_key, context, entropy))

    def unwrap(self, wrapped: bytes, context: bytes) -> Secret:
        """The data key; raises CertificateError."""
        return self._service.unwrap(lambda: self._unwrap(wrapped, context))

    def _wrap(self, data_key: Secret, context: bytes, entropy: Entropy) -> bytes:
        once = Secret(entropy(_ONE_USE))
        version, wrapped_once = self._asked(lambda keys, client: self._wrapped_once(keys, client, once))
        nonce = entropy(_NONCE)
        sealed = AESGCM(once.reveal()).encrypt(nonce, data_key.reveal(), context)
        wrapped = b"\x01" + version.encode() + len(wrapped_once).to_bytes(2, "big") + wrapped_once + nonce + sealed
        if len(wrapped) > MAX_WRAPPED_KEY:
            raise ServiceAway("the service answers something that is no wrapped key")
        return wrapped

    def _wrapped_once(self, keys: Any, client: Any, once: Secret) -> tuple[str, bytes]:
        """The newest version of the key, and `once` under it. The public part may be used here."""
        newest = keys.KeyClient(self._vault, self._credentials[0], **self._options).get_key(self._key)
        version = str(newest.properties.version)
        if newest.key_type not in (keys.KeyType.rsa, keys.KeyType.rsa_hsm) or not _VERSION.match(version):
            raise ServiceRefused("it must be an RSA key")
        how = keys.crypto.KeyWrapAlgorithm.rsa_oaep_256
        result = client(newest, self._credentials[0], **self._options).wrap_key(how, once.reveal())
        return version, bytes(result.encrypted_key)

    def _unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        head = _WRAPPED.match(wrapped)
        end = head.end() + int.from_bytes(head[2], "big") if head else 0
        if head is None or len(wrapped) != end + _NONCE + DATA_KEY + _TAG:
            raise ServiceRefused("it was not wrapped by such a service")
        of_version = f"{self._vault}/keys/{self._key}/{head[1].decode()}"

        def ask(keys: Any, client: Any) -> tuple[str, bytes]:
            found = client(of_version, self._credentials[0], **self._options)
            how = keys.crypto.KeyWrapAlgorithm.rsa_oaep_256
            return "", bytes(found.unwrap_key(how, wrapped[head.end() : end]).key)

        once = Secret(bytearray(self._asked(ask, opening=True)[1]))
        try:
            return AESGCM(once.reveal()).decrypt(wrapped[end : end + _NONCE], wrapped[end + _NONCE :], context)
        except (InvalidTag, ValueError) as error:
            raise ServiceRefused(_CHANGED) from error

    def _asked(self, ask: Any, *, opening: bool = False) -> tuple[str, bytes]:
        """One question; raises ServiceAway, ServiceRefused."""
        keys, client, identity, errors = _libraries()
        try:
            if not self._credentials:
                self._credentials.append(identity.DefaultAzureCredential())
            version, found = ask(keys, client)
        except errors.ClientAuthenticationError as error:
            raise ServiceAway("there are no credentials for it, or nobody signs in with them") from error
        except errors.HttpResponseError as error:
            if error.status_code == 400 and opening:
                raise ServiceRefused(_CHANGED) from error
            raise ServiceAway(_MEANING.get(error.status_code, "the service answers with an error")) from error
        except errors.AzureError as error:
            raise ServiceAway("the service does not answer, or its TLS is not to be trusted") from error
        except (ServiceAway, ServiceRefused):
            raise
        except Exception as error:  # what the library makes of an answer that it does not understand: of many kinds
            raise ServiceAway("the service answers in a way that is not understood") from error
        return version, found


_CHANGED = "model.key was changed, or is of other weights or another key"
_MEANING = {
    401: "the service does not know these credentials",
    403: "the service does not let these credentials use it, or the version of the key is disabled",
    404: "the service has no such key, or not this version of it any more",
    429: "the service is asked too often",
}


def _libraries() -> tuple[Any, Any, Any, Any]:
    try:
        import azure.core.exceptions
        import azure.identity
        import azure.keyvault.keys
        import azure.keyvault.keys.crypto
    except ImportError as error:
        why = "it needs the packages azure-keyvault-keys and azure-identity: pip install 'sealgate[azure]'"
        raise ServiceAway(why) from error
    quiet("azure", "msal")
    return azure.keyvault.keys, azure.keyvault.keys.crypto.CryptographyClient, azure.identity, azure.core.exceptions
