"""What a session hands out, and how opened HTTP answers become it. Pure; shared by the session and its async twin.

Trusts: answers that a sealed transport opened, and nothing else: one without the transport's extension is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from sealgate.client.errors import InferenceFailed, ServiceUnreachable, UnsealedAnswer
from sealgate.client.exchange import SealedAnswer
from sealgate.client.inputs import to_numpy
from sealgate.client.metadata import ModelMetadata
from sealgate.client.transport import EXTENSION
from sealgate.errors import ConfigurationError, DecodeError
from sealgate.evidence.transcript import Check
from sealgate.evidence.verify import VerifiedEvidence
from sealgate.protocol.frames import Obligations
from sealgate.protocol.inference import (
    InferRequest,
    InferResponse,
    RequestedOutput,
    Tensor,
    decode_infer_response,
    encode_infer_request,
    tensor_to_list,
)
from sealgate.protocol.tensors import Parameter
from sealgate.terminal import printable
from sealgate.transparency.receipt import VerifiedReceipt

_MAX_ERROR_TEXT = 500


@dataclass(frozen=True, kw_only=True)
class InferResult:
    """An opened answer. Holding one proves: the attested instance answered exactly our request with exactly this, and
    that is on record in the log. `outputs` are nested lists by output name; `labels` the class names of the label
    output, row by row, if the model has one and its metadata were read."""

    model_name: str
    model_version: str
    outputs: Mapping[str, list[Any]] = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)
    labels: tuple[str, ...] | None = field(repr=False)
    receipt: VerifiedReceipt
    receipt_bytes: bytes = field(repr=False)
    evidence: VerifiedEvidence = field(repr=False)
    transcript: tuple[Check, ...] = field(repr=False)
    answer: SealedAnswer = field(repr=False)
    parameters: Mapping[str, Parameter] = field(default_factory=dict, repr=False)

    @property
    def obligations(self) -> Obligations:
        """What the policy demanded of this answer, as the runtime says inside the seal: rounding, noise, and so on."""
        return self.answer.obligations

    def numpy(self, name: str) -> Any:
        """One output as a numpy array."""
        return to_numpy(self.tensors[name])

    @property
    def cose_receipt(self) -> bytes:
        """The receipt as COSE Receipt (RFC 9942), verified; empty unless the session asks for them and one came. Its
        leaf is `receipt.leaf`."""
        return self.answer.cose_receipt

    def save_receipt(self, path: Path | str) -> None:
        """Write the receipt: it proves to others that this inference is on record. Owner-only; replaces a file."""
        save_receipt(Path(path), self.receipt_bytes)


def save_receipt(path: Path, receipt: bytes) -> None:
    """Write receipt bytes, readable by their owner only; raises ConfigurationError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(receipt)
    except OSError as error:
        raise ConfigurationError(f"the receipt cannot be written to {path}: {error.strerror}") from error


def model_path(model: str, version: str | None, action: str) -> str:
    """The inner path of an operation on a model."""
    path = f"/v2/models/{quote(model, safe='')}"
    return path + (f"/versions/{quote(version, safe='')}" if version else "") + action


def infer_message(
    tensors: tuple[Tensor, ...],
    *,
    outputs: Sequence[str],
    parameters: Mapping[str, Parameter] | None,
    request_id: str | None,
) -> tuple[list[tuple[str, str]], bytes]:
    """Header fields and body of the inner request; tensors travel as raw bytes."""
    request = InferRequest(
        inputs=tensors,
        outputs=tuple(RequestedOutput(name) for name in outputs),
        id=request_id,
        parameters=dict(parameters or {}),
    )
    return encode_infer_request(request, binary=True)


def explain_message(
    tensors: tuple[Tensor, ...], *, method: str | None, target: str | int | None, request_id: str | None
) -> tuple[list[tuple[str, str]], bytes]:
    """The same for an explanation."""
    asked: dict[str, Parameter | None] = {"method": method, "target": target}
    parameters = {name: value for name, value in asked.items() if value is not None}
    return infer_message(tensors, outputs=(), parameters=parameters, request_id=request_id)


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Network failures as ServiceUnreachable, in words of ours."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise ServiceUnreachable(f"{url} did not answer in time") from error
    except httpx.ProxyError as error:
        raise ServiceUnreachable(f"the proxy on the way to {url} refused") from error
    except httpx.ConnectError as error:
        why = (
            "its TLS certificate is not from the authority in ca.pem (without that file, from none of the system's), or"
            if is_tls_failure(error)
            else "is it running, and"
        )
        raise ServiceUnreachable(f"cannot connect to {url}: {why} is the url in the trust file right?") from error
    except httpx.TransportError as error:
        raise ServiceUnreachable(
            f"the connection to {url} broke before the answer was complete (so it also ends where the service does not "
            "accept the authority of a client certificate)"
        ) from error


def require_sealed(response: httpx.Response) -> SealedAnswer:
    """The proof behind an answer. Raises InferenceFailed for the runtime's own errors."""
    answer = response.extensions.get(EXTENSION)
    if not isinstance(answer, SealedAnswer):
        raise UnsealedAnswer("the answer did not come through a sealed transport")
    if response.status_code >= 400:
        raise InferenceFailed(
            f"the runtime answered {response.status_code}: {_error_text(response.content)}",
            status=response.status_code,
            receipt=answer.receipt,
            receipt_bytes=answer.receipt_bytes,
            cose_receipt=answer.cose_receipt,
        )
    return answer


def read_document(response: httpx.Response) -> dict[str, Any]:
    """The JSON object in an opened answer; raises InferenceFailed or DecodeError."""
    answer = require_sealed(response)
    try:
        return msgspec.json.decode(bytes(answer.response.body), type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise DecodeError("the answer is not a JSON object") from error


def read_result(response: httpx.Response, metadata: ModelMetadata | None) -> InferResult:
    """The result in an opened answer; raises InferenceFailed or DecodeError."""
    answer = require_sealed(response)
    decoded = decode_infer_response(answer.response.fields, answer.response.body)
    tensors = {tensor.name: tensor for tensor in decoded.outputs}
    return InferResult(
        model_name=decoded.model_name,
        model_version=decoded.model_version,
        outputs={name: _to_list(tensor) for name, tensor in tensors.items()},
        tensors=tensors,
        labels=_labels(decoded, metadata),
        receipt=answer.receipt,
        receipt_bytes=answer.receipt_bytes,
        evidence=answer.evidence,
        transcript=answer.checked.transcript,
        answer=answer,
        parameters=decoded.parameters,
    )


def is_tls_failure(error: BaseException | None) -> bool:
    """Whether the peer's certificate, or something else of TLS, was what failed."""
    import ssl

    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error is not None


def _error_text(body: bytes) -> str:
    class Document(msgspec.Struct):
        error: str

    try:
        return printable(msgspec.json.decode(body, type=Document).error, limit=_MAX_ERROR_TEXT)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return "an error without a text"


def _to_list(tensor: Tensor) -> list[Any]:
    values = tensor_to_list(tensor, nested=True)
    if tensor.datatype == "BYTES" and len(tensor.shape) == 1:
        return [value.decode(errors="replace") for value in values]
    return values


def _labels(decoded: InferResponse, metadata: ModelMetadata | None) -> tuple[str, ...] | None:
    """Class names of the label output: INT64 indices into the names that the metadata give, or text as it is."""
    for tensor in decoded.outputs:
        names = metadata.parameters.labels.get(tensor.name, ()) if metadata else ()
        if len(tensor.shape) == 1 and tensor.datatype == "INT64" and names:
            indices = tensor_to_list(tensor)
            return tuple(names[index] if 0 <= index < len(names) else str(index) for index in indices)
        if len(tensor.shape) == 1 and tensor.datatype == "BYTES":
            return tuple(value.decode(errors="replace") for value in tensor_to_list(tensor))
    return None
