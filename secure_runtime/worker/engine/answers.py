"""What an answer is to the rest of the worker, and how one that has no tensors is made: errors, and what is read.

Trusts: what the engine hands it. Never: says of a model more than its metadata, or of a failure more than its text for
the caller, inside the seal.
"""

from __future__ import annotations

import importlib.metadata

import msgspec

from sealgate.certificate.inputs import Content, InputTensor
from sealgate.protocol import bhttp
from sealgate.protocol.frames import Obligations
from sealgate.protocol.obligations import FIELD, encode_obligations
from secure_runtime.errors import BadInput
from secure_runtime.models.bundle import LoadedModel
from secure_runtime.worker.engine import attribution, pictures
from secure_runtime.worker.engine.movable import Movable
from secure_runtime.worker.engine.statistics import Counts
from secure_runtime.worker.gatekeeper import Admitted

JSON = (("content-type", "application/json"),)
_VERSION = importlib.metadata.version("sealgate")  # of the installed package; read before the seal
_EXTENSIONS = ("binary_tensor_data", "statistics", "explain")


class Share(msgspec.Struct, frozen=True):
    """What one request had of a batch: its rows of how many, the batch's time, and its part of the batch's processor
    time, by rows."""

    rows: int
    batch_rows: int
    run_us: int
    cpu_us: int


class EngineAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The inner response, and what the completion says about it."""

    response: bhttp.Response
    outcome: str  # "completed" or "failed"
    reason: str
    units: int
    model_digest: str
    certificate_digest: str
    eps_micro: int = 0  # what noised answers spent, in millionths

    def __repr__(self) -> str:
        return f"<EngineAnswer {self.outcome} {self.reason}>"


def completed(model: LoadedModel, response: bhttp.Response, *, units: int) -> EngineAnswer:
    """An answer that is one, at its price."""
    return EngineAnswer(
        response=response,
        outcome="completed",
        reason="",
        units=units,
        model_digest=model.facts.model_digest,
        certificate_digest=model.facts.certificate_digest,
    )


def failed(error: BadInput, model: LoadedModel | None) -> EngineAnswer:
    """An error, inside the seal."""
    return EngineAnswer(
        response=bhttp.Response(status=error.status, fields=JSON, body=msgspec.json.encode({"error": str(error)})),
        outcome="failed",
        reason=error.code,
        units=0,
        model_digest=model.facts.model_digest if model else "",
        certificate_digest=model.facts.certificate_digest if model else "",
    )


def unsealed(answer: EngineAnswer) -> EngineAnswer:
    """What takes the place of an answer that there was no memory to seal. What its noise spent stays spent."""
    why = BadInput("there was too little memory for the answer; send fewer rows at once", status=503)
    body = msgspec.json.encode({"error": str(why)})
    response = bhttp.Response(status=why.status, fields=JSON, body=body)
    return msgspec.structs.replace(answer, response=response, outcome="failed", reason="model-error", units=0)


def stated(answer: EngineAnswer, admitted: Admitted) -> EngineAnswer:
    """The answer, saying inside the seal what was done to it and what its reader owes."""
    obligations, operation = admitted.grant.obligations, admitted.target.operation
    if answer.outcome != "completed" or operation != "infer":  # nothing of an inference is in it
        explained = answer.outcome == "completed" and operation == "explain"
        obligations = Obligations(
            round_digits=obligations.round_digits if explained else None,
            noise_epsilon_micro=obligations.noise_epsilon_micro if answer.eps_micro else 0,
            receipt_required=obligations.receipt_required,
            single_use=obligations.single_use,
        )
    said = encode_obligations(obligations)
    if not said:
        return answer
    given = answer.response
    response = bhttp.Response(given.status, (*given.fields, (FIELD, said)), given.body, given.trailers)
    return msgspec.structs.replace(answer, response=response)


def described(admitted: Admitted, model: LoadedModel, versions: tuple[str, ...], counts: Counts) -> EngineAnswer:
    """What is read: the server, a model, whether they are ready, or what the caller had from a model."""
    facts = model.facts
    body: dict[str, object]
    match admitted.target.what:
        case "server":
            body = {"name": "sealgate", "version": _VERSION, "extensions": list(_EXTENSIONS)}
        case "live":
            body = {"live": True}
        case "server-ready":
            body = {"ready": True}
        case "ready":
            body = {"name": facts.name, "ready": True}
        case "stats":
            body = {"model_stats": [counts.document(facts.name, facts.version)]}
        case _:
            body = _metadata(model, versions)
    response = bhttp.Response(status=200, fields=JSON, body=msgspec.json.encode(body))
    return completed(model, response, units=0)


def _metadata(model: LoadedModel, versions: tuple[str, ...]) -> dict[str, object]:
    facts, manifest = model.facts, model.manifest
    movable = Movable(manifest, model.predictor)
    methods = attribution.methods_of(movable)
    return {
        "name": facts.name,
        "versions": versions,
        "platform": "sealgate_torch",
        "inputs": [{"name": i.name, "datatype": i.datatype, "shape": list(i.shape)} for i in manifest.inputs],
        "outputs": [{"name": o.name, "datatype": o.datatype, "shape": list(o.shape)} for o in manifest.outputs],
        "parameters": {
            "columns": [column.name for column in manifest.inputs[0].columns],
            "input_columns": {i.name: [column.name for column in i.columns] for i in manifest.inputs if i.columns},
            "contents": {tensor.name: _kind(tensor.content) for tensor in manifest.inputs},
            "encodings": {tensor.name: _encodings(tensor) for tensor in manifest.inputs if _encodings(tensor)},
            "labels": {output.name: list(output.labels) for output in manifest.outputs if output.labels},
            "units_per_row": manifest.units_per_row,
            "explain_units_per_row": manifest.explain_units,
            "explain_methods": list(methods),
            "explain_units": {method: attribution.price(movable, method) for method in methods},
            "version": facts.version,
            "model_digest": facts.model_digest,
            "certificate_digest": facts.certificate_digest,
            "epsilon_micro": facts.epsilon_micro,
            "delta": facts.delta,
            "privacy_unit": facts.privacy_unit,
        },
    }


def _kind(content: Content) -> str:
    """ "table", "image", "text", ...: what an input holds."""
    return str(content.__struct_config__.tag)


def _encodings(tensor: InputTensor) -> list[str]:
    """What else an input comes as, in BYTES."""
    return ["image/png", "image/jpeg"] if pictures.is_offered(tensor) else []
