"""A whole service in memory behind httpx's transport seam: it attests, unseals, infers, seals, signs and logs for real.

Only the network and the model are stand-ins. A test plays the attacker by `service.meddle`: a function that sees each
request and its honest response and returns what the client gets instead.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.evidence.claims import Claims, state_digest
from sealgate.evidence.token import MEDIA_TYPE
from sealgate.evidence.trust import Trust, parse_trust
from sealgate.limits import DATE_WINDOW_S
from sealgate.protocol import bhttp, inference
from sealgate.protocol.completion import Statement, sign_completion
from sealgate.protocol.frames import Layer, ModelFacts
from sealgate.protocol.hpke import Kem, KemPrivateKey
from sealgate.protocol.ohttp import KeyConfig, SealedRequest, commitment, encode_key_configs, open_request
from sealgate.transparency.merkle import inclusion_proof, leaf_hash, root_of
from sealgate.transparency.notes import Checkpoint, NoteSigner, sign_checkpoint
from sealgate.transparency.receipt import build_receipt
from sealgate.transparency.record import Record, leaf_bytes
from secure_runtime.attestation.software import SoftwareAttester

ORIGIN = "example.test/log"
AUDIENCE = "sealgate.test:8443"
URL = "https://sealgate.test:8443"
TOKEN = "header.payload.signature"
PURPOSE = "diagnosis"
LABELS = ("benign", "malignant")
NOW_US = 1_800_000_000_000_000
OHTTP_KEY = "https://iana.org/assignments/http-problem-types#ohttp-key"

Meddle = Callable[[httpx.Request, httpx.Response], httpx.Response]


class Clock:
    """A clock that tests move."""

    def __init__(self, now_us: int = NOW_US) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us

    def advance(self, *, seconds: float) -> None:
        self.now_us += int(seconds * 1_000_000)


class Log:
    """A Merkle log in a list; the honest writer."""

    def __init__(self, signer: NoteSigner, clock: Clock) -> None:
        self.signer, self.clock, self.leaves = signer, clock, list[bytes]()
        self.append(Record(kind="log.opened"))

    def _hash(self, level: int, index: int) -> bytes:
        return root_of(leaf_hash(leaf) for leaf in self.leaves[index << level : (index + 1) << level])

    def checkpoint(self) -> bytes:
        root = root_of(leaf_hash(leaf) for leaf in self.leaves)
        return sign_checkpoint(Checkpoint(ORIGIN, len(self.leaves), root), self.signer)

    def append(self, draft: Record) -> tuple[int, bytes]:
        number = len(self.leaves)
        record = msgspec.structs.replace(
            draft, v=1, log=ORIGIN, id=f"record-{number}", ts_us=self.clock(), salt=f"{number:032x}"
        )
        self.leaves.append(leaf_bytes(record))
        return number, self.receipt(number)

    def receipt(self, index: int) -> bytes:
        size = len(self.leaves)
        return build_receipt(index, self.leaves[index], inclusion_proof(index, size, self._hash), self.checkpoint())


@dataclass
class Instance:
    """One worker: its keys live and die with it."""

    name: str
    completion: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    keys: dict[int, KemPrivateKey] = field(default_factory=dict)
    published: list[int] = field(default_factory=list)
    seq: int = 0

    def rotate(self, key_id: int) -> None:
        """New keys for both KEMs; the old ones are gone."""
        self.keys = {
            key_id: KemPrivateKey.generate(Kem.MLKEM768_X25519),
            key_id + 1: KemPrivateKey.generate(Kem.X25519),
        }
        self.published = list(self.keys)

    def key_configs(self) -> bytes:
        return encode_key_configs(
            [KeyConfig(key_id, self.keys[key_id].kem, self.keys[key_id].public_bytes()) for key_id in self.published]
        )


class FakeService:
    """Everything behind the url of the trust file."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.operator = Ed25519PrivateKey.generate()
        self.log = Log(NoteSigner.from_seed(ORIGIN, b"\x07" * 32), self.clock)
        self.instance = Instance("instance-1")
        self.instance.rotate(1)
        self.model = ModelFacts(
            name="toy",
            version="1",
            model_digest="a" * 64,
            certificate_digest="b" * 64,
            epsilon_micro=2_500_000,
            delta="0.00001",
            privacy_unit="example",
            sensitivity="personal",
            purposes=(PURPOSE,),
        )
        self.requests: list[httpx.Request] = []
        self.inner: list[bhttp.Request] = []
        self.credential_binding: str | None = None
        self.meddle: Meddle = lambda request, response: response
        self.claim_changes: dict[str, Any] = {}
        self.record_changes: dict[str, Any] = {}
        self.inner_response: bhttp.Response | None = None

    # What tests hold -------------------------------------------------------------------------------------------------

    def trust_text(self, extra: str = "") -> str:
        operator = base64.b64encode(self.operator.public_key().public_bytes_raw()).decode()
        return (
            f'audience = "{AUDIENCE}"\nurl = "{URL}"\naccept_software = true\n'
            f'operator_keys = ["{operator}"]\nlog_keys = ["{self.log.signer.vkey}"]\n{extra}'
        )

    def trust(self, extra: str = "") -> Trust:
        return parse_trust(self.trust_text(extra).encode(), source="trust.toml")

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.handle)

    def count(self, path_prefix: str) -> int:
        return sum(request.url.path.startswith(path_prefix) for request in self.requests)

    # The gateway ---------------------------------------------------------------------------------------------------

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.url.path == "/.well-known/attestation":
            nonce = base64.urlsafe_b64decode(request.url.params["nonce"] + "==")
            response = _answer(200, self.evidence(nonce), MEDIA_TYPE)
        elif request.url.path == "/.well-known/ohttp-gateway":
            response = _answer(200, self.instance.key_configs(), "application/ohttp-keys")
        elif request.url.path.startswith("/sealed/"):
            response = self.sealed(request)
        else:
            response = self.problem(404, "not-found")
        return self.meddle(request, response)

    def claims(self, nonce: bytes) -> Claims:
        values: dict[str, Any] = {
            "nonce": nonce,
            "issued_at_us": self.clock(),
            "expires_at_us": self.clock() + 3600 * 1_000_000,
            "audience": AUDIENCE,
            "key_configs": self.instance.key_configs(),
            "completion_key": self.instance.completion.public_key().public_bytes_raw(),
            "instance": self.instance.name,
            "models": (self.model,),
            "layers": {"landlock": Layer(state="on"), "seccomp": Layer(state="on", detail="2 stages")},
            "probes": {"open-file": Layer(state="on")},
            "profile": "strict",
            "assurance": "software",
            "degraded": False,
            "device": "cpu",
            "measurements": {"code": "c" * 64},
            "policy_digest": "d" * 64,
            "log_origin": ORIGIN,
            "log_checkpoint": self.log.checkpoint(),
        }
        return Claims(**values | self.claim_changes)

    def evidence(self, nonce: bytes) -> bytes:
        return SoftwareAttester(self.operator).attest(self.claims(nonce))

    def sealed(self, request: httpx.Request) -> httpx.Response:
        raw = request.content
        sealed = SealedRequest.parse(raw, request.headers["content-type"])
        model, purpose = request.url.path.removeprefix("/sealed/"), request.headers["purpose"]
        operation = request.headers.get("sealed-operation", "infer")
        draft = Record(
            tenant="clinic",
            actor="pseudonym",
            authn="jwt",
            model=model,
            purpose=purpose,
            operation=operation,
            assurance="software",
            policy_digest="d" * 64,
            req_commit=commitment(raw),
        )
        if request.headers.get("authorization") not in (f"Bearer {TOKEN}", None):
            return self.problem(401, "unauthenticated")
        if purpose != PURPOSE:
            denied = msgspec.structs.replace(draft, kind="inference.denied", reason="purpose", req_commit="")
            return self.problem(403, "forbidden", denied)
        intent, _ = self.log.append(msgspec.structs.replace(draft, kind="inference.authorized"))
        key = self.instance.keys.get(sealed.key_id)
        if key is None or key.kem is not sealed.kem:
            return self.problem(400, "unknown-key", self.end(draft, intent, "refused", "key-unknown", ""))
        plaintext, sealer = open_request(sealed, key)
        inner = bhttp.decode_request(bytes(plaintext.view()))
        self.gatekeep(inner, operation)
        self.inner.append(inner)
        answer = self.inner_response or self.infer(inner)
        body, media_type = sealer.seal(bhttp.encode_response(answer))
        outcome = "completed" if answer.status < 400 else "failed"
        end = self.end(draft, intent, outcome, "" if outcome == "completed" else "bad-input", commitment(body))
        return self.released(body, media_type, end)

    def gatekeep(self, inner: bhttp.Request, operation: str) -> None:
        """What the worker's gatekeeper insists on; a client that gets here wrong fails its test."""
        assert (inner.scheme, inner.authority) == ("https", AUDIENCE)
        assert inner.field("purpose") == PURPOSE
        assert operation == ("infer" if inner.method == "POST" else "read-model")
        date = parsedate_to_datetime(inner.field("date") or "")
        assert abs(date.timestamp() - self.clock() / 1e6) <= DATE_WINDOW_S
        if self.credential_binding is not None:
            assert inner.field("credential-binding") == self.credential_binding

    # The worker ----------------------------------------------------------------------------------------------------

    def infer(self, inner: bhttp.Request) -> bhttp.Response:
        json_type = (("content-type", "application/json"),)
        if inner.path.endswith("/ready"):
            return bhttp.Response(200, json_type, b'{"name":"toy","ready":true}')
        if inner.method == "GET":
            document = {
                "name": "toy",
                "versions": ["1"],
                "platform": "sealgate_torch",
                "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 3]}],
                "outputs": [
                    {"name": "scores", "datatype": "FP32", "shape": [-1, 2]},
                    {"name": "label", "datatype": "INT64", "shape": [-1]},
                ],
                "parameters": {
                    "columns": ["radius", "texture", "area"],
                    "labels": {"scores": LABELS, "label": LABELS},
                    "epsilon_micro": self.model.epsilon_micro,
                    "delta": self.model.delta,
                },
            }
            return bhttp.Response(200, json_type, json.dumps(document).encode())
        request, wants_binary = inference.decode_infer_request(inner.fields, inner.body)
        rows = inference.tensor_to_list(request.inputs[0])
        sums = [sum(rows[at : at + 3]) for at in range(0, len(rows), 3)]
        picked = [int(total > 10) for total in sums]
        scores = [value for label in picked for value in ((0.125, 0.875) if label else (0.75, 0.25))]
        count = len(picked)
        outputs = (
            inference.Tensor("scores", "FP32", (count, 2), struct.pack(f"<{2 * count}f", *scores)),
            inference.Tensor("label", "INT64", (count,), struct.pack(f"<{count}q", *picked)),
        )
        answer = inference.InferResponse("toy", "1", outputs, request.id)
        fields, body = inference.encode_infer_response(answer, binary_outputs=wants_binary)
        return bhttp.Response(200, tuple(fields), body)

    def end(self, draft: Record, intent: int, outcome: str, reason: str, resp_commit: str) -> Record:
        self.instance.seq += 1
        statement = Statement(
            instance=self.instance.name,
            seq=self.instance.seq,
            grant=f"record-{intent}",
            outcome=outcome,
            reason=reason,
            model=draft.model,
            model_digest=self.model.model_digest,
            certificate_digest=self.model.certificate_digest,
            units=1 if outcome == "completed" else 0,
            req_commit=draft.req_commit,
            resp_commit=resp_commit,
        )
        kind = "inference.completed" if outcome == "completed" else "inference.failed"
        return self.stated(draft, statement, kind, intent)

    def stated(self, draft: Record, statement: Statement, kind: str, intent: int) -> Record:
        """The record of a statement, as the host copies it; `record_changes` are a test's lies in the host's name."""
        values = {
            "kind": kind,
            "runtime_instance": statement.instance,
            "runtime_seq": statement.seq,
            "runtime_sig": sign_completion(statement, self.instance.completion).signature,
            "grant": statement.grant,
            "outcome": statement.outcome,
            "reason": statement.reason,
            "model": statement.model,
            "model_digest": statement.model_digest,
            "certificate_digest": statement.certificate_digest,
            "units": statement.units,
            "req_commit": statement.req_commit,
            "resp_commit": statement.resp_commit,
            "intent_seq": intent,
            "evidence_digest": state_digest(self.claims(b"")),
        }
        return msgspec.structs.replace(draft, **values | self.record_changes)

    # Answers -------------------------------------------------------------------------------------------------------

    def released(self, body: bytes, media_type: str, end: Record) -> httpx.Response:
        index, receipt = self.log.append(end)
        return _answer(200, body, media_type, index, receipt)

    def problem(self, status: int, code: str, record: Record | None = None) -> httpx.Response:
        kind = OHTTP_KEY if code == "unknown-key" else f"urn:sealgate:problem:{code}"
        document = json.dumps({"type": kind, "title": code, "status": status, "detail": "As the gateway words it."})
        index, receipt = self.log.append(record) if record else (-1, b"")
        return _answer(status, document.encode(), "application/problem+json", index, receipt)


def _answer(status: int, body: bytes, media_type: str, index: int = -1, receipt: bytes = b"") -> httpx.Response:
    headers = {"content-type": media_type}
    if receipt:
        headers["audit-receipt"] = base64.urlsafe_b64encode(receipt).rstrip(b"=").decode()
        headers["audit-record"] = f"{ORIGIN} {index}"
    return httpx.Response(status, headers=headers, stream=httpx.ByteStream(body))


@pytest.fixture
def service() -> FakeService:
    return FakeService()


def receipt_of(response: httpx.Response) -> bytes:
    """The receipt in a response's header."""
    text = response.headers["audit-receipt"]
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def replaced(
    response: httpx.Response,
    *,
    body: bytes | None = None,
    receipt: bytes | None = None,
    status: int | None = None,
    **headers: str,
) -> httpx.Response:
    """A response with a part exchanged."""
    changed = dict(response.headers) | {name.replace("_", "-"): value for name, value in headers.items()}
    changed.pop("content-length", None)
    if receipt is not None:
        changed["audit-receipt"] = base64.urlsafe_b64encode(receipt).rstrip(b"=").decode()
    content = response.read() if body is None else body
    return httpx.Response(status or response.status_code, headers=changed, stream=httpx.ByteStream(content))


@pytest.fixture
def meddling() -> Any:
    """The two functions above, for attackers."""

    class Tools:
        receipt_of = staticmethod(receipt_of)
        replaced = staticmethod(replaced)
        digest = staticmethod(lambda data: hashlib.sha256(data).hexdigest())

    return Tools
