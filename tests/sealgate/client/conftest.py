"""A whole service in memory behind httpx's transport seam: it attests, unseals, infers, seals, signs and logs for real.

Only the model is a stand-in, and in memory the network; the fixture `site` is the same service on a real port. A test
plays the attacker by `service.meddle`: a function that sees each request and its honest response and returns what the
client gets instead.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import io
import ipaddress
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from sealgate.ambient import now_us
from sealgate.client.session import Session
from sealgate.evidence.claims import Claims, state_digest
from sealgate.evidence.token import MEDIA_TYPE
from sealgate.evidence.trust import Trust, parse_trust
from sealgate.limits import DATE_WINDOW_S
from sealgate.protocol import bhttp, inference
from sealgate.protocol.completion import Statement, sign_completion
from sealgate.protocol.frames import Layer, ModelFacts
from sealgate.protocol.hpke import Kem, KemPrivateKey
from sealgate.protocol.ohttp import KeyConfig, SealedRequest, commitment, encode_key_configs, open_request
from sealgate.transparency.bundle import BundleWriter
from sealgate.transparency.cose_receipt import reissue
from sealgate.transparency.exports.formats import FORMATS
from sealgate.transparency.exports.leaves import place
from sealgate.transparency.merkle import consistency_proof, inclusion_proof, leaf_hash, root_of
from sealgate.transparency.notes import Checkpoint, NoteSigner, sign_checkpoint
from sealgate.transparency.published import sign_root
from sealgate.transparency.ranges import range_proof
from sealgate.transparency.receipt import build_receipt
from sealgate.transparency.record import Record, leaf_bytes, parse_leaf
from sealgate.transparency.reports.catalogue import REPORTS
from sealgate.transparency.reports.form import Basis, Part, Report
from sealgate.transparency.reports.question import Question
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
        self.origin = signer.name
        self.append(Record(kind="log.opened"))

    def _hash(self, level: int, index: int) -> bytes:
        return root_of(leaf_hash(leaf) for leaf in self.leaves[index << level : (index + 1) << level])

    def checkpoint(self) -> bytes:
        root = root_of(leaf_hash(leaf) for leaf in self.leaves)
        return sign_checkpoint(Checkpoint(self.origin, len(self.leaves), root), self.signer)

    def append(self, draft: Record) -> tuple[int, bytes]:
        number = len(self.leaves)
        record = msgspec.structs.replace(
            draft, v=1, log=self.origin, id=f"record-{number}", ts_us=self.clock(), salt=f"{number:032x}"
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
        public = self.instance.completion.public_key().public_bytes_raw()
        key = base64.urlsafe_b64encode(public).rstrip(b"=").decode()
        start = Record(kind="worker.start", runtime_instance="instance-1", detail={"completion_key": key})
        self.log.append(start)
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
        self.obligations = ""  # what the worker says, inside the seal, that it did to an answer
        self.pruned: set[int] = set()  # indices of records that are no longer kept
        self.eps_micro = 0  # what its signed word says that this spent

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
            if request.headers.get("accept-receipt") == "application/cose" and "audit-receipt" in response.headers:
                cose = reissue(receipt_of(response), self.log.signer)
                response.headers["audit-cose-receipt"] = base64.urlsafe_b64encode(cose).rstrip(b"=").decode()
        elif request.url.path.startswith("/audit/v1/"):
            response = self.audit(request)
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
        if self.obligations:
            answer = replace(answer, fields=(*answer.fields, ("obligations", self.obligations)))
        body, media_type = sealer.seal(bhttp.encode_response(answer))
        outcome = "completed" if answer.status < 400 else "failed"
        end = self.end(draft, intent, outcome, "" if outcome == "completed" else "bad-input", commitment(body))
        return self.released(body, media_type, end)

    def gatekeep(self, inner: bhttp.Request, operation: str) -> None:
        """What the worker's gatekeeper insists on; a client that gets here wrong fails its test."""
        assert (inner.scheme, inner.authority) == ("https", AUDIENCE)
        assert inner.field("purpose") == PURPOSE
        assert operation == (inner.path.rpartition("/")[2] if inner.method == "POST" else "read-model")
        date = parsedate_to_datetime(inner.field("date") or "")
        assert abs(date.timestamp() - self.clock() / 1e6) <= DATE_WINDOW_S
        if self.credential_binding is not None:
            assert inner.field("credential-binding") == self.credential_binding

    # The auditor's routes ------------------------------------------------------------------------------------------

    def audit(self, request: httpx.Request) -> httpx.Response:
        """The gateway's audit API over the log in memory: forms as its routes give them."""
        if "authorization" in request.headers and request.headers["authorization"] != f"Bearer {TOKEN}":
            return self.problem(403, "forbidden")
        asked, leaves = request.url.params, self.log.leaves
        path = request.url.path.removeprefix("/audit/v1/")
        if path == "records":
            rows = [(index, leaf) for index, leaf in enumerate(leaves) if _matches(leaf, asked)]
            rows = rows if asked.get("order") == "oldest" else rows[::-1]
            start, limit = int(asked.get("cursor", 0)), int(asked["limit"])
            cursor = str(start + limit) if start + limit < len(rows) else None
            page = [_row(*row) for row in rows[start : start + limit]]
            return _json({"records": page, "cursor": cursor, "tree_size": len(leaves)})
        if path.startswith("records/"):
            wanted = path.removeprefix("records/")
            found = [row for row in enumerate(leaves) if wanted in (parse_leaf(row[1]).id, str(row[0]))]
            return _json(_row(*found[0])) if found else self.problem(404, "not-found")
        if path == "checkpoint":
            return _answer(200, sign_root(self.log.checkpoint(), self.log.signer), "text/plain")
        if path == "proofs/inclusion":
            return _hashes(inclusion_proof(int(asked["index"]), int(asked["size"]), self.log._hash))
        if path == "proofs/consistency":
            return _hashes(consistency_proof(int(asked["first"]), int(asked["second"]), self.log._hash))
        if path == "exports":
            first, last = int(asked["first"]), int(asked["last"])
            if asked.get("format", "bundle") in FORMATS:
                form = FORMATS[asked["format"]]
                gone = self.pruned & set(range(first, last + 1))
                if gone and asked.get("kept") != "1":
                    return self.problem(404, "not-found")
                if gone:
                    kept = [form.line(place(at, leaves[at])) for at in range(first, last + 1) if at not in gone]
                    return _answer(200, form.header + b"".join(kept), form.media_type)
                lines = [form.line(place(at, leaf)) for at, leaf in enumerate(leaves[first : last + 1], first)]
                return _answer(200, form.header + b"".join(lines), form.media_type)
            return _answer(200, self.bundle(first, last, int(asked.get("consistent_with", 0))), "application/zip")
        if path.startswith("reports/"):
            return self.report(path.removeprefix("reports/"), dict(asked))
        if path == "reviews":
            detail = {name: str(value) for name, value in msgspec.json.decode(request.content).items() if value != ""}
            return _answer(200, self.log.append(Record(kind="audit.review", detail=detail))[1], "text/plain")
        return self.problem(404, "not-found")

    def report(self, name: str, asked: dict[str, str]) -> httpx.Response:
        question = msgspec.convert(asked, Question, strict=False)
        fold, size = REPORTS[name].begin(question), len(self.log.leaves)
        for index, leaf in enumerate(self.log.leaves):
            fold.see(index, parse_leaf(leaf), leaf)
        answer = fold.answer(Part(0, size - 1, whole=True))
        basis = Basis(source="database", origin=ORIGIN, first=0, last=size - 1, size=size)
        report = Report(
            name=name,
            question=question.given(),
            basis=basis,
            tables=answer.tables,
            findings=answer.findings,
            limits=answer.limits,
        )
        return _answer(200, msgspec.json.encode(report), "application/json")

    def bundle(self, first: int, last: int, since: int = 0) -> bytes:
        out, size = io.BytesIO(), len(self.log.leaves)
        writer = BundleWriter(out, origin=ORIGIN, first=first, last=last, size=size, note=self.log.checkpoint())
        writer.entries(self.log.leaves[first : last + 1])
        grown = consistency_proof(since, size, self.log._hash) if since else []
        proof = range_proof(first, last, size, self.log._hash)
        writer.finish(proof, consistent_with=since, consistency_proof=grown)
        return out.getvalue()

    # The worker --------------------------------------------------------------------------------------------------

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
            eps_micro=self.eps_micro,
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
            "eps_micro": statement.eps_micro,
            "req_commit": statement.req_commit,
            "resp_commit": statement.resp_commit,
            "intent_seq": intent,
            "evidence_digest": state_digest(self.claims(b"")),
        }
        return msgspec.structs.replace(draft, **values | self.record_changes)

    # Answers -----------------------------------------------------------------------------------------------------

    def released(self, body: bytes, media_type: str, end: Record) -> httpx.Response:
        index, receipt = self.log.append(end)
        return _answer(200, body, media_type, index, receipt)

    def problem(self, status: int, code: str, record: Record | None = None, **members: Any) -> httpx.Response:
        kind = OHTTP_KEY if code == "unknown-key" else f"urn:sealgate:problem:{code}"
        said = {"type": kind, "title": code, "status": status, "detail": "As the gateway words it."}
        document = json.dumps(said | members)
        index, receipt = self.log.append(record) if record else (-1, b"")
        return _answer(status, document.encode(), "application/problem+json", index, receipt)


def _matches(leaf: bytes, asked: httpx.QueryParams) -> bool:
    record = parse_leaf(leaf)
    if not int(asked.get("from_us", 0)) <= record.ts_us < int(asked.get("to_us", 2**60)):
        return False
    return all(asked.get(name) in (None, getattr(record, name)) for name in ("kind", "model", "purpose", "tenant"))


def _row(index: int, leaf: bytes) -> dict[str, Any]:
    return {"index": index, "record": msgspec.Raw(leaf)}


def _json(value: Any) -> httpx.Response:
    return _answer(200, msgspec.json.encode(value), "application/json")


def _hashes(proof: list[bytes]) -> httpx.Response:
    return _json({"hashes": [base64.b64encode(one).decode() for one in proof]})


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


# The same service on a real port, over real TLS ---------------------------------------------------------------------


class Authority:
    """A certificate authority for one test session."""

    def __init__(self, name: str) -> None:
        self.key = generate_private_key(SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        self.certificate = self._build(self.name, self.key).add_extension(constraints, critical=True)
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        identifier = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        self.signed = (
            self.certificate.add_extension(usage, critical=True)
            .add_extension(identifier, critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def _build(self, subject: x509.Name, key: EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )

    def issue(self, folder: Path, name: str) -> tuple[Path, Path]:
        key = generate_private_key(SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            self._build(subject, key)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        paths = folder / f"{name}.pem", folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return paths

    def pem(self) -> bytes:
        return self.signed.public_bytes(Encoding.PEM)


@dataclass
class Site:
    """The fake service on a real port."""

    service: Any
    folder: Path
    authority: Authority
    port: int
    peers: list[bytes]
    cut: Callable[[bytes], bytes]

    @property
    def trust(self) -> Path:
        return self.folder / "client"

    def session(self, **options: Any) -> Session:
        arguments = {"purpose": "diagnosis", "token": TOKEN, "trust_env": False} | options
        return Session(self.trust, **arguments)


@pytest.fixture
def site(service: Any, tmp_path: Path) -> Iterator[Site]:
    service.clock.now_us = now_us()
    service.log.clock = service.clock
    authority = Authority("test authority")
    certificate, key = authority.issue(tmp_path, "server")
    authority_file = tmp_path / "client" / "ca.pem"
    authority_file.parent.mkdir()
    authority_file.write_bytes(authority.pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority_file)
    context.verify_mode = ssl.CERT_OPTIONAL
    server = _serve(service, context)
    site: Site = server.site
    site.folder, site.authority = tmp_path, authority
    url = f"https://localhost:{site.port}"
    text = service.trust_text().replace("https://sealgate.test:8443", url)
    (tmp_path / "client" / "trust.toml").write_text(text)
    yield site
    server.shutdown()
    server.server_close()


def _serve(service: Any, context: ssl.SSLContext) -> Any:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        site: Site

        def do_GET(self) -> None:
            assert isinstance(self.connection, ssl.SSLSocket)
            self.server.site.peers.append(self.connection.getpeercert(binary_form=True) or b"")  # type: ignore[attr-defined]
            content = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = dict(self.headers.items())
            answer = service.handle(
                httpx.Request(self.command, f"https://localhost{self.path}", headers=headers, content=content)
            )
            body = answer.read()
            sent = self.server.site.cut(body)  # type: ignore[attr-defined]
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name != "content-length":
                    self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(sent)
            if len(sent) < len(body):
                self.close_connection = True

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        site: Site

        def handle_error(self, request: object, client_address: object) -> None:
            pass

        def get_request(self) -> tuple[socket.socket, Any]:
            connection, address = super().get_request()
            return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    server = Server(("127.0.0.1", 0), Handler)
    server.site = Site(service, Path(), Authority("unused"), server.server_address[1], [], lambda body: body)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server
