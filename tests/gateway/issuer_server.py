"""An identity provider's HTTPS side for tests: real TLS on loopback, answers by a script, every request counted.

Beside it, keys that sign: a `Signer` makes tokens with the libraries directly, not with the code under test.
"""

from __future__ import annotations

import base64
import http.server
import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway import pki
from sealgate.ambient import now_us, random_bytes


@dataclass
class Reply:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class IssuerServer:
    """Serves `replies[path]`: a Reply, or a function that makes one. Anything else is a 404."""

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        self.replies: dict[str, Reply | Callable[[], Reply]] = {}
        self.asked: list[str] = []
        self.fields: list[dict[str, str]] = []
        self.ca = folder / "issuer-ca.pem"
        self._context = self._identity(folder)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def get_request(self) -> Any:
                sock, address = super().get_request()
                sock.settimeout(60)
                return outer._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), address

            def handle_error(self, *_: Any) -> None:
                pass  # a client that refuses our certificate is what some tests want

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"https://localhost:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def _identity(self, folder: Path) -> ssl.SSLContext:
        """The same authority and certificate for every server of a folder."""
        pair = folder / "issuer-server.pem"
        if not self.ca.exists():
            authority = pki.make_authority("Provider CA", now_us=now_us(), entropy=random_bytes)
            certificate, key = pki.make_server(authority, ("localhost",), now_us=now_us(), entropy=random_bytes)
            self.ca.write_bytes(pki.certificate_pem(authority.certificate))
            form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            pair.write_bytes(pki.certificate_pem(certificate) + key.private_bytes(*form))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair)
        return context

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        self.asked.append(handler.path)
        self.fields.append({name.lower(): value for name, value in handler.headers.items()})
        found = self.replies.get(handler.path, Reply(status=404))
        reply = found() if callable(found) else found
        handler.send_response(reply.status)
        for name, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(reply.body)

    def publish(self, *signers: Signer, path: str = "/jwks", **headers: str) -> None:
        """Serve the public keys of these signers."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        body = json.dumps({"keys": [signer.public for signer in signers]}).encode()
        self.replies[path] = Reply(body, headers={"Content-Type": "application/jwk-set+json"} | fields)

    def describe(self, *, path: str = "/.well-known/openid-configuration", **changes: Any) -> None:
        """Serve metadata that says where the keys are."""
        metadata = {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"} | changes
        self.replies[path] = Reply(json.dumps(metadata).encode())

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


class Signer:
    """An ES256 key with a name."""

    def __init__(self, kid: str) -> None:
        self.kid = kid
        self._key = ec.generate_private_key(ec.SECP256R1())

    @property
    def public(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key()))
        return found | {"kid": self.kid, "use": "sig", "alg": "ES256"}

    def token(self, *, iss: str, aud: str = "https://localhost:8443", **changes: Any) -> str:
        now = now_us() // 1_000_000
        claims = {
            "iss": iss,
            "aud": aud,
            "sub": "app",
            "client_id": "app",
            "jti": base64.urlsafe_b64encode(random_bytes(9)).decode(),
            "iat": now,
            "exp": now + 300,
            "tenant": "clinic",
            "roles": ["client"],
            "purposes": ["treatment"],
        }
        return jwt.encode(claims | changes, self._key, algorithm="ES256", headers={"typ": "at+jwt", "kid": self.kid})
