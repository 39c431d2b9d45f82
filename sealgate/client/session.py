"""The convenience over the sealed transports: lists or arrays in, lists and a verified receipt out.

    with Session("client/", purpose="diagnosis", token=read_token) as session:
        result = session.infer("breast-cancer", rows)
        print(result.labels, result.receipt.index)

Trusts: the trust directory. Never: returns an answer whose receipt, evidence or seal does not hold; every failure is a
SealgateError with a stable `code`. Long, because two sessions stand in it, for threads and for coroutines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import httpx

from sealgate.ambient import Clock, Entropy, now_us, random_bytes
from sealgate.client.attributions import Explanation, read_explanation
from sealgate.client.credentials import CertificateSource, TokenSource
from sealgate.client.dpop import DpopKey
from sealgate.client.errors import InferenceFailed
from sealgate.client.inputs import Inputs, ready_tensors, to_tensors
from sealgate.client.messages import check_purpose
from sealgate.client.metadata import ModelMetadata, read_metadata
from sealgate.client.results import (
    InferResult,
    explain_message,
    infer_message,
    model_path,
    reaching,
    read_document,
    read_result,
    require_sealed,
)
from sealgate.client.transport import (
    DEFAULT_TIMEOUT,
    AsyncSealedTransport,
    AsyncTokenSource,
    SealedTransport,
    TrustSource,
    open_trust,
)
from sealgate.evidence.verify import VerifiedEvidence
from sealgate.protocol.frames import ModelFacts
from sealgate.protocol.tensors import Parameter


class Session:
    """Sealed inference for threads and plain programs. One connection pool, one evidence; safe to share by threads.

    `purpose` is what every request is for unless a call says otherwise. Give a `token` (text, or a function that
    returns the current one, such as `ClientCredentials`), a client `certificate`, or both; `dpop_key` is the key that
    the token is bound to, if it is. With `cose_receipts`, receipts come as COSE Receipts (RFC 9942) too. `proxy`,
    `trust_env` and `timeout` are httpx's.
    """

    def __init__(
        self,
        trust: TrustSource,
        *,
        purpose: str,
        token: TokenSource | None = None,
        certificate: CertificateSource = None,
        dpop_key: DpopKey | None = None,
        cose_receipts: bool = False,
        proxy: str | httpx.URL | httpx.Proxy | None = None,
        trust_env: bool = True,
        timeout: httpx.Timeout | float = DEFAULT_TIMEOUT,
        outer: httpx.BaseTransport | None = None,
        clock: Clock = now_us,
        entropy: Entropy = random_bytes,
    ) -> None:
        held = open_trust(trust)
        self._transport = SealedTransport(
            held,
            purpose=purpose,
            token=token,
            certificate=certificate,
            dpop_key=dpop_key,
            cose_receipts=cose_receipts,
            proxy=proxy,
            trust_env=trust_env,
            timeout=timeout,
            outer=outer,
            clock=clock,
            entropy=entropy,
        )
        self._url = held.url
        self._client = httpx.Client(transport=self._transport, base_url=held.url, timeout=timeout)
        self._metadata: dict[str, ModelMetadata] = {}

    def evidence(self) -> VerifiedEvidence:
        """Fetch and verify the runtime's evidence now; raises EvidenceRefused with the transcript."""
        with reaching(self._url):
            return self._transport.evidence()

    def metadata(self, model: str, *, version: str | None = None, purpose: str | None = None) -> ModelMetadata:
        """What the model takes and gives. A sealed request: audited like any other."""
        response = self._send("GET", model_path(model, version, ""), _headers(purpose), b"")
        answer = require_sealed(response)
        found = read_metadata(bytes(answer.response.body))
        self._metadata[answer.receipt.record.model_digest] = found
        return found

    def ready(self, model: str, *, version: str | None = None, purpose: str | None = None) -> bool:
        """Whether the runtime says that the model can be asked. Refusals and failures of verification raise."""
        response = self._send("GET", model_path(model, version, "/ready"), _headers(purpose), b"")
        return _says_ready(response)

    def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str | None = None,
        purpose: str | None = None,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
        request_id: str | None = None,
    ) -> InferResult:
        """Run a model on rows: nested lists or a numpy array for its only input, a mapping by input name, or tensors.

        Unless tensors are given, the model's metadata are read first, once per loaded model.
        """
        known = self._known(model, version)
        tensors = ready_tensors(inputs)
        if tensors is None:
            known = known or self.metadata(model, version=version, purpose=purpose)
            tensors = to_tensors(inputs, known)
        fields, body = infer_message(tensors, outputs=outputs, parameters=parameters, request_id=request_id)
        response = self._send("POST", model_path(model, version, "/infer"), [*fields, *_headers(purpose)], body)
        if (other := _other_version(response, known)) is not None:
            again = self._metadata.get(other.model_digest)
            known = again or self.metadata(model, version=other.version, purpose=purpose)
        return read_result(response, known)

    def explain(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str | None = None,
        purpose: str | None = None,
        method: str | None = None,
        target: str | int | None = None,
        request_id: str | None = None,
    ) -> Explanation:
        """What each number, word or pixel did for the model's output, row by row. Inputs as for `infer`.

        `method` is one of the metadata's `explain_methods`, `target` a class by name or index: left out, the first
        method, and the class that the model gives. The policy must permit it, and its price is its own.
        """
        known = self._known(model, version) or self.metadata(model, version=version, purpose=purpose)
        tensors = to_tensors(inputs, known)
        fields, body = explain_message(tensors, method=method, target=target, request_id=request_id)
        response = self._send("POST", model_path(model, version, "/explain"), [*fields, *_headers(purpose)], body)
        return read_explanation(read_result(response, known), known)

    def statistics(self, model: str, *, version: str | None = None, purpose: str | None = None) -> dict[str, Any]:
        """What the caller's own requests to a model came to since its worker started: `model_stats` of the protocol."""
        response = self._send("GET", model_path(model, version, "/stats"), _headers(purpose), b"")
        return read_document(response)

    def server(self, model: str, *, purpose: str | None = None) -> dict[str, Any]:
        """What the runtime says of itself. The policy decides about models, so one that may be read is named."""
        response = self._send("GET", "/v2", [*_headers(purpose), ("sealed-model", model)], b"")
        return read_document(response)

    def _known(self, model: str, version: str | None) -> ModelMetadata | None:
        return _cached(self._metadata, self._transport.held_evidence, model, version)

    def _send(self, method: str, path: str, headers: Sequence[tuple[str, str]], body: bytes) -> httpx.Response:
        with reaching(self._url):
            return self._client.request(method, path, headers=list(headers), content=body or None)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncSession:
    """The same for asyncio and trio; `token` may be a coroutine function."""

    def __init__(
        self,
        trust: TrustSource,
        *,
        purpose: str,
        token: AsyncTokenSource | None = None,
        certificate: CertificateSource = None,
        dpop_key: DpopKey | None = None,
        cose_receipts: bool = False,
        proxy: str | httpx.URL | httpx.Proxy | None = None,
        trust_env: bool = True,
        timeout: httpx.Timeout | float = DEFAULT_TIMEOUT,
        outer: httpx.AsyncBaseTransport | None = None,
        clock: Clock = now_us,
        entropy: Entropy = random_bytes,
    ) -> None:
        held = open_trust(trust)
        self._transport = AsyncSealedTransport(
            held,
            purpose=purpose,
            token=token,
            certificate=certificate,
            dpop_key=dpop_key,
            cose_receipts=cose_receipts,
            proxy=proxy,
            trust_env=trust_env,
            timeout=timeout,
            outer=outer,
            clock=clock,
            entropy=entropy,
        )
        self._url = held.url
        self._client = httpx.AsyncClient(transport=self._transport, base_url=held.url, timeout=timeout)
        self._metadata: dict[str, ModelMetadata] = {}

    async def evidence(self) -> VerifiedEvidence:
        """As `Session.evidence`."""
        with reaching(self._url):
            return await self._transport.evidence()

    async def metadata(self, model: str, *, version: str | None = None, purpose: str | None = None) -> ModelMetadata:
        """As `Session.metadata`."""
        response = await self._send("GET", model_path(model, version, ""), _headers(purpose), b"")
        answer = require_sealed(response)
        found = read_metadata(bytes(answer.response.body))
        self._metadata[answer.receipt.record.model_digest] = found
        return found

    async def ready(self, model: str, *, version: str | None = None, purpose: str | None = None) -> bool:
        """As `Session.ready`."""
        response = await self._send("GET", model_path(model, version, "/ready"), _headers(purpose), b"")
        return _says_ready(response)

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str | None = None,
        purpose: str | None = None,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
        request_id: str | None = None,
    ) -> InferResult:
        """As `Session.infer`."""
        known = _cached(self._metadata, self._transport.held_evidence, model, version)
        tensors = ready_tensors(inputs)
        if tensors is None:
            known = known or await self.metadata(model, version=version, purpose=purpose)
            tensors = to_tensors(inputs, known)
        fields, body = infer_message(tensors, outputs=outputs, parameters=parameters, request_id=request_id)
        response = await self._send("POST", model_path(model, version, "/infer"), [*fields, *_headers(purpose)], body)
        if (other := _other_version(response, known)) is not None:
            again = self._metadata.get(other.model_digest)
            known = again or await self.metadata(model, version=other.version, purpose=purpose)
        return read_result(response, known)

    async def explain(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str | None = None,
        purpose: str | None = None,
        method: str | None = None,
        target: str | int | None = None,
        request_id: str | None = None,
    ) -> Explanation:
        """As `Session.explain`."""
        known = _cached(self._metadata, self._transport.held_evidence, model, version)
        known = known or await self.metadata(model, version=version, purpose=purpose)
        tensors = to_tensors(inputs, known)
        fields, body = explain_message(tensors, method=method, target=target, request_id=request_id)
        response = await self._send("POST", model_path(model, version, "/explain"), [*fields, *_headers(purpose)], body)
        return read_explanation(read_result(response, known), known)

    async def statistics(self, model: str, *, version: str | None = None, purpose: str | None = None) -> dict[str, Any]:
        """As `Session.statistics`."""
        response = await self._send("GET", model_path(model, version, "/stats"), _headers(purpose), b"")
        return read_document(response)

    async def server(self, model: str, *, purpose: str | None = None) -> dict[str, Any]:
        """As `Session.server`."""
        response = await self._send("GET", "/v2", [*_headers(purpose), ("sealed-model", model)], b"")
        return read_document(response)

    async def _send(self, method: str, path: str, headers: Sequence[tuple[str, str]], body: bytes) -> httpx.Response:
        with reaching(self._url):
            return await self._client.request(method, path, headers=list(headers), content=body or None)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _headers(purpose: str | None) -> list[tuple[str, str]]:
    if purpose is None:
        return []
    check_purpose(purpose)
    return [("purpose", purpose)]


def _cached(
    metadata: Mapping[str, ModelMetadata], evidence: VerifiedEvidence | None, model: str, version: str | None
) -> ModelMetadata | None:
    """Metadata that were read from the very weights that the current evidence names: of the version that is asked for,
    or of any, where the operator chooses which one answers."""
    served: Any = () if evidence is None else evidence.claims.models
    fit = (one for one in served if one.name == model and version in (None, one.version))
    return next((metadata[one.model_digest] for one in fit if one.model_digest in metadata), None)


def _other_version(response: httpx.Response, known: ModelMetadata | None) -> ModelFacts | None:
    """The version that answered, if `known` is about another one, whose class names could be others."""
    answer = require_sealed(response)
    record = answer.receipt.record
    if known is None or known.parameters.model_digest in ("", record.model_digest):
        return None
    return answer.evidence.model(record.model, certificate_digest=record.certificate_digest)


def _says_ready(response: httpx.Response) -> bool:
    try:
        require_sealed(response)
    except InferenceFailed as failed:
        if failed.status in (400, 404, 503):
            return False
        raise
    return True
