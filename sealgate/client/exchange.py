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
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias
from urllib.parse import quote

from sealgate.ambient import Clock, Entropy, now_us, random_bytes
from sealgate.client.credentials import Credential
from sealgate.client.errors import (
    BudgetSpent,
    EvidenceRefused,
    ReceiptRefused,
    ServiceRefused,
    UnsealedAnswer,
    UsageError,
)
from sealgate.client.messages import (
    InnerRequest,
    OuterRequest,
    OuterResponse,
    Target,
    inner_fields,
    read_target,
    seal_envelope,
    seal_headers,
)
from sealgate.client.problems import BUDGET_CODES, OHTTP_KEY, budget_text, read_problem
from sealgate.client.receipts import (
    Asked,
    CheckedReceipt,
    check_answer,
    check_cose,
    check_obligations,
    check_refusal,
    decode_receipt_header,
    recorded_budget,
)
from sealgate.errors import EvidenceError
from sealgate.evidence.kept import AskedEvidence
from sealgate.evidence.token import MEDIA_TYPE as EVIDENCE_TYPE
from sealgate.evidence.trust import Trust
from sealgate.evidence.verify import VerifiedEvidence
from sealgate.limits import DEFAULT_MESSAGE, EVIDENCE_NONCE, MAX_EVIDENCE, MAX_HELD_EVIDENCE, MAX_KEY_CONFIGS_BYTES
from sealgate.protocol import bhttp
from sealgate.protocol.frames import Obligations
from sealgate.protocol.hpke import Kem
from sealgate.protocol.obligations import FIELD, decode_obligations
from sealgate.protocol.ohttp import (
    MEDIA_CHUNKED_RESPONSE,
    MEDIA_KEYS,
    MEDIA_RESPONSE,
    KeyConfig,
    commitment,
    seal_request,
)
from sealgate.protocol.sizes import LIMIT_FIELD, in_mib, inner_size, padded_within, read_limit, sealed_size
from sealgate.transparency.receipt import VerifiedReceipt
from sealgate.transparency.shards import is_later


@dataclass(frozen=True, kw_only=True)
class SealedAnswer:
    """An opened answer and what proves it. `receipt` is verified; `receipt_bytes` can be kept and shown to others.

    `obligations` is what the runtime says, inside the seal, that it did to the answer.
    """

    response: bhttp.Response
    receipt: VerifiedReceipt
    receipt_bytes: bytes = field(repr=False)
    evidence: VerifiedEvidence
    checked: CheckedReceipt
    key_config: KeyConfig
    retried: bool
    obligations: Obligations
    cose_receipt: bytes = field(default=b"", repr=False)  # verified; empty unless it was asked for and came


Flow: TypeAlias = Generator[OuterRequest, OuterResponse, SealedAnswer]


class SealedChannel:
    """One trust file and the evidence that currently holds under it; shared by all requests of a transport.

    Safe to share between threads: `_evidence` is replaced whole. Requests that start together without evidence each
    fetch it.
    """

    def __init__(
        self, trust: Trust, *, cose_receipts: bool = False, clock: Clock = now_us, entropy: Entropy = random_bytes
    ) -> None:
        """With `cose_receipts`, every receipt is also asked for as COSE Receipt (RFC 9942)."""
        self.trust = trust
        self._cose = cose_receipts
        self._clock = clock
        self._entropy = entropy
        self._max_sealed = sealed_size(DEFAULT_MESSAGE)  # of a request, as the gateway said last
        self._evidence: VerifiedEvidence | None = None
        self._by_model: dict[str, VerifiedEvidence] = {}  # replaced whole, too: of workers that serve one model each

    @property
    def evidence(self) -> VerifiedEvidence | None:
        """The newest evidence that was verified, if any; perhaps expired."""
        return self._evidence

    def exchange(self, request: InnerRequest, credential: Credential) -> Flow:
        """One sealed request and its opened answer."""
        target = read_target(request)
        evidence = yield from self._current(target.model)
        try:
            return (yield from self._attempt(request, target, credential, evidence, retried=False))
        except ServiceRefused as refused:
            if refused.problem_type != OHTTP_KEY:
                raise
        evidence = yield from self.renew(target.model)
        evidence.versions(target.model)
        return (yield from self._attempt(request, target, credential, evidence, retried=True))

    # Step 1 ----------------------------------------------------------------------------------------------------------

    def _current(self, model: str) -> Generator[OuterRequest, OuterResponse, VerifiedEvidence]:
        """Unexpired evidence that names the model."""
        for held in (self._evidence, self._by_model.get(model)):
            if held is None:
                continue
            try:
                held.require_current(self._clock())
                held.versions(model)
                return held
            except EvidenceError:
                pass  # Expired, or the model was loaded since: ask anew, and let the new evidence decide.
        fresh = yield from self.renew(model)
        fresh.versions(model)
        return fresh

    def renew(self, model: str = "") -> Generator[OuterRequest, OuterResponse, VerifiedEvidence]:
        """Fetch and verify evidence, of a worker that serves `model` if there are several. Asked a second time only if
        the keys changed between its two requests."""
        held = self._evidence
        try:
            evidence = yield from self._fetch_evidence(model)
        except EvidenceRefused as refused:
            if refused.code != "key-configs":
                raise
            evidence = yield from self._fetch_evidence(model)
        newest = self._evidence  # Another than `held` if a request beside us fetched evidence meanwhile.
        grown = held is None or _continues(held, evidence)
        if not grown or not (newest is None or _continues(newest, evidence) or _continues(evidence, newest)):
            raise EvidenceError("the log went back, or split, since the last evidence", code="log-rolled-back")
        if newest is None or _continues(newest, evidence):
            self._evidence = evidence
        if model:
            others = list(self._by_model.items())[-MAX_HELD_EVIDENCE + 1 :]
            self._by_model = {**{name: one for name, one in others if name != model}, model: evidence}
        return evidence

    def _fetch_evidence(self, model: str) -> Generator[OuterRequest, OuterResponse, VerifiedEvidence]:
        asked = yield from ask_evidence(self._entropy, model=model)
        evidence = asked.verify(self.trust, now_us=self._clock())
        self._max_sealed = asked.max_sealed
        return evidence

    # Steps 2 and 12 --------------------------------------------------------------------------------------------------

    def _attempt(
        self,
        request: InnerRequest,
        target: Target,
        credential: Credential,
        evidence: VerifiedEvidence,
        *,
        retried: bool,
    ) -> Flow:
        sent_us = self._clock()
        evidence.require_current(sent_us)
        limit = inner_size(self._max_sealed)
        _require_room(len(request.body), limit)
        inner = bhttp.encode_request(
            bhttp.Request(
                method=request.method,
                scheme="https",
                authority=self.trust.audience,
                path=request.path,
                fields=inner_fields(request, credential, sent_us),
                body=request.body,
            ),
            pad_to=padded_within(limit),
        )
        _require_room(len(inner), limit)
        config = choose_config(evidence)
        sealed, media_type, opener = seal_request(config, inner, entropy=self._entropy)
        accept = opener.media_type
        headers = seal_headers(request, target, media_type=media_type, accept=accept, cose=self._cose)
        envelope = seal_envelope(target, sealed, headers, limit=self._max_sealed)
        answer = yield from self._send(envelope, credential)
        asked = Asked(
            model=target.model,
            operation=target.operation,
            purpose=request.purpose,
            req_commit=commitment(sealed),
            sent_us=sent_us,
            received_us=self._clock(),
            version=target.version,
        )
        checked = self._require_sealed(answer, asked, evidence)
        cose_receipt = self._cose_receipt(answer, checked)
        response = bhttp.decode_response(opener.open(answer.body, answer.media_type))
        obligations = decode_obligations([value for name, value in response.fields if name == FIELD])
        checked = check_obligations(checked, obligations)
        return SealedAnswer(
            response=response,
            receipt=checked.verified,
            receipt_bytes=checked.raw,
            evidence=evidence,
            checked=checked,
            key_config=config,
            retried=retried,
            obligations=obligations,
            cose_receipt=cose_receipt,
        )

    def _send(
        self, outer: OuterRequest, credential: Credential
    ) -> Generator[OuterRequest, OuterResponse, OuterResponse]:
        """The answer to a request with its credential. Sent once more if only the nonce of its proof was old: then it
        was turned away at the door, and nothing was opened."""
        url = self.trust.url + outer.path
        for _ in range(2):
            headers = (*outer.headers, *credential.headers(outer.method, url))
            answer = yield replace(outer, headers=headers)
            if not credential.wants_again(answer.status, answer.headers):
                break
        return answer

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
            return _refusal(answer, operation=asked.operation)
        try:
            checked = check_refusal(decode_receipt_header(receipt), asked, evidence=evidence, trust=self.trust)
            cose_receipt = self._cose_receipt(answer, checked)
        except ReceiptRefused as refused:
            return _refusal(answer, operation=asked.operation, receipt_refused=refused)
        return _refusal(answer, operation=asked.operation, checked=checked, cose_receipt=cose_receipt)

    def _cose_receipt(self, answer: OuterResponse, checked: CheckedReceipt) -> bytes:
        text = answer.headers.get("audit-cose-receipt", "") if self._cose else ""
        return check_cose(decode_receipt_header(text), checked, trust=self.trust) if text else b""


def ask_evidence(entropy: Entropy, *, model: str = "") -> Generator[OuterRequest, OuterResponse, AskedEvidence]:
    """What the service says of its runtime (of a worker that serves `model`) for a fresh nonce, and the keys that it
    publishes beside. Not verified."""
    nonce = entropy(EVIDENCE_NONCE)
    text = base64.urlsafe_b64encode(nonce).rstrip(b"=").decode()
    accept = (("accept", EVIDENCE_TYPE),)
    path = f"/.well-known/attestation?nonce={text}" + (f"&model={quote(model, safe='')}" if model else "")
    data = _body_of((yield OuterRequest(method="GET", path=path, headers=accept, limit=MAX_EVIDENCE)), EVIDENCE_TYPE)
    accept = (("accept", MEDIA_KEYS),)
    path = "/.well-known/ohttp-gateway"
    answer = yield OuterRequest(method="GET", path=path, headers=accept, limit=MAX_KEY_CONFIGS_BYTES)
    max_sealed = read_limit(answer.headers.get(LIMIT_FIELD.lower(), ""))
    return AskedEvidence(nonce=nonce, data=data, published=_body_of(answer, MEDIA_KEYS), max_sealed=max_sealed)


def _require_room(size: int, limit: int) -> None:
    if size > limit:
        raise UsageError(
            f"the request has {in_mib(size)}, and this service takes {in_mib(limit)} at most: send fewer rows at once, "
            "or ask its operator to raise max_request_mb"
        )


def choose_config(evidence: VerifiedEvidence) -> KeyConfig:
    """The newest post-quantum key, or the newest key where there is none."""
    configs = evidence.key_configs
    return next((config for config in configs if config.kem is Kem.MLKEM768_X25519), configs[0])


def _continues(before: VerifiedEvidence, after: VerifiedEvidence) -> bool:
    """Whether the log of `after` can be a later state of the log of `before`: of one shard, or of a later shard."""
    old, new = before.checkpoint, after.checkpoint
    if old.origin != new.origin:
        return before.claims.log_origin == after.claims.log_origin and is_later(new.origin, old.origin)
    if new.size < old.size:
        return False
    return new.size > old.size or new.root == old.root


def _body_of(answer: OuterResponse, media_type: str) -> bytes:
    if answer.status >= 400:
        raise _refusal(answer)
    if answer.status != 200 or answer.media_type != media_type:
        raise UnsealedAnswer(f"the gateway did not answer with {media_type}; is the url in the trust file right?")
    return answer.body


def _refusal(
    answer: OuterResponse,
    *,
    operation: str = "",
    checked: CheckedReceipt | None = None,
    cose_receipt: bytes = b"",
    receipt_refused: ReceiptRefused | None = None,
) -> ServiceRefused:
    headers = answer.headers
    content_type, retry_after = headers.get("content-type", ""), headers.get("retry-after", "")
    problem = read_problem(answer.status, content_type, retry_after, answer.body, operation=operation)
    given: dict[str, Any] = {
        "code": problem.code,
        "status": problem.status,
        "problem_type": problem.type,
        "retry_after_s": problem.retry_after_s,
        "receipt": checked.verified if checked else None,
        "receipt_bytes": checked.raw if checked else b"",
        "cose_receipt": cose_receipt,
        "receipt_refused": receipt_refused,
    }
    budget, renews = (problem.budget, problem.renews) if checked is None else recorded_budget(checked)
    if problem.code in BUDGET_CODES and budget:
        text = f"the service refused ({problem.status} {problem.code}): {budget_text(budget, renews)}"
        return BudgetSpent(text, budget=budget, renews=renews, **given)
    return ServiceRefused(problem.text, **given)
