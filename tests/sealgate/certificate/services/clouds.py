"""Google Cloud KMS and Azure Key Vault as this server plays them, over TLS, with the ways to sign in to them.

Written after the services' public REST documentation, and knows nothing of the product: it checks tokens, encrypts for
real, and answers errors in each service's own form. `answers` lets a test put other words into its mouth.
"""

from __future__ import annotations

import base64
import json
import secrets
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

ACCOUNT = "host@project.iam.gserviceaccount.com"
IDENTITY_HEADER = "identity-of-tests"
_GOOGLES_AUDIENCE = "https://oauth2.googleapis.com/token"  # wherever token_uri leads
_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


class Clouds(ThreadingHTTPServer):
    """Both services on one port of 127.0.0.1."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server_address[1]}"
        self.account_key = rsa.generate_private_key(65537, 2048)
        self.google: dict[str, list[bytes | None]] = {}  # keys with their versions, None where one is destroyed
        self.azure: dict[str, dict[str, Any]] = {}  # keys with their versions in order; None: of another kind
        self.disabled: set[str] = set()  # versions of them
        self.tokens: set[str] = set()
        self.asked: list[str] = []
        self.answers: list[tuple[int, bytes]] = []  # said in the place of the next true ones to a question about a key

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that does not believe the certificate hangs up: no news."""

    def new_token(self) -> str:
        token = secrets.token_hex(16)
        self.tokens.add(token)
        return token

    def service_account(self) -> str:
        """The JSON that Google gives out for a key of a service account."""
        pem = self.account_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return json.dumps(
            {
                "type": "service_account",
                "project_id": "project",
                "private_key_id": "1",
                "private_key": pem,
                "client_email": ACCOUNT,
                "client_id": "1",
                "token_uri": f"{self.url}/token",
            }
        )

    def turn_azure_key(self, name: str) -> str:
        """A new version of a key, which may be new itself."""
        version = secrets.token_hex(16)
        self.azure.setdefault(name, {})[version] = rsa.generate_private_key(65537, 2048)
        return version


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Clouds

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("content-length") or 0)))

    def _serve(self, body: bytes) -> None:
        path = urlsplit(self.path)
        self.server.asked.append(f"{self.command} {path.path}")
        if path.path == "/token":
            self._google_token(parse_qs(body.decode()))
        elif path.path == "/identity":
            self._azure_token(parse_qs(path.query))
        elif path.path.startswith("/v1/projects/"):
            self._google(path.path.removeprefix("/v1/"), body)
        else:
            self._azure(path.path.strip("/").split("/"), body)

    def _say(self, status: int, document: object, **fields: str) -> None:
        self._send(status, json.dumps(document).encode(), **fields)

    def _send(self, status: int, body: bytes, **fields: str) -> None:
        self.send_response_only(status)
        for name, value in {"content_type": "application/json", "content_length": str(len(body)), **fields}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _known(self) -> bool:
        kind, _, token = self.headers.get("authorization", "").partition(" ")
        return kind == "Bearer" and token in self.server.tokens

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    # Google ----------------------------------------------------------------------------------------------------------

    def _google_token(self, form: dict[str, list[str]]) -> None:
        try:
            key = self.server.account_key.public_key()
            jwt.decode(form["assertion"][0], key, algorithms=["RS256"], audience=_GOOGLES_AUDIENCE)
        except (KeyError, jwt.InvalidTokenError):
            self._say(400, {"error": "invalid_grant"})
            return
        self._say(200, {"access_token": self.server.new_token(), "expires_in": 3600, "token_type": "Bearer"})

    def _google(self, path: str, body: bytes) -> None:
        name, _, action = path.rpartition(":")
        if self.server.answers:
            self._send(*self.server.answers.pop(0))
            return
        if not self._known():
            self._google_error(401, "UNAUTHENTICATED")
            return
        versions = self.server.google.get(name)
        if versions is None:
            self._google_error(404, "NOT_FOUND")
            return
        question = json.loads(body)
        bound = base64.b64decode(question["additionalAuthenticatedData"])
        if action == "encrypt":
            number = len(versions)
            key, nonce = versions[-1], secrets.token_bytes(12)
            if key is None:
                self._google_error(400, "FAILED_PRECONDITION")
                return
            sealed = nonce + AESGCM(key).encrypt(nonce, base64.b64decode(question["plaintext"]), bound)
            wrapped = base64.b64encode(bytes([number]) + sealed).decode()
            self._say(200, {"name": f"{name}/cryptoKeyVersions/{number}", "ciphertext": wrapped})
            return
        raw = base64.b64decode(question["ciphertext"])
        if not raw or not 0 < raw[0] <= len(versions):
            self._google_error(400, "INVALID_ARGUMENT")
            return
        opening = versions[raw[0] - 1]
        if opening is None:
            self._google_error(400, "FAILED_PRECONDITION")
            return
        try:
            plain = AESGCM(opening).decrypt(raw[1:13], raw[13:], bound)
        except (InvalidTag, ValueError):
            self._google_error(400, "INVALID_ARGUMENT")
            return
        self._say(200, {"plaintext": base64.b64encode(plain).decode(), "usedPrimary": raw[0] == len(versions)})

    def _google_error(self, code: int, status: str) -> None:
        self._say(code, {"error": {"code": code, "message": "said by the service", "status": status}})

    # Azure -----------------------------------------------------------------------------------------------------------

    def _azure_token(self, query: dict[str, list[str]]) -> None:
        if self.headers.get("x-identity-header") != IDENTITY_HEADER:
            self._say(401, {"error": "unauthorized"})
            return
        until = str(int(time.time()) + 3600)
        told = {"access_token": self.server.new_token(), "expires_on": until, "resource": query["resource"][0]}
        self._say(200, told | {"token_type": "Bearer"})

    def _azure(self, path: list[str], body: bytes) -> None:
        if not self._known():
            resource = self.server.url.replace("127.", "", 1)  # of which the vault is a part, as VAULT.vault.azure.net
            challenge = f'Bearer authorization="https://login.test/tenant", resource="{resource}"'
            self._say(401, {"error": {"code": "Unauthorized"}}, WWW_Authenticate=challenge)
            return
        if self.server.answers:
            self._send(*self.server.answers.pop(0))
            return
        versions = self.server.azure.get(path[1], {}) if path[0] == "keys" else {}
        version = path[2] if len(path) > 2 and path[2] else next(reversed(versions), "")
        if version not in versions:
            self._azure_error(404, "KeyNotFound")
            return
        key, kid = versions[version], f"{self.server.url}/keys/{path[1]}/{version}"
        if self.command == "GET":
            self._say(
                200,
                {"key": {"kid": kid, **_public(key)}, "attributes": {"enabled": version not in self.server.disabled}},
            )
        elif key is None or version in self.server.disabled:
            self._azure_error(403, "Forbidden")
        else:
            self._azure_use(path[3], kid, key, json.loads(body))

    def _azure_use(self, action: str, kid: str, key: rsa.RSAPrivateKey, question: dict[str, str]) -> None:
        value = _raw(question["value"])
        try:
            if question["alg"] != "RSA-OAEP-256":
                raise ValueError
            made = key.public_key().encrypt(value, _OAEP) if action == "wrapkey" else key.decrypt(value, _OAEP)
        except ValueError:
            self._azure_error(400, "BadParameter")
            return
        self._say(200, {"kid": kid, "value": _text(made)})

    def _azure_error(self, status: int, code: str) -> None:
        self._say(status, {"error": {"code": code, "message": "said by the service"}})


def _public(key: rsa.RSAPrivateKey | None) -> dict[str, object]:
    if key is None:
        return {"kty": "EC", "crv": "P-256", "x": _text(bytes(32)), "y": _text(bytes(32))}
    numbers = key.public_key().public_numbers()
    return {
        "kty": "RSA",
        "key_ops": ["wrapKey", "unwrapKey"],
        "n": _text(numbers.n.to_bytes(256, "big")),
        "e": _text(numbers.e.to_bytes(3, "big")),
    }


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _raw(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def serve(folder: Path) -> Clouds:
    """One that serves until `shutdown`."""
    clouds = Clouds(folder)
    threading.Thread(target=clouds.serve_forever, daemon=True).start()
    return clouds
