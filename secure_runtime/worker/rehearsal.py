"""One whole exchange before the seal, with keys that are thrown away: every import, every path, errors included.

After the seal nothing can be opened, so whatever Python or torch loads lazily must have been loaded here. Not a test:
its answers are checked only for having come to an end. Never: uses real keys or real requests.
"""

from __future__ import annotations

import io
import math
import select
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime

import msgspec

from sealgate.ambient import now_us
from sealgate.certificate.inputs import InputTensor
from sealgate.certificate.manifest import Manifest
from sealgate.protocol import bhttp, inference
from sealgate.protocol.frames import BootPlan, Frame, FrameReader, Grant, Obligations, Work, WorkerToHost, encode_frame
from sealgate.protocol.ohttp import ResponseOpener, decode_key_configs, seal_request
from secure_runtime.errors import SandboxRefused
from secure_runtime.models.bundle import LoadedModel
from secure_runtime.worker.engine import pictures
from secure_runtime.worker.engine.attribution import GRADIENTS, Explainer, evaluations, methods_of
from secure_runtime.worker.engine.movable import Movable
from secure_runtime.worker.engine.serving import Engine
from secure_runtime.worker.single_use import SingleUse
from secure_runtime.worker.sweeps import Worker

_ZEROS: dict[str, bool | str] = {"BOOL": False, "BYTES": ""}
_ONES: dict[str, bool | str] = {"BOOL": True, "BYTES": "a"}
_ROWS_LARGE = 4096  # enough to start torch's own threads
_NUMBERS_LARGE = 256 * 1024  # in one request: enough for that, too
_WORK_LARGE = 1 << 31  # multiplications of one request: some tenths of a second; there are four for each model
_ROWS_LEAST = 2
_PATIENCE_MS = 30_000  # with a single-use process, before the worker gives up its start
_REDUCED = Obligations(round_digits=3, top_k=1)
_EXPLAINED = Obligations(round_digits=3)
_EXPLAIN_WORK = 1 << 30  # multiplications of one rehearsed explanation: of models with more, a part is rehearsed
_EXPLAIN_EVALUATIONS = 4096
_NOISED = Obligations(noise_epsilon_micro=1_000_000, noise_rows=1, receipt_required=True)


def rehearse(plan: BootPlan, engine: Engine, models: Mapping[str, LoadedModel]) -> None:
    """Serve a few requests per model and suite with a worker that is then dropped."""
    sent: list[bytes | memoryview] = []

    def send(frame: Frame, body: bytes) -> None:
        sent.extend(encode_frame(frame, body))

    worker = Worker(plan, engine, send=send)
    _explain(models)
    works: list[tuple[Work, bytes, bool]] = []
    for config in decode_key_configs(worker.keys.published()):
        for at, (operation, model, request, obligations) in enumerate(_requests(plan, models)):
            raw, media_type, _ = seal_request(config, request, chunked=_in_chunks(at, request))
            grant = _grant(model, operation, obligations)
            works.append((Work(id=len(works), grant=grant, media_type=media_type), raw, False))
        raw, media_type, _ = seal_request(config, b"\x00", chunked=False)
        works.append((Work(id=len(works), grant=_grant("none"), media_type=media_type), raw, False))
        works.append((Work(id=len(works), grant=_grant("none"), media_type=media_type), raw, True))
        works.append((Work(id=len(works), grant=_grant("none"), media_type="text/plain"), b"garbage", False))
    worker.sweep(works)
    worker.rotate()
    ends = FrameReader(WorkerToHost).feed(b"".join(sent))
    if len(ends) != len(works) + 1:
        raise SandboxRefused("the rehearsal did not come to its end", code="rehearsal")


def rehearse_single_use(
    plan: BootPlan, engine: Engine, models: Mapping[str, LoadedModel], single_use: SingleUse
) -> None:
    """After the seal: each kind of request in a process of its own; one of each kind of answer is opened, too."""
    sent: list[bytes | memoryview] = []

    def send(frame: Frame, body: bytes) -> None:
        sent.extend(encode_frame(frame, body))

    worker = Worker(plan, engine, send=send, single_use=single_use)
    openers: list[ResponseOpener] = []
    works: list[tuple[Work, bytes, bool]] = []
    for config in decode_key_configs(worker.keys.published()):
        for at, (operation, model, request, obligations) in enumerate(_requests(plan, models)):
            raw, media_type, opener = seal_request(config, request, chunked=_in_chunks(at, request))
            grant = _grant(model, operation, msgspec.structs.replace(obligations, single_use=True))
            works.append((Work(id=len(works), grant=grant, media_type=media_type), raw, False))
            openers.append(opener)
    worker.sweep(works)
    poller = select.poll()
    poller.register(single_use.channel, select.POLLIN)
    while worker.busy:
        if not poller.poll(_PATIENCE_MS):
            raise SandboxRefused("a single-use process did not come to its end", code="rehearsal")
        worker.advance()
    ends = FrameReader(WorkerToHost).feed(b"".join(sent))
    for done, sealed in ends:
        if done.problem:
            reason = done.completion.statement.reason
            raise SandboxRefused(f"a single-use process could not answer: {reason}", code="rehearsal")
        bhttp.decode_response(openers[done.id].open(sealed, done.media_type))
    if len(ends) != len(works):
        raise SandboxRefused("the rehearsal of single-use processes did not come to its end", code="rehearsal")


def rows_large(manifest: Manifest) -> int:
    """Rows of a large request: many, but no more than a fraction of a second's work, however much a row takes. A model
    whose rows take seconds would otherwise not be ready before the host gives its worker up."""
    numbers = sum(math.prod(spec.model_shape) for spec in manifest.inputs)
    bounds = (_ROWS_LARGE, _NUMBERS_LARGE // max(1, numbers), _WORK_LARGE // max(1, manifest.architecture.row_work()))
    return max(_ROWS_LEAST, min(bounds))


def _in_chunks(at: int, request: bytes) -> bool:
    """Whether a request goes in chunks: large ones, and every other one, so that each model meets both ways."""
    return len(request) > 4096 or at % 2 == 1


def _grant(model: str, operation: str = "infer", obligations: Obligations = _REDUCED) -> Grant:
    return Grant(
        id="rehearsal",
        model=model,
        operation=operation,
        purpose="rehearsal",
        actor="",
        credential_binding="rehearsal",
        obligations=obligations,
        expires_us=now_us() + 60_000_000,
    )


def _requests(plan: BootPlan, models: Mapping[str, LoadedModel]) -> list[tuple[str, str, bytes, Obligations]]:
    """Operation, model, inner request and duties: JSON and binary, one row and many, noised, and documents that are
    wrong."""
    made: list[tuple[str, str, bytes, Obligations]] = []
    for model in models.values():
        name = model.facts.name
        specs = model.manifest.inputs
        path = f"/v2/models/{name}/versions/{model.facts.version}/infer"
        for rows in (1, rows_large(model.manifest)):
            tensors = tuple(_zeros(spec, rows) for spec in specs)
            for binary in (True, False):
                request = inference.InferRequest(inputs=tensors)
                fields, body = inference.encode_infer_request(request, binary=binary)
                made.append(("infer", name, _encode(plan, "POST", path, tuple(fields), body), _REDUCED))
                if rows == 1:
                    made.append((*made[-1][:3], _NOISED))
        wrong = inference.tensor_from_list("no such input", "FP32", (1, 1), [0.0])
        fields, body = inference.encode_infer_request(inference.InferRequest(inputs=(wrong,)), binary=False)
        made.append(("infer", name, _encode(plan, "POST", path, tuple(fields), body), _REDUCED))
        made.append(("infer", name, _encode(plan, "POST", path, (), b"{"), _REDUCED))
        made += [("infer", name, request, _REDUCED) for request in _of_pictures(plan, model, path)]
        made += [("explain", name, request, _EXPLAINED) for request in _of_explanations(plan, model)]
        for read in (f"/v2/models/{name}", f"/v2/models/{name}/ready", f"/v2/models/{name}/stats", "/v2"):
            made.append(("read-model", name, _encode(plan, "GET", read, (), b""), _REDUCED))
    made.append(("infer", "none", _encode(plan, "POST", "/v2/models/none/infer", (), b"{}"), _REDUCED))
    return made


def _of_pictures(plan: BootPlan, model: LoadedModel, path: str) -> list[bytes]:
    """A blank PNG, a blank JPEG and a broken one, where the model takes pictures."""
    specs = model.manifest.inputs
    if len(specs) != 1 or not pictures.is_offered(specs[0]):
        return []
    blank = [_blank(specs[0], kind) for kind in ("PNG", "JPEG")]
    made: list[bytes] = []
    for data in (*blank, blank[0][:-20], blank[1][:-20]):
        raw = len(data).to_bytes(4, "little") + data
        tensor = inference.Tensor(name=specs[0].name, datatype="BYTES", shape=(1,), data=raw)
        fields, body = inference.encode_infer_request(inference.InferRequest(inputs=(tensor,)), binary=True)
        made.append(_encode(plan, "POST", path, tuple(fields), body))
    return made


def _blank(spec: InputTensor, kind: str) -> bytes:
    from PIL import Image

    _, channels, height, width = spec.shape
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    into = io.BytesIO()
    Image.new("RGB" if (mode, kind) == ("RGBA", "JPEG") else mode, (width, height)).save(into, kind)
    return into.getvalue()


def _methods(model: LoadedModel) -> list[str]:
    """Those by which an explanation of one row is soon done."""
    movable = Movable(model.manifest, model.predictor)
    found: list[str] = []
    for method in methods_of(movable):
        each = evaluations(movable, method)
        if each <= _EXPLAIN_EVALUATIONS and each * model.manifest.architecture.row_work() <= _EXPLAIN_WORK:
            found.append(method)
    return found


def _of_explanations(plan: BootPlan, model: LoadedModel) -> list[bytes]:
    path, tensors = f"/v2/models/{model.facts.name}/explain", tuple(_ones(spec) for spec in model.manifest.inputs)
    made: list[bytes] = []
    for method in (*_methods(model), "none"):
        request = inference.InferRequest(inputs=tensors, parameters={"method": method})
        fields, body = inference.encode_infer_request(request, binary=True)
        made.append(_encode(plan, "POST", path, tuple(fields), body))
    return made


def _explain(models: Mapping[str, LoadedModel]) -> None:
    """A little of what is too much to be explained whole: the gradients, which other methods do not ask for."""
    for model in models.values():
        movable = Movable(model.manifest, model.predictor)
        if GRADIENTS in methods_of(movable):
            explainer = Explainer(movable, GRADIENTS, steps=1)
            explainer.explain({one.spec.name: one.zeros(1) for one in model.predictor.inputs}, 0)


def _zeros(spec: InputTensor, rows: int) -> inference.Tensor:
    shape = (rows, *spec.shape[1:])
    return inference.tensor_from_list(
        spec.name, spec.datatype, shape, [_ZEROS.get(spec.datatype, 0)] * math.prod(shape)
    )


def _ones(spec: InputTensor) -> inference.Tensor:
    """One row that is not the baseline of explanations: there is something to take away."""
    shape = (1, *spec.shape[1:])
    return inference.tensor_from_list(spec.name, spec.datatype, shape, [_ONES.get(spec.datatype, 1)] * math.prod(shape))


def _encode(plan: BootPlan, method: str, path: str, fields: tuple[tuple[str, str], ...], body: bytes) -> bytes:
    date = format_datetime(datetime.fromtimestamp(now_us() // 1_000_000, UTC), usegmt=True)
    fixed = (("date", date), ("purpose", "rehearsal"), ("credential-binding", "rehearsal"))
    return bhttp.encode_request(
        bhttp.Request(
            method=method, scheme="https", authority=plan.audience, path=path, fields=fixed + fields, body=body
        )
    )
