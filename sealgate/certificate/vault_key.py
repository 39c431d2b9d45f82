"""A wrapping key in HashiCorp Vault or OpenBao: the transit secrets engine, through hvac (the extra `vault`).

    address = "https://vault.example:8200"
    key = "sealgate-models"              an AES-256-GCM or ChaCha20-Poly1305 key of the engine
    mount = "transit"                    where the engine is
    token_file = "vault.token"           mode 0600, or instead of it
    role_id = "..."                      an AppRole, with
    secret_id_file = "vault.secret"      mode 0600
    ca_file = "vault-ca.pem"             the only authority that may certify it; left out: those of the system
    namespace = ""
    timeout_s = 10
    name = ""                            stands for the host in the key's name, so that the address may change

Data keys travel inside TLS to the service and back; the key itself stays there. The context goes as associated data, so
that a wrapped key opens for its own weights only. A wrapped key says which version of the key made it
(`vault:v3:...`): after `bao write -f transit/keys/KEY/rotate` the old ones still open, and `sealgate models rewrap`
with the same key on both sides puts a bundle under the newest. The service's own audit device has each use.

Wrapping asks first whether the key is there: a token that may create keys would otherwise make one of a mistyped name.

Trusts: the service behind that authority. Never: follows a redirect, a proxy or an environment variable; speaks
without TLS; creates or changes a key.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from sealgate.certificate.key_services import (
    Service,
    ServiceAway,
    ServiceRefused,
    authority,
    https_address,
    read_table,
    waiting,
)
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_WRAPPED_KEY
from sealgate.protocol.secrets import Secret

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}\Z")
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,39}\Z")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,39}\Z")
_WRAPPED = re.compile(rb"vault:v[0-9]{1,9}:[A-Za-z0-9+/=]{1,4000}\Z")
_TYPES = frozenset({"aes256-gcm96", "chacha20-poly1305"})


class VaultTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    address: str
    key: str
    mount: str = "transit"
    token_file: str = ""
    role_id: str = ""
    secret_id_file: str = ""
    ca_file: str = ""
    namespace: str = ""
    timeout_s: float | None = None
    name: str = ""


@dataclass(frozen=True)
class VaultKey:
    """One key of a transit engine. Signs in when it is first used."""

    name: str
    _table: VaultTable
    _path: Path
    _verify: str | bool
    _seconds: float
    _service: Service
    _clients: list[Any] = field(default_factory=list)  # none or one: signed in

    @classmethod
    def open(cls, path: Path) -> VaultKey:
        """The key that a file names; asks nobody. Raises ConfigurationError."""
        table = read_table(path, VaultTable)
        address = urlsplit(https_address(table.address, path))
        host = table.name or (address.hostname or "").replace(":", "-")
        if not _HOST.match(host) or not _PATH.match(table.mount) or not _NAME.match(table.key):
            raise ConfigurationError(f"{path}: key, mount and name are letters, digits, '.', '_', '-', at most 40")
        by_token, by_role = bool(table.token_file), bool(table.role_id and table.secret_id_file)
        if by_token == by_role or bool(table.role_id) != bool(table.secret_id_file):
            raise ConfigurationError(f"{path}: name a token_file, or role_id and secret_id_file")
        name = f"vault:{host}/{table.mount.strip('/')}/{table.key}"
        verify = authority(table.ca_file, path)
        return cls(name, table, path, verify or True, waiting(table.timeout_s, path), Service(name))

    def wrap(self, data_key: Secret, context: bytes) -> bytes:
        """`vault:vN:...`; raises ConfigurationError."""
        return self._service.wrap(lambda: self._wrap(data_key, context))

    def unwrap(self, wrapped: bytes, context: bytes) -> Secret:
        """The data key; raises CertificateError."""
        return self._service.unwrap(lambda: self._unwrap(wrapped, context))

    def _wrap(self, data_key: Secret, context: bytes) -> bytes:
        told = self._asked("read_key", "data", name=self._table.key)
        if told.get("type") not in _TYPES:
            raise ServiceRefused(f"it must be of the type {' or '.join(sorted(_TYPES))}")
        plain = base64.b64encode(data_key.reveal()).decode()
        made = self._asked(
            "encrypt_data", "data", name=self._table.key, plaintext=plain, associated_data=_text(context)
        )
        wrapped = str(made.get("ciphertext", "")).encode()
        if not _WRAPPED.match(wrapped) or len(wrapped) > MAX_WRAPPED_KEY:
            raise ServiceAway("the service answers something that is no wrapped key")
        return wrapped

    def _unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        if not _WRAPPED.match(wrapped):
            raise ServiceRefused("it was not wrapped by such a service")
        made = self._asked(
            "decrypt_data", "data", name=self._table.key, ciphertext=wrapped.decode(), associated_data=_text(context)
        )
        try:
            return base64.b64decode(made["plaintext"], validate=True)
        except (KeyError, TypeError, binascii.Error, ValueError) as error:
            raise ServiceAway("the service answers something that is no data key") from error

    def _asked(self, action: str, member: str, **values: str) -> dict[str, Any]:
        """One question of the engine; raises ServiceAway, ServiceRefused."""
        hvac, requests = _libraries()
        try:
            if not self._clients:
                self._clients.append(self._signed_in(hvac, requests))
            transit = self._clients[0].secrets.transit
            answer = getattr(transit, action)(mount_point=self._table.mount, **values)
            found = answer[member]
            if not isinstance(found, dict):
                raise TypeError
        except hvac.exceptions.InvalidRequest as error:
            why = "model.key was changed, is of other weights, or of a version of the key that may not be used any more"
            raise ServiceRefused(why if action == "decrypt_data" else "the service refuses the request") from error
        except (hvac.exceptions.Forbidden, hvac.exceptions.Unauthorized) as error:
            raise ServiceAway("the service does not let this token or role use it") from error
        except hvac.exceptions.InvalidPath as error:
            raise ServiceAway("the service has no such key or engine") from error
        except (hvac.exceptions.VaultError, requests.exceptions.RequestException) as error:
            raise ServiceAway("the service does not answer, is sealed, or its TLS is not to be trusted") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ServiceAway("the service answers in a way that is not understood") from error
        return found

    def _signed_in(self, hvac: Any, requests: Any) -> Any:
        """A client that knows nothing but the file: no variable of the environment, no token of the user's home."""
        session = requests.Session()
        session.trust_env = False
        session.verify = self._verify  # which hvac takes before its own argument
        client = hvac.Client(
            url=self._table.address,
            token=self._read(self._table.token_file) if self._table.token_file else "",
            verify=self._verify,
            timeout=self._seconds,
            allow_redirects=False,
            session=session,
            namespace=self._table.namespace or None,
            cert=False,
        )
        if self._table.role_id:
            secret = self._read(self._table.secret_id_file)
            try:
                client.auth.approle.login(role_id=self._table.role_id, secret_id=secret)
            except hvac.exceptions.InvalidRequest as error:
                raise ServiceAway("the service does not know this role, or not with this secret") from error
        return client

    def _read(self, name: str) -> str:
        from sealgate.certificate.wrapping_keys import read_private

        try:
            text = read_private(self._path.parent / name).decode("ascii").strip()
        except (ConfigurationError, UnicodeDecodeError) as error:
            raise ServiceAway(f"{name} beside {self._path.name} cannot be read, or others can read it too") from error
        if not text or any(char.isspace() for char in text):
            raise ServiceAway(f"{name} beside {self._path.name} holds no token")
        return text


def _text(context: bytes) -> str:
    return base64.b64encode(context).decode()


def _libraries() -> tuple[Any, Any]:
    try:
        import hvac
        import requests
    except ImportError as error:
        raise ServiceAway("it needs the package hvac: pip install 'sealgate[vault]'") from error
    return hvac, requests
