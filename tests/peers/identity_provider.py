"""The real OpenID provider of provider.mjs as a process of its own, and its clients as a company would set them up."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gateway import pki
from sealgate.ambient import now_us, random_bytes
from tests.peers.components import PEERS, require_provider

SECRET = "correct-horse-battery-staple-32-bytes"  # of the clients with a secret; this provider is on loopback
CLAIMS = {"tenant": "clinic", "roles": ["client"], "purposes": ["treatment"]}
PLAIN, DPOP, MTLS, SELF_SIGNED = "integration", "prover", "machine", "lone-machine"
MACHINE_URI = pki.CLIENT_URI + MTLS


class Credentials:
    """Files of a certificate and its key, for TLS libraries that want files."""

    def __init__(self, folder: Path, name: str, leaf: pki.Leaf) -> None:
        self.leaf = leaf
        self.certificate = folder / f"{name}.pem"
        self.key = folder / f"{name}.key"
        self.certificate.write_bytes(pki.certificate_pem(leaf[0]))
        self.key.write_bytes(leaf[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


class IdentityProvider:
    """Started by `running_provider`; gone with its standard input."""

    def __init__(self, folder: Path, *, authority: pki.Authority | None, settings: Mapping[str, Any]) -> None:
        node = require_provider()
        self.authority = authority or pki.make_authority("A company", now_us=now_us(), entropy=random_bytes)
        self.ca = folder / "provider-ca.pem"
        self.ca.write_bytes(pki.certificate_pem(self.authority.certificate))
        server = pki.make_server(self.authority, ("localhost",), now_us=now_us(), entropy=random_bytes)
        self.server = Credentials(folder, "provider", server)
        self.machine = Credentials(folder, MTLS, self._client(self.authority, MTLS))
        alone = pki.make_authority("Nobody's authority", now_us=now_us(), entropy=random_bytes)
        self.lone_machine = Credentials(folder, SELF_SIGNED, self._client(alone, SELF_SIGNED))
        self.resource = settings["resources"][0]
        self._process = subprocess.Popen(
            [node, "provider.mjs"], cwd=PEERS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        tls = {
            "key": self.server.key.read_text(),
            "cert": self.server.certificate.read_text(),
            "ca": self.ca.read_text(),
        }
        clients = [*self._clients(), *settings.get("more_clients", ())]
        begun = self._say({"alg": "ES256", "ttl_s": 600, "tls": tls, **settings, "clients": clients})
        self.issuer: str = begun["issuer"]
        self.kid: str = begun["kid"]

    @staticmethod
    def _client(authority: pki.Authority, name: str) -> pki.Leaf:
        return pki.make_client(authority, name, now_us=now_us(), entropy=random_bytes)

    def _clients(self) -> list[dict[str, Any]]:
        secret = {"client_secret": SECRET, "token_endpoint_auth_method": "client_secret_basic"}
        bound = {"tls_client_certificate_bound_access_tokens": True}
        metadata = [
            {"client_id": PLAIN, **secret},
            {"client_id": DPOP, **secret, "dpop_bound_access_tokens": True},
            {
                "client_id": MTLS,
                "token_endpoint_auth_method": "tls_client_auth",
                "tls_client_auth_san_uri": MACHINE_URI,
                **bound,
            },
            {
                "client_id": SELF_SIGNED,
                "token_endpoint_auth_method": "self_signed_tls_client_auth",
                "jwks": {"keys": [certificate_jwk(self.lone_machine.leaf)]},
                **bound,
            },
        ]
        return [{"metadata": fields, "claims": CLAIMS} for fields in metadata]

    def _say(self, command: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the provider ended with {self._process.wait(10)}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    # What a test makes it do ------------------------------------------------------------------------------------------

    def add_key(self, alg: str = "ES256") -> str:
        """Publish another key; it signs nothing yet."""
        return str(self._say({"do": "add", "alg": alg})["kid"])

    def sign_with(self, kid: str) -> None:
        self._say({"do": "sign", "kid": kid})

    def withdraw(self, kid: str) -> None:
        self._say({"do": "withdraw", "kid": kid})

    def fault(self, kind: str | None) -> None:
        """How keys and metadata fail: status, garbage, oversize, redirect, stall, or None."""
        self._say({"do": "fault", "kind": kind})

    def cache_control(self, value: str | None) -> None:
        self._say({"do": "cache", "value": value})

    def down(self) -> None:
        self._say({"do": "down"})

    def up(self) -> None:
        self._say({"do": "up"})

    def fetches(self) -> dict[str, int]:
        return self._say({"do": "fetches"})

    # What its clients do ----------------------------------------------------------------------------------------------

    def tls(self, credentials: Credentials | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca)
        if credentials is not None:
            context.load_cert_chain(credentials.certificate, credentials.key)
        return context

    @property
    def token_endpoint(self) -> str:
        return f"{self.issuer}/token"

    def ask(
        self,
        client_id: str = PLAIN,
        *,
        credentials: Credentials | None = None,
        headers: Mapping[str, str] | None = None,
        **parameters: str,
    ) -> httpx.Response:
        """One token request, by hand."""
        form = {"grant_type": "client_credentials", "resource": self.resource, **parameters}
        auth = httpx.BasicAuth(client_id, SECRET) if credentials is None else httpx.Auth()
        if credentials is not None:
            form["client_id"] = client_id
        with httpx.Client(verify=self.tls(credentials), trust_env=False, timeout=20) as client:
            return client.post(self.token_endpoint, data=form, auth=auth, headers=dict(headers or {}))

    def token(self, client_id: str = PLAIN, *, credentials: Credentials | None = None) -> str:
        answer = self.ask(client_id, credentials=credentials)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            code = self._process.wait(10)
        finally:
            self._process.kill()
            self._process.stdout.close()
        assert code == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def certificate_jwk(leaf: pki.Leaf) -> dict[str, Any]:
    """A public key with its certificate, as a client registers it (RFC 8705 section 2.2.2)."""
    public = leaf[0].public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    point = public.public_numbers()
    raw = (number.to_bytes(32, "big") for number in (point.x, point.y))
    x, y = (base64.urlsafe_b64encode(number).rstrip(b"=").decode() for number in raw)
    der = base64.b64encode(leaf[0].public_bytes(Encoding.DER)).decode()
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y, "x5c": [der]}


@contextmanager
def running_provider(
    folder: Path, *, resource: str, authority: pki.Authority | None = None, **settings: Any
) -> Iterator[IdentityProvider]:
    """A provider that issues tokens for `resource`. `authority` signs its own certificate and its clients'."""
    with IdentityProvider(folder, authority=authority, settings={"resources": [resource], **settings}) as provider:
        yield provider
