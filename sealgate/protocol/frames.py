"""Frames between our own processes: gateway to host over a UNIX socket, host to worker over a socketpair.

On the wire: `u32 header length | u32 body length | header (MessagePack) | body (opaque bytes)`, big endian. The body is
never decoded here: it is a sealed message, evidence, or nothing. Frames carry the id of the request that they belong
to, so requests are multiplexed. Pure: parsing and building only, no I/O.

Trusts: the operating system's delivery on the socket. Never: carries plaintext, private keys or tokens.
Long, because every frame stands here: this page is the whole contract between the three processes.
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from sealgate.errors import DecodeError
from sealgate.limits import DEFAULT_MESSAGE, LARGE_BODY, MAX_FRAME_BODY, MAX_FRAME_HEADER
from sealgate.protocol.completion import Completion

_PREFIX = struct.Struct(">II")


class Frame(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="t", omit_defaults=True):
    """`id` is chosen by the side that asks and repeated by the side that answers; 0 where nobody asked."""

    id: int = 0


# Values inside frames ------------------------------------------------------------------------------------------------


class Caller(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who asks, as the gateway authenticated it. The host replaces `subject` by a random pseudonym before anything is
    logged or handed on; the worker sees only the pseudonym and the credential's binding."""

    tenant: str
    subject: str
    authn: str  # "jwt", "mtls", "jwt+mtls"
    credential_binding: str  # see sealgate.protocol.binding


class Obligations(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What a permit demands of the answer. None means: nothing demanded."""

    round_digits: int | None = None  # decimal places kept in floating-point outputs
    top_k: int | None = None  # only the k largest scores are given, the others are dropped
    hide_scores: bool = False  # labels only
    noise_epsilon_micro: int = 0  # private prediction: each row's answer is noised, and spends this much epsilon
    noise_rows: int = 0  # the most rows that one noised request may have; what is held of the budget is for so many
    receipt_required: bool = False  # the client may use the answer only with a receipt that verifies
    single_use: bool = False  # opened and run in a process of its own, which ends with this request


class Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The policy's answer, with what determined it."""

    policy_digest: str
    policy_ids: tuple[str, ...] = ()
    obligations: Obligations = Obligations()
    reason: str = ""  # for denials


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the host allows a worker to do once, after `authorized` is durable. `id` is the authorized record's id."""

    id: str
    model: str
    operation: str  # "infer", "explain", "read-model"
    purpose: str
    actor: str
    credential_binding: str
    obligations: Obligations
    expires_us: int
    version: str = ""  # of the model, if the request names none; "": the newest that the worker has


class ModelFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A loaded model, as its verified bundle states it. Epsilon in millionths; delta as a decimal string."""

    name: str
    version: str
    model_digest: str  # SHA-256 of the weights file
    certificate_digest: str  # SHA-256 of the DSSE envelope
    epsilon_micro: int
    delta: str
    privacy_unit: str
    sensitivity: str  # "public", "personal", "special-category"
    purposes: tuple[str, ...]
    audited: bool = False  # an attack on its training was tried before it was signed, and did not succeed


class ModelRefusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A bundle that was not loaded, and the stable reason code."""

    name: str
    reason: str


class Layer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One isolation layer or denial probe: state is on, off, failed, disabled or not-needed."""

    state: str
    detail: str = ""


class WorkerFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a sealed worker says of itself. The host puts it into evidence; clients see it as self-asserted."""

    instance: str
    completion_key: bytes  # Ed25519 public key, 32 bytes
    key_configs: bytes  # application/ohttp-keys: every key that may still be sealed to, newest first
    models: tuple[ModelFacts, ...]
    refused: tuple[ModelRefusal, ...]
    profile: str  # "strict", "container", "dev"
    layers: dict[str, Layer]
    probes: dict[str, Layer]
    device: str
    measurements: dict[str, str]  # name to lowercase hex SHA-256 (code, environment)
    single_use: bool = False  # it can answer a request in a process of its own
    memory: dict[str, int] = {}  # bytes that loading and warming up took, by the bundle's place
    graphs: dict[str, str] = {}  # what came of capturing CUDA graphs, in words, by the bundle's place


Amount: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Took(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What one grant took in the worker, by the worker's own clocks: its word, which nothing signs. Microseconds.

    What was done for several requests at once is shared out: opening and sealing evenly, a batch by its rows.
    """

    open_us: Amount = 0  # steps 7: time
    run_us: Amount = 0  # step 8: time of the batch that it was in
    seal_us: Amount = 0  # step 9: time
    cpu_us: Amount = 0  # of all its processors and threads: its share
    rows: Amount = 0
    batch_rows: Amount = 0
    together: Amount = 0  # requests that were opened with it, itself included


class Span(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """One step of a traced request, for OpenTelemetry; the gateway exports it for the host, which has no network."""

    process: Literal["host", "worker"]
    name: str  # of a fixed list; see sealgate.protocol.tracing
    span_id: bytes  # 8 bytes
    parent_id: bytes
    start_us: Amount
    end_us: Amount
    facts: dict[str, str | int] = {}  # none of them from a payload


class BootPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the host hands a fresh worker before its sandbox closes. Read once, over the socketpair, as JSON.

    JSON, because the code that reads it runs before any third-party package may be imported. The keys of models are
    the one secret in it: `without_keys` is what a worker keeps, and its printed form shows nothing.
    """

    profile: str
    audience: str  # the inner :authority that requests must name
    models_dir: str
    publishers_file: str
    sys_path: tuple[str, ...]
    uid: int  # identity to drop to when started as root; 0 keeps the caller's
    gid: int
    torch_threads: int
    memory_limit_bytes: int
    suites: tuple[str, ...] = ("MLKEM768-X25519", "X25519")
    key_active_s: int = 24 * 3600
    key_stale_s: int = 3600
    date_window_s: int = 120
    replay_max: int = 1_000_000
    max_batch_rows: int = 256
    device: str = "auto"  # "cpu", "cuda:0", "auto"
    gpus: tuple[str, ...] = ()  # device nodes of GPUs that the sandbox shows
    single_use: bool = False  # be able to fork a process for one request
    require_audit: bool = False  # models whose certificate states no audit are not loaded
    require_model_signature: bool = False  # models whose model.sig was not checked are not loaded
    require_encryption: bool = False  # models whose weights lie on the disk in plain are not loaded
    model_keys: dict[str, str] = {}  # base64 of the data keys of encrypted bundles, by place; of members, by file
    avoid_key_ids: tuple[int, ...] = ()  # of earlier and other workers' keys: a stale request must not hit a new key
    bundles: tuple[str, ...] | None = None  # places below models_dir to load, "NAME" or "NAME/VERSION"; None: all
    memory_limits: dict[str, int] = {}  # bytes that loading a model may take, by its name
    max_message: int = DEFAULT_MESSAGE  # bytes of an inner message, either way
    cuda_graphs: tuple[str, ...] = ()  # models to capture as CUDA graphs, by name
    number: int = 0  # of this worker among those that run side by side, for the choice of a device

    def without_keys(self) -> BootPlan:
        """The plan once the models are loaded."""
        return msgspec.structs.replace(self, model_keys={})

    def __repr__(self) -> str:
        return f"<BootPlan for {self.audience}>"


# Gateway to host -----------------------------------------------------------------------------------------------------


class Submit(Frame, frozen=True, kw_only=True, tag="submit"):
    """A permitted sealed request; body: the encapsulated request. `cose`: its receipt is wanted as COSE Receipt too."""

    model: str
    operation: str
    purpose: str
    media_type: str
    caller: Caller
    decision: Decision
    cose: bool = False
    trace: str = ""  # W3C traceparent of the gateway's span; "" for a request that is not traced
    judged: tuple[str, ...] = ()  # certificate digests of the model's versions that the policy was asked about


class Deny(Frame, frozen=True, kw_only=True, tag="deny"):
    """The policy refused; the host records it and answers with `Recorded`."""

    model: str
    operation: str
    purpose: str
    caller: Caller
    decision: Decision
    cose: bool = False


class AuthFailed(Frame, frozen=True, kw_only=True, tag="auth-failed"):
    """Authentication failed. Not answered; the host counts per reason, source class and minute."""

    reason: str
    source: str  # "loopback", "private", "public", "unix"


AuditKind: TypeAlias = Literal["audit.query", "audit.export", "audit.review"]


class AuditRead(Frame, frozen=True, kw_only=True, tag="audit-read"):
    """An auditor is about to read, or states that somebody looked; answered with `Recorded` once that is a durable
    record.

    No other kind can be asked for: the host believes its own records (of keys and workers) when it starts again.
    """

    caller: Caller
    decision: Decision
    kind: AuditKind
    detail: dict[str, str]


class EvidenceWanted(Frame, frozen=True, kw_only=True, tag="evidence-wanted"):
    """Evidence over the client's nonce (may be empty); answered with `EvidenceGiven`. With `model`, evidence of a
    worker that serves it."""

    nonce: bytes
    model: str = ""


class FiguresTold(Frame, frozen=True, kw_only=True, tag="figures-told"):
    """Body: what this gateway process has counted (sealgate.protocol.figures). Not answered; the newest counts."""


class FiguresWanted(Frame, frozen=True, kw_only=True, tag="figures-wanted"):
    """The figures of the whole deployment; answered with `FiguresGiven`."""


class Cancel(Frame, frozen=True, kw_only=True, tag="cancel"):
    """The caller went away. Records stay; work that has not started is dropped. Also host to worker."""


# Host to gateway -----------------------------------------------------------------------------------------------------


class Answer(Frame, frozen=True, kw_only=True, tag="answer"):
    """Body: the sealed response. `completed` (or `failed`, for a sealed error) is durable."""

    media_type: str
    log: str
    record: int
    receipt: bytes
    cose_receipt: bytes = b""  # RFC 9942; only where it was asked for
    spans: tuple[Span, ...] = ()  # only where the request is traced


class Refused(Frame, frozen=True, kw_only=True, tag="refused"):
    """No sealed response. `code` is one of the public problem codes; the reason stands in the record only."""

    status: int
    code: str
    log: str = ""
    record: int = -1
    receipt: bytes = b""
    cose_receipt: bytes = b""
    retry_after_s: int = 0
    budget: str = ""  # the budget that was exhausted, and when it renews (0: never)
    renews_us: int = 0
    spans: tuple[Span, ...] = ()  # only where the request is traced


class Recorded(Frame, frozen=True, kw_only=True, tag="recorded"):
    """The record that was asked for is durable."""

    log: str
    record: int
    receipt: bytes
    cose_receipt: bytes = b""


class EvidenceGiven(Frame, frozen=True, kw_only=True, tag="evidence-given"):
    """Body: the evidence (media type application/eat+cwt)."""


class PublishedWorker(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of the workers whose keys are published: which keys, and the names of the models that it serves."""

    instance: str
    key_configs: bytes
    models: tuple[str, ...]
    device: str = ""
    memory: dict[str, int] = {}  # see WorkerFacts
    graphs: dict[str, str] = {}
    layers: dict[str, Layer] = {}  # its own word, with what it found of its single-use processes
    host_layers: dict[str, Layer] = {}  # what the host read of it from outside
    got_through: tuple[str, ...] = ()  # probes that were not denied


class FiguresGiven(Frame, frozen=True, kw_only=True, tag="figures-given"):
    """Body: the figures of the host, its workers and all gateway processes, added up."""


class RuntimeState(Frame, frozen=True, kw_only=True, tag="state"):
    """Pushed on connect and at every change. `ready` is false with a plain-words `detail` when inference is refused.

    `key_configs` are those of all workers together, and `models` every version that any of them may still answer with.
    """

    ready: bool
    detail: str
    log_state: str  # "ok" or "failed: ..."
    log: str
    key_configs: bytes
    models: tuple[ModelFacts, ...]
    policy_digest: str
    assurance: str
    profile: str
    degraded: bool
    single_use: bool = False  # a permit that demands a single-use worker can be met
    witnesses: str = ""  # what keeps witnesses from cosigning; "": nothing that is known
    workers: tuple[PublishedWorker, ...] = ()
    routes: dict[str, str] = {}  # by model, which version answers if none is named, in words


# Host to worker ------------------------------------------------------------------------------------------------------


class Work(Frame, frozen=True, kw_only=True, tag="work"):
    """Body: the encapsulated request."""

    grant: Grant
    media_type: str


class Rotate(Frame, frozen=True, kw_only=True, tag="rotate"):
    """Make a new active key now; the worker answers with `KeysChanged`. No key takes a number in `avoid`."""

    avoid: tuple[int, ...] = ()


class Shutdown(Frame, frozen=True, kw_only=True, tag="shutdown"):
    """Finish what was received and exit."""


# Worker to host ------------------------------------------------------------------------------------------------------


class Hello(Frame, frozen=True, kw_only=True, tag="hello"):
    """Sent once, after the sandbox is sealed and the keys exist."""

    facts: WorkerFacts


class BootFailed(Frame, frozen=True, kw_only=True, tag="boot-failed"):
    """The worker refuses to serve and exits."""

    reason: str
    detail: str
    layers: dict[str, Layer] = {}


class KeysChanged(Frame, frozen=True, kw_only=True, tag="keys-changed"):
    """The published keys changed (rotation or expiry)."""

    key_configs: bytes


class Done(Frame, frozen=True, kw_only=True, tag="done"):
    """One grant came to its end. Body: the sealed response, or empty when the gatekeeper refused.

    `problem` is "" or the public problem code for a refusal (`sealed-request-refused`, `unknown-key`, `busy`).
    """

    completion: Completion
    problem: str = ""
    media_type: str = ""
    took: Took | None = None


GatewayToHost: TypeAlias = (
    Submit | Deny | AuthFailed | AuditRead | EvidenceWanted | FiguresTold | FiguresWanted | Cancel
)
HostToGateway: TypeAlias = Answer | Refused | Recorded | EvidenceGiven | FiguresGiven | RuntimeState
HostToWorker: TypeAlias = Work | Cancel | Rotate | Shutdown
WorkerToHost: TypeAlias = Hello | BootFailed | KeysChanged | Done

_encoder = msgspec.msgpack.Encoder()


def encode_frame(frame: Frame, body: bytes | memoryview = b"") -> tuple[bytes, bytes | memoryview]:
    """Header bytes (with the length prefix) and the body, to be written one after the other without joining."""
    header = _encoder.encode(frame)
    if len(header) > MAX_FRAME_HEADER or len(body) > MAX_FRAME_BODY:
        raise DecodeError("frame is too large")
    return _PREFIX.pack(len(header), len(body)) + header, body


class _LargeBody:
    """The body of one frame, gathered piece by piece. A BytesIO hands out what it holds without a copy."""

    def __init__(self, frame: Any, size: int) -> None:
        self.frame = frame
        self._missing = size
        self._body = BytesIO()

    def take(self, data: memoryview) -> memoryview:
        """Keep what belongs to the body; returns the rest."""
        taken = data[: self._missing]
        self._body.write(taken)
        self._missing -= len(taken)
        return data[len(taken) :]

    @property
    def size(self) -> int:
        """What is there of it."""
        return self._body.tell()

    @property
    def whole(self) -> bytes | None:
        """The body, once all of it is there."""
        return None if self._missing else self._body.getvalue()


class FrameReader:
    """Cuts a byte stream into frames of one direction (`GatewayToHost`, `HostToGateway`, ...).

    Feed it bytes as they arrive; it yields `(frame, body)` with `body` an owned `bytes`. Raises DecodeError on anything
    that the other side should not have sent, bodies above `body_max` included; the connection is then unusable and must
    be closed.
    """

    def __init__(self, kinds: Any, *, body_max: int = MAX_FRAME_BODY) -> None:
        self._decoder = msgspec.msgpack.Decoder(kinds)
        self._body_max = body_max
        self._rest = (
            bytearray()
        )  # of a frame that is not whole yet; nothing can be done before `_wanted` of it are there
        self._wanted = _PREFIX.size
        self._large: _LargeBody | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> list[tuple[Any, bytes]]:
        """All complete frames; keeps the rest."""
        frames: list[tuple[Any, bytes]] = []
        if self._large is not None:
            data = self._large.take(memoryview(data))
            if (body := self._large.whole) is None:
                return frames
            frames.append((self._large.frame, body))
            self._large = None
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return frames
            data = self._rest
        data, start, self._wanted = bytes(data), 0, _PREFIX.size
        while len(data) - start >= _PREFIX.size:
            header_size, body_size = _PREFIX.unpack_from(data, start)
            if header_size > MAX_FRAME_HEADER or body_size > self._body_max:
                raise DecodeError("frame is too large")
            at = start + _PREFIX.size
            body_at, end = at + header_size, at + header_size + body_size
            needed = end if body_size < LARGE_BODY else body_at
            if len(data) < needed:
                self._wanted = needed - start
                break
            frame = self._decode(data[at:body_at])
            if len(data) < end:
                self._large = _LargeBody(frame, body_size)
                self._large.take(memoryview(data)[body_at:])
                start = len(data)
                break
            frames.append((frame, data[body_at:end]))
            start = end
        self._rest = bytearray(data[start:])
        return frames

    def _decode(self, header: bytes) -> Any:
        try:
            return self._decoder.decode(header)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise DecodeError("frame header is malformed") from error

    @property
    def pending(self) -> int:
        """Bytes of an incomplete frame."""
        return len(self._rest) + (self._large.size if self._large is not None else 0)
