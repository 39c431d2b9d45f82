"""The worker: load certified models, warm up, seal the sandbox, make keys, serve one socket in one thread.

    1  load every bundle that verifies; remember why the others were refused
    2  run one whole exchange with throw-away keys, errors included, so that nothing is imported after the seal
    3  seal the sandbox (no open, no exec, no fork, no socket) and probe it; before that, where the plan asks for
       single-use processes, fork the zygote, and after it, rehearse once more with one process per request
    4  only now make the request keys and the completion key, and say Hello
    5  for ever: take what arrives and answer it (secure_runtime.worker.sweeps)

Trusts: the boot plan (the host is its parent) and what it verifies itself. Never: writes anything, logs anything, or
opens another connection.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import os
import platform
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cryptography
import msgspec
import torch

from sealgate.certificate.key_envelope import KeyEnvelope, called_by_content
from sealgate.certificate.publishers import Publishers, load_publishers
from sealgate.certificate.repository import Place, places_of
from sealgate.certificate.sealed_weights import DataKeyOf, no_data_key
from sealgate.errors import CertificateError
from sealgate.evidence.measure import measure_code, measure_environment
from sealgate.limits import MAX_NAME
from sealgate.protocol.frames import (
    BootFailed,
    BootPlan,
    Frame,
    Hello,
    Layer,
    ModelRefusal,
    WorkerFacts,
    encode_frame,
)
from sealgate.protocol.secrets import Secret
from sealgate.protocol.sizes import sealed_size
from secure_runtime.errors import SandboxRefused
from secure_runtime.limits import COLLECT_EVERY, MAX_BUNDLES, MAX_FACTS_BYTES, MAX_REFUSALS
from secure_runtime.models.bundle import LoadedModel, captured, load_bundle, warm_up
from secure_runtime.models.devices import prepare_device
from secure_runtime.worker.engine.lookup import LoadedModels
from secure_runtime.worker.engine.serving import Engine
from secure_runtime.worker.memory import memory_used
from secure_runtime.worker.rehearsal import rehearse, rehearse_single_use
from secure_runtime.worker.single_use import SingleUse
from secure_runtime.worker.sweeps import Worker, flush, serve
from secure_runtime.worker.zygote import answerer, start


def _load_models(plan: BootPlan, device: str) -> tuple[dict[str, LoadedModel], tuple[ModelRefusal, ...]]:
    """Step 1. By the bundle's place. Whatever is wrong with a bundle concerns that bundle alone: the others are
    served."""
    publishers = load_publishers(Path(plan.publishers_file))
    loaded: dict[str, LoadedModel] = {}
    refused: list[ModelRefusal] = []
    room = MAX_FACTS_BYTES
    places = [one for one in places_of(Path(plan.models_dir)) if plan.bundles is None or one.called in plan.bundles]
    for number, place in enumerate(places):
        try:
            if number >= MAX_BUNDLES:
                raise CertificateError("there are too many bundles", code="too-many-bundles")
            model = _load(plan, place, publishers, device=device, beside=loaded)
            room -= len(msgspec.msgpack.encode(model.facts))
            if room < 0:  # what Hello, evidence and the gateways' view of the runtime can hold
                raise CertificateError("the bundles say too much of themselves", code="too-many-bundles")
            loaded[place.called] = model
        except CertificateError as error:
            refused.append(_refusal(place.called, error.code))
        except Exception:  # memory, or a library that gave up on strange figures
            refused.append(_refusal(place.called, "load-failed"))
    return loaded, tuple(refused[:MAX_REFUSALS])


def _load(
    plan: BootPlan, place: Place, publishers: Publishers, *, device: str, beside: Mapping[str, LoadedModel]
) -> LoadedModel:
    """One bundle, warmed up; raises CertificateError."""
    before = memory_used()
    model = load_bundle(
        place.path,
        publishers,
        device=device,
        require_audit=plan.require_audit,
        require_model_signature=plan.require_model_signature,
        require_encryption=plan.require_encryption,
        data_key=_data_key(plan, place.called),
    )
    facts = model.facts
    if place.version and (place.model, place.version) != (facts.name, facts.version):
        raise CertificateError("the folders are named otherwise than the manifest says", code="folder-mismatch")
    for called, other in beside.items():
        # Versions side by side are meant where the layout says so; elsewhere one of two is a copy that was left there.
        several = place.version and "/" in called and facts.version != other.facts.version
        if other.facts.name == facts.name and not several:
            raise CertificateError("two bundles have one name", code="name-taken")
    warm_up(model)
    if facts.name in plan.cuda_graphs:
        model = captured(model, device=device)
    took = memory_used().since(before)
    limit = plan.memory_limits.get(facts.name, 0)
    if limit and took > limit:
        raise CertificateError("the model took more memory than it may", code="memory-limit")
    return replace(model, memory_bytes=took)


def _data_key(plan: BootPlan, name: str) -> DataKeyOf:
    """The key that the host unwrapped for this bundle, or for a member of this pipeline, if it did."""

    def given(envelope: KeyEnvelope) -> Secret:
        found = plan.model_keys.get(name) or plan.model_keys.get(called_by_content(envelope))
        return no_data_key(envelope) if found is None else Secret(bytearray(base64.b64decode(found)))

    return given


def _refusal(called: str, reason: str) -> ModelRefusal:
    # A folder's name is any bytes; those that are no text must not end the worker that tells of them.
    name = os.fsencode(called).decode("utf-8", "replace")
    return ModelRefusal(name=name[:MAX_NAME], reason=reason)


def _measure() -> dict[str, str]:
    """What the worker reads of itself, for the evidence: the code on its side of the sandbox, the versions under it,
    and the environment that it really has."""
    versions = (
        f"python {platform.python_version()}\ntorch {torch.__version__}\ncryptography {cryptography.__version__}\n"
    )
    return {
        "code": measure_code(),
        "environment": measure_environment(os.environ),
        "versions": hashlib.sha256(versions.encode()).hexdigest(),
    }


def _choose_device(plan: BootPlan) -> str:
    """A worker takes a device of its own among those that run side by side, while there are as many.

    Raises SandboxRefused where GPUs are shown and cannot be used: the sandbox would be weaker for nothing.
    """
    if plan.device == "cpu":
        return plan.device
    if plan.gpus and not torch.cuda.is_available():
        shown = ", ".join(plan.gpus)
        raise SandboxRefused(
            f'torch cannot use the GPU that is shown ({shown}); mend its driver, or set device = "cpu"'
        )
    if plan.device != "auto":
        return plan.device
    return f"cuda:{plan.number % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def _seal(
    plan: BootPlan, engine: Engine, models: Mapping[str, LoadedModel], report: Any, *, device: str
) -> SingleUse | None:
    """Step 3. Raises SandboxRefused, also when single-use processes are asked for and one does not really work."""
    from secure_runtime.worker import sandbox

    if not plan.single_use:
        sandbox.seal(report)
        return None
    if plan.torch_threads != 1 or device != "cpu":
        # A fork has only the thread that forked: the others' locks would stay locked, and a GPU's context is lost.
        raise SandboxRefused("single-use processes need torch_threads = 1 and the CPU")
    channel, slots, layers = start(answerer(plan, engine), body_max=sealed_size(plan.max_message))
    sandbox.seal(report, zygote=layers)
    single_use = SingleUse(channel, slots, models={name: model.facts for name, model in models.items()})
    rehearse_single_use(plan, engine, models, single_use)
    return single_use


def run(sock: socket.socket, plan_values: dict[str, Any], report: Any) -> int:
    """Called by the boot module inside the sandbox, before its second stage. Returns the exit code."""
    plan = msgspec.convert(plan_values, BootPlan)
    outgoing: list[bytes | memoryview] = []

    def send(frame: Frame, body: bytes) -> None:
        outgoing.extend(encode_frame(frame, body))

    torch.set_num_threads(plan.torch_threads)
    torch.set_grad_enabled(False)
    try:
        device = _choose_device(plan)
        prepare_device(torch.device(device))
        loaded, refused = _load_models(plan, device)
        # What opened the weights is let go of, here and in the plan as it was read: no request has arrived yet.
        plan = plan.without_keys()
        plan_values.pop("model_keys", None)
        measurements = _measure()
        engine = Engine(LoadedModels(loaded), max_batch_rows=plan.max_batch_rows, max_message=plan.max_message)
        rehearse(plan, engine, loaded)
        single_use = _seal(plan, engine, loaded, report, device=device)
    except SandboxRefused as error:
        send(BootFailed(reason=error.code, detail=str(error)), b"")
        flush(sock, outgoing)
        return 1
    worker = Worker(plan, engine, send=send, flush=lambda: flush(sock, outgoing), single_use=single_use)
    facts = WorkerFacts(
        instance=worker.instance,
        completion_key=worker.completion_key,
        key_configs=worker.keys.published(),
        models=tuple(model.facts for model in loaded.values()),
        refused=refused,
        profile=plan.profile,
        layers=msgspec.convert(report.layers, dict[str, Layer]),
        probes=msgspec.convert(report.probes, dict[str, Layer]),
        device=device,
        measurements=measurements,
        single_use=single_use is not None,
        memory={called: model.memory_bytes for called, model in loaded.items()},
        graphs={called: model.graphs for called, model in loaded.items() if model.graphs},
    )
    send(Hello(facts=facts), b"")
    flush(sock, outgoing)
    gc.freeze()  # torch is a million objects that stay: collections need not look at them
    gc.set_threshold(COLLECT_EVERY)
    serve(worker, sock, outgoing, body_max=sealed_size(plan.max_message))
    return 0
