"""A wrapping key in AWS Key Management Service, through boto3 (the extra `aws`).

    key = "arn:aws:kms:eu-central-1:123456789012:key/..."   a symmetric key, by its ARN
    endpoint = ""                        another address of the service, such as a private one; https only
    profile = ""                         of AWS's own configuration
    ca_file = ""                         the only authority that may certify it; left out: those of the library
    timeout_s = 10

The key is named by its ARN and not by an alias, which somebody may point at another key. How to sign in is AWS's own
affair: a role of the machine, its variables or files. The digest of the context goes as encryption context, so that a
wrapped key opens for its own weights only, and each use stands in CloudTrail with it. A rotation by the service keeps
the ARN, and old wrapped keys open.

Trusts: the service behind that authority; boto3's way to find credentials. Never: speaks without TLS; creates or
changes a key.
"""

from __future__ import annotations

import hashlib
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
    read_table,
    waiting,
)
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_WRAPPED_KEY
from sealgate.protocol.secrets import Secret

_ARN = re.compile(r"arn:aws[a-z-]{0,16}:kms:([a-z0-9-]{1,32}):[0-9]{12}:key/[A-Za-z0-9-]{1,48}\Z")
_NOT_THIS_KEY = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})


class AwsKmsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    key: str
    endpoint: str = ""
    profile: str = ""
    ca_file: str = ""
    timeout_s: float | None = None


@dataclass(frozen=True)
class AwsKmsKey:
    """One key of the service."""

    name: str
    _table: AwsKmsTable
    _region: str
    _verify: str | None
    _seconds: float
    _service: Service
    _clients: list[Any] = field(default_factory=list)  # none or one

    @classmethod
    def open(cls, path: Path) -> AwsKmsKey:
        """The key that a file names; asks nobody. Raises ConfigurationError."""
        table = read_table(path, AwsKmsTable)
        arn = _ARN.match(table.key)
        if arn is None:
            raise ConfigurationError(f"{path}: key must be the ARN of a key, arn:aws:kms:REGION:ACCOUNT:key/ID")
        if table.endpoint:
            https_address(table.endpoint, path)
        name = f"awskms:{table.key}"
        verify = authority(table.ca_file, path)
        return cls(name, table, arn[1], verify, waiting(table.timeout_s, path), Service(name))

    def wrap(self, data_key: Secret, context: bytes) -> bytes:
        """The service's ciphertext; raises ConfigurationError."""
        return self._service.wrap(
            lambda: self._asked("encrypt", "CiphertextBlob", context, Plaintext=data_key.reveal())
        )

    def unwrap(self, wrapped: bytes, context: bytes) -> Secret:
        """The data key; raises CertificateError."""
        return self._service.unwrap(lambda: self._asked("decrypt", "Plaintext", context, CiphertextBlob=wrapped))

    def _asked(self, action: str, member: str, context: bytes, **values: bytes) -> bytes:
        """One question; raises ServiceAway, ServiceRefused."""
        boto3, config, errors = _libraries()
        bound = {"sealgate": hashlib.sha256(context).hexdigest()}
        try:
            if not self._clients:
                self._clients.append(self._client(boto3, config))
            answer = getattr(self._clients[0], action)(KeyId=self._table.key, EncryptionContext=bound, **values)
            found = answer[member]
            if (
                answer["KeyId"] != self._table.key
                or not isinstance(found, bytes)
                or not 0 < len(found) <= MAX_WRAPPED_KEY
            ):
                raise ServiceAway("the service answers for another key, or in a way that is not understood")
        except errors.ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _NOT_THIS_KEY:
                raise ServiceRefused("model.key was changed, or is of other weights or another key") from error
            shown = code if re.fullmatch(r"[A-Za-z.]{1,64}", code) else "an error without a name"
            raise ServiceAway(f"the service answers {shown}") from error
        except errors.BotoCoreError as error:
            why = "there are no credentials for it, it does not answer, or its TLS is not to be trusted"
            raise ServiceAway(why) from error
        except (KeyError, TypeError, ValueError) as error:
            raise ServiceAway("the service answers in a way that is not understood") from error
        return found

    def _client(self, boto3: Any, config: Any) -> Any:
        session = boto3.session.Session(profile_name=self._table.profile or None, region_name=self._region)
        bounded = config(
            connect_timeout=self._seconds,
            read_timeout=self._seconds,
            retries={"total_max_attempts": 1},
            ignore_configured_endpoint_urls=True,
        )
        return session.client("kms", endpoint_url=self._table.endpoint or None, verify=self._verify, config=bounded)


def _libraries() -> tuple[Any, Any, Any]:
    try:
        import boto3.session
        import botocore.exceptions
        from botocore.config import Config
    except ImportError as error:
        raise ServiceAway("it needs the package boto3: pip install 'sealgate[aws]'") from error
    return boto3, Config, botocore.exceptions
