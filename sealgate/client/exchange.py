"""Steps 1, 2 and 12 of a request's life, without I/O: what to send, what to make of the answer.

    1   no current evidence, or none for this model: ask for it with a fresh nonce, and for the published keys; verify
    2   the inner HTTP request, padded, sealed to a key of the evidence
    -   a refusal becomes an error, with its audit receipt verified if it has one; a stale key is retried exactly once
    12  the receipt is verified against the exact bytes sent and received; only then is the answer opened

`exchange` is a generator: it yields what to send to the gateway and is sent what came back, so that threads, asyncio
and tests drive the same logic. Trusts: the trust file, the clock. Never: hands on anything that came unsealed; retries
more than once; seals to a key that is not in verified, unexpired evidence.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TypeAlias
from urllib.parse import quote, unquote

from sealgate.ambient import Clock, Entropy, now_us, random_bytes
from sealgate.client.credentials import Credential
from sealgate.client.errors import EvidenceRefused, ReceiptRefused, ServiceRefused, UnsealedAnswer, UsageError
from sealgate.client.problems import OHTTP_KEY, read_problem
from sealgate.client.receipts import Asked, CheckedReceipt, check_answer, check_refusal, decode_receipt_header
from sealgate.errors import EvidenceError
from sealgate.evidence.token import MEDIA_TYPE as EVIDENCE_TYPE
from sealgate.evidence.trust import Trust
from sealgate.evidence.verify import VerifiedEvidence, verify_evidence
from sealgate.limits import (
    EVIDENCE_NONCE,
    MAX_EVIDENCE,
    MAX_KEY_CONFIGS_BYTES,
    MAX_NAME,
    MAX_SEALED_REQUEST,
    MAX_SEALED_RESPONSE,
)
from sealgate.protocol import bhttp
from sealgate.protocol.hpke import Kem
from sealgate.protocol.ohttp import (
    MEDIA_CHUNKED_RESPONSE,
    MEDIA_KEYS,
    MEDIA_RESPONSE,
    KeyConfig,
    ResponseOpener,
    commitment,
    seal_request,
)
from sealgate.transparency.receipt import VerifiedReceipt

_TARGET = re.compile(r"/v2/models/([^/?#]+)(?:/versions/[^/?#]+)?(/infer|/ready)?\Z")
_FIELD_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?\Z")
_OURS = frozenset({"date", "purpose", "credential-binding"})
_OUTSIDE = frozenset(
    {
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "cookie",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "traceparent",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
"""Fields that never enter the seal: they belong to a connection, or name the caller."""


@dataclass(frozen=True, kw_only=True)
class OuterRequest:
    """What to send to the gateway. `path` follows the trust file's url. A larger answer than `limit` is an error."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)
    limit: int


@dataclass(frozen=True, kw_only=True)
class OuterResponse:
    """What the gateway answered. Header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").split(";")[0].strip().lower()


@dataclass(frozen=True, kw_only=True)
class InnerRequest:
    """An ordinary HTTP request for the inference API. `fields` in any case; those that stay outside are left out."""

    method: str
    path: str
    fields: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)
    purpose: str


@dataclass(frozen=True, kw_only=True)
class SealedAnswer:
    """An opened answer and what proves it. `receipt` is verified; `receipt_bytes` can be kept and shown to others."""

    response: bhttp.Response
    receipt: VerifiedReceipt
    receipt_bytes: bytes = field(repr=False)
    evidence: VerifiedEvidence
    checked: CheckedReceipt
    key_config: KeyConfig
    retried: bool


Flow: TypeAlias = Generator[OuterRequest, OuterResponse, SealedAnswer]


@dataclass(frozen=True)
class _Target:
    model: str
    operation: str


class SealedChannel:
    """One trust file and the evidence that currently holds under it; shared by all requests of a transport.

    Safe to share between threads: `_evidence` is replaced whole. Requests that start together without evidence each
    fetch it.
    """

    def __init__(self, trust: Trust, *, clock: Clock = now_us, entropy: Entropy = random_bytes) -> None:
        self.trust = trust
        self._clock = clock
        self._entropy = entropy
        self._evidence: VerifiedEvidence | None = None

    @property
    def evidence(self) -> VerifiedEvidence | None:
        """The newest evidence that was verified, if any; perhaps expired."""
        return self._evidence

    def exchange(self, request: InnerRequest, credential: Credential) -> Flow:
        """One sealed request and its opened answer."""
        target = _read_target(request)
        evidence = yield from self._current(target.model)
        try:
            return (yield from self._attempt(request, target, credential, evidence, retried=False))
        except ServiceRefused as refused:
            if refused.problem_type != OHTTP_KEY:
                raise
        evidence = yield from self.renew()
        evidence.model(target.model)
        return (yield from self._attempt(request, target, credential, evidence, retried=True))

    # Step 1 ----------------------------------------------------------------------------------------------------------

    def _current(self, model: str) -> Generator[OuterRequest, OuterResponse, VerifiedEvidence]:
        """Unexpired evidence that names the model."""
        held = self._evidence
        if held is not None:
            try:
                held.require_current(self._clock())
                held.model(model)
                return held
            except EvidenceError:
                pass  # Expired, or the model was loaded since: ask anew, and let the new evidence decide.
        fresh = yield from self.renew()
        fresh.model(model)
        return fresh

    def renew(self) -> Generator[OuterRequest, OuterResponse, VerifiedEvidence]:
        """Fetch and verify evidence. Asked a second time only if the keys changed between its two requests."""
        try:
            evidence = yield from self._fetch_evidence()
        except EvidenceRefused as refused:
            if refused.code != "key-configs":
                raise
            evidence = yield from self._fetch_evidence()
        held = self._evidence
        if held is not None and not _continues(held, evidence):
            raise EvidenceError("the log went back, or split, since the last evidence", code="log-rolled-back")
        self._evidence = evidence
        return evidence

    def _fetch_evidence(self) -> Generator[OuterRequest, OuterResponse, VerifiedEvidence]:
        nonce = self._entropy(EVIDENCE_NONCE)
        text = base64.urlsafe_b64encode(nonce).rstrip(b"=").decode()
        accept = (("accept", EVIDENCE_TYPE),)
        path = f"/.well-known/attestation?nonce={text}"
        data = _body_of(
            (yield OuterRequest(method="GET", path=path, headers=accept, limit=MAX_EVIDENCE)), EVIDENCE_TYPE
        )
        accept = (("accept", MEDIA_KEYS),)
        path = "/.well-known/ohttp-gateway"
        keys = _body_of(
            (yield OuterRequest(method="GET", path=path, headers=accept, limit=MAX_KEY_CONFIGS_BYTES)), MEDIA_KEYS
        )
        return verify_evidence(data, self.trust, now_us=self._clock(), nonce=nonce, published=keys)

    # Steps 2 and 12 --------------------------------------------------------------------------------------------------

    def _attempt(
        self,
        request: InnerRequest,
        target: _Target,
        credential: Credential,
        evidence: VerifiedEvidence,
        *,
        retried: bool,
    ) -> Flow:
        sent_us = self._clock()
        evidence.require_current(sent_us)
        inner = bhttp.encode_request(
            bhttp.Request(
                method=request.method,
                scheme="https",
                authority=self.trust.audience,
                path=request.path,
                fields=_inner_fields(request, credential, sent_us),
                body=request.body,
            )
        )
        config = choose_config(evidence)
        sealed, media_type, opener = seal_request(config, inner, entropy=self._entropy)
        if len(sealed) > MAX_SEALED_REQUEST:
            raise UsageError("the request is larger than the service accepts; send fewer rows at once")
        outer = OuterRequest(
            method="POST",
            path=f"/sealed/{quote(target.model, safe='')}",
            headers=_outer_headers(request, target, credential, media_type, opener),
            body=sealed,
            limit=MAX_SEALED_RESPONSE,
        )
        answer = yield outer
        asked = Asked(
            model=target.model,
            operation=target.operation,
            purpose=request.purpose,
            req_commit=commitment(sealed),
            sent_us=sent_us,
            received_us=self._clock(),
        )
        checked = self._require_sealed(answer, asked, evidence)
        response = bhttp.decode_response(opener.open(answer.body, answer.media_type))
        return SealedAnswer(
            response=response,
            receipt=checked.verified,
            receipt_bytes=checked.raw,
            evidence=evidence,
            checked=checked,
            key_config=config,
            retried=retried,
        )

    def _require_sealed(self, answer: OuterResponse, asked: Asked, evidence: VerifiedEvidence) -> CheckedReceipt:
        """The verified receipt of a sealed answer; every other answer raises."""
        sealed = answer.media_type in (MEDIA_RESPONSE, MEDIA_CHUNKED_RESPONSE)
        receipt = answer.headers.get("audit-receipt", "")
        if answer.status == 200 and sealed:
            raw = decode_receipt_header(receipt)
            resp_commit = commitment(answer.body)
            return check_answer(raw, asked, resp_commit=resp_commit, evidence=evidence, trust=self.trust)
        if answer.status < 400:
            raise UnsealedAnswer("the gateway answered without a sealed response; nothing of it is used")
        raise self._refused(answer, receipt, asked, evidence)

    def _refused(self, answer: OuterResponse, receipt: str, asked: Asked, evidence: VerifiedEvidence) -> ServiceRefused:
        """The refusal in an answer, with its receipt if that holds."""
        if not receipt:
            return _refusal(answer)
        try:
            checked = check_refusal(decode_receipt_header(receipt), asked, evidence=evidence, trust=self.trust)
        except ReceiptRefused as refused:
            return _refusal(answer, receipt_refused=refused)
        return _refusal(answer, checked=checked)


def choose_config(evidence: VerifiedEvidence) -> KeyConfig:
    """The newest post-quantum key, or the newest key where there is none."""
    configs = evidence.key_configs
    return next((config for config in configs if config.kem is Kem.MLKEM768_X25519), configs[0])


def _continues(before: VerifiedEvidence, after: VerifiedEvidence) -> bool:
    """Whether the log of `after` can be a later state of the log of `before`."""
    old, new = before.checkpoint, after.checkpoint
    if old.origin != new.origin or new.size < old.size:
        return False
    return new.size > old.size or new.root == old.root


def _read_target(request: InnerRequest) -> _Target:
    match = _TARGET.match(request.path)
    infer = match is not None and match[2] == "/infer"
    if match is None or request.method != ("POST" if infer else "GET"):
        raise UsageError(
            f"{request.method} {request.path[:80]} cannot be sealed; use POST /v2/models/MODEL/infer, "
            "GET /v2/models/MODEL or GET /v2/models/MODEL/ready"
        )
    model = unquote(match[1])
    if not model or len(model) > MAX_NAME or not _FIELD_VALUE.match(model):
        raise UsageError("the model's name is not one that a service can have")
    if not request.purpose or len(request.purpose) > MAX_NAME or not _FIELD_VALUE.match(request.purpose):
        raise UsageError("say for which purpose you ask (purpose=..., --purpose or a Purpose header)")
    return _Target(model, "infer" if infer else "read-model")


def _inner_fields(request: InnerRequest, credential: Credential, sent_us: int) -> tuple[tuple[str, str], ...]:
    kept = ((name.lower(), value) for name, value in request.fields)
    date = format_datetime(datetime.fromtimestamp(sent_us // 1_000_000, UTC), usegmt=True)
    ours = (("date", date), ("purpose", request.purpose), ("credential-binding", credential.binding))
    return ours + tuple((name, value) for name, value in kept if name not in _OURS and name not in _OUTSIDE)


def _outer_headers(
    request: InnerRequest, target: _Target, credential: Credential, media_type: str, opener: ResponseOpener
) -> tuple[tuple[str, str], ...]:
    trace = tuple((name.lower(), value) for name, value in request.fields if name.lower() == "traceparent")
    return (
        ("content-type", media_type),
        ("accept", opener.media_type),
        ("purpose", request.purpose),
        ("sealed-operation", target.operation),
        *trace,
        *credential.headers,
    )


def _body_of(answer: OuterResponse, media_type: str) -> bytes:
    if answer.status >= 400:
        raise _refusal(answer)
    if answer.status != 200 or answer.media_type != media_type:
        raise UnsealedAnswer(f"the gateway did not answer with {media_type}; is the url in the trust file right?")
    return answer.body


def _refusal(
    answer: OuterResponse, *, checked: CheckedReceipt | None = None, receipt_refused: ReceiptRefused | None = None
) -> ServiceRefused:
    headers = answer.headers
    problem = read_problem(answer.status, headers.get("content-type", ""), headers.get("retry-after", ""), answer.body)
    return ServiceRefused(
        problem.text,
        code=problem.code,
        status=problem.status,
        problem_type=problem.type,
        retry_after_s=problem.retry_after_s,
        receipt=checked.verified if checked else None,
        receipt_bytes=checked.raw if checked else b"",
        receipt_refused=receipt_refused,
    )
