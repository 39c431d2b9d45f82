"""A wrapping key in Google Cloud KMS: its two REST calls, signed in by google-auth (the extra `gcp`).

    key = "projects/P/locations/L/keyRings/R/cryptoKeys/K"   a symmetric key (ENCRYPT_DECRYPT), without a version
    credentials_file = "kms.json"        key of a service account, mode 0600; left out: as Google's own tools find them
    endpoint = ""                        another address of the service, such as a private one; https only
    ca_file = ""                         the only authority that may certify it; left out: those of the library
    timeout_s = 10

The context goes as additional authenticated data, so that a wrapped key opens for its own weights only. A rotation by
the service keeps the key's name; what old versions wrapped opens until they are disabled or destroyed, and `sealgate
models rewrap` with the same key on both sides puts a bundle under the primary one. Uses stand in Cloud Audit Logs where
data access is logged. The service's own client library brings gRPC and pins protobuf for what are two calls here.

Trusts: the service behind that authority; google-auth's way to find credentials. Never: speaks without TLS; follows a
redirect; creates or changes a key.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

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
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_KEY_SERVICE_ANSWER, MAX_KEY_SERVICE_FILE, MAX_WRAPPED_KEY
from sealgate.protocol.secrets import Secret

_KEY = re.compile(
    r"projects/([a-z][a-z0-9.:-]{1,62})/locations/([a-z0-9-]{1,32})"
    r"/keyRings/([A-Za-z0-9_-]{1,63})/cryptoKeys/([A-Za-z0-9_-]{1,63})\Z"
)
_LONGEST_NAME = 128  # of a wrapping key, as model.key takes it
_SERVICE = "https://cloudkms.googleapis.com"
_SCOPES = ("https://www.googleapis.com/auth/cloudkms",)
_STATUS = re.compile(r"[A-Z_]{1,40}\Z")


class GoogleKmsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    key: str
    credentials_file: str = ""
    endpoint: str = ""
    ca_file: str = ""
    timeout_s: float | None = None


@dataclass(frozen=True)
class GoogleKmsKey:
    """One key of the service. Signs in when it is first used."""

    name: str
    _table: GoogleKmsTable
    _path: Path
    _verify: str | bool
    _seconds: float
    _service: Service
    _sessions: list[Any] = field(default_factory=list)  # none or one: signed in

    @classmethod
    def open(cls, path: Path) -> GoogleKmsKey:
        """The key that a file names; asks nobody. Raises ConfigurationError."""
        table = read_table(path, GoogleKmsTable)
        found = _KEY.match(table.key)
        if found is None:
            where = "projects/P/locations/L/keyRings/R/cryptoKeys/K"
            raise ConfigurationError(f"{path}: key must be the full name of a key, {where}, without a version")
        name = f"gcpkms:{'/'.join(found.groups())}"
        if len(name) > _LONGEST_NAME:
            raise ConfigurationError(f"{path}: project, location, key ring and key have too long names together")
        if table.endpoint:
            https_address(table.endpoint, path)
        verify = authority(table.ca_file, path)
        return cls(name, table, path, verify or True, waiting(table.timeout_s, path), Service(name))

    def wrap(self, data_key: Secret, context: bytes) -> bytes:
        """The service's ciphertext; raises ConfigurationError."""
        return self._service.wrap(lambda: self._asked("encrypt", "plaintext", "ciphertext", data_key.reveal(), context))

    def unwrap(self, wrapped: bytes, context: bytes) -> Secret:
        """The data key; raises CertificateError."""
        return self._service.unwrap(lambda: self._asked("decrypt", "ciphertext", "plaintext", wrapped, context))

    def _asked(self, action: str, given: str, wanted: str, value: bytes | bytearray, context: bytes) -> bytes:
        """One question; raises ServiceAway, ServiceRefused."""
        google, requests = _libraries()
        question = {given: _text(value), "additionalAuthenticatedData": _text(context)}
        try:
            if not self._sessions:
                self._sessions.append(self._signed_in(google))
            answer = self._sessions[0].post(
                f"{self._table.endpoint or _SERVICE}/v1/{self._table.key}:{action}",
                json=question,
                timeout=self._seconds,
                max_allowed_time=self._seconds,
                allow_redirects=False,
                verify=self._verify,
                stream=True,
            )
            with answer:
                status = answer.status_code
                told = msgspec.json.decode(answer.raw.read(MAX_KEY_SERVICE_ANSWER, decode_content=True))
            if status != 200:
                raise _refusal(told["error"].get("status", ""), action)
            if action == "encrypt" and not told["name"].startswith(f"{self._table.key}/cryptoKeyVersions/"):
                raise ServiceAway("the service answers for another key")
            found = base64.b64decode(told[wanted], validate=True)
            if not 0 < len(found) <= MAX_WRAPPED_KEY:
                raise ValueError(wanted)
        except google.auth.exceptions.GoogleAuthError as error:
            raise ServiceAway("there are no credentials for it, or nobody signs in with them") from error
        except requests.exceptions.RequestException as error:
            raise ServiceAway("the service does not answer, or its TLS is not to be trusted") from error
        except (KeyError, TypeError, ValueError, AttributeError, OSError, msgspec.DecodeError) as error:
            raise ServiceAway("the service answers in a way that is not understood") from error
        return found

    def _signed_in(self, google: Any) -> Any:
        """A session whose questions carry a token; raises ServiceAway, GoogleAuthError."""
        request = google.auth.transport.requests.Request()
        if self._table.credentials_file:
            found = self._account(google)
        else:
            found, _ = google.auth.default(scopes=_SCOPES, request=request)
        return google.auth.transport.requests.AuthorizedSession(
            found, refresh_timeout=self._seconds, auth_request=request
        )

    def _account(self, google: Any) -> Any:
        """The credentials in the file that is named; raises ServiceAway."""
        from sealgate.certificate.wrapping_keys import read_private

        shown = f"{self._table.credentials_file} beside {self._path.name}"
        try:
            text = read_private(self._path.parent / self._table.credentials_file, limit=MAX_KEY_SERVICE_FILE)
            account = msgspec.json.decode(text)
            return google.oauth2.service_account.Credentials.from_service_account_info(account, scopes=_SCOPES)
        except ConfigurationError as error:
            raise ServiceAway(f"{shown} cannot be read, or others can read it too") from error
        except (msgspec.DecodeError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise ServiceAway(f"{shown} is not the key of a service account") from error


def _refusal(status: object, action: str) -> ServiceAway | ServiceRefused:
    """What an error of the service means (google.rpc.Code)."""
    if status == "INVALID_ARGUMENT" and action == "decrypt":
        return ServiceRefused("model.key was changed, or is of other weights or another key")
    if status == "FAILED_PRECONDITION":
        return ServiceRefused("the version of the key that wrapped it, or the primary one, is disabled or destroyed")
    if status in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        return ServiceAway("the service does not let these credentials use it, or has no such key")
    shown = status if isinstance(status, str) and _STATUS.match(status) else "an error without a name"
    return ServiceAway(f"the service answers {shown}")


def _text(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode()


def _libraries() -> tuple[Any, Any]:
    try:
        import google.auth.exceptions
        import google.auth.transport.requests
        import google.oauth2.service_account
        import requests
    except ImportError as error:
        raise ServiceAway("it needs the package google-auth: pip install 'sealgate[gcp]'") from error
    quiet("google")
    return google, requests
