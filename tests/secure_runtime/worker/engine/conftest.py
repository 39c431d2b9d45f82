"""Models of every family with random weights, and questions to an engine about them, past the seal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch

from sealgate.certificate.architectures import Architecture
from sealgate.certificate.inputs import Column, Content, InputTensor
from sealgate.certificate.manifest import Manifest, OutputTensor, ValueRange, check_manifest
from sealgate.protocol import bhttp, inference
from sealgate.protocol.frames import Grant, ModelFacts, Obligations
from sealgate.protocol.inference import InferRequest, RequestedOutput, Tensor
from sealgate.protocol.secrets import Plaintext
from secure_runtime.models.architectures import build
from secure_runtime.models.bundle import LoadedModel
from secure_runtime.models.predictor import Predictor
from secure_runtime.worker.engine.answers import EngineAnswer
from secure_runtime.worker.engine.serving import Engine
from secure_runtime.worker.gatekeeper import Admitted, parse_target

NO_DUTIES = Obligations()
NOW_US = 1_800_000_000_000_000


class Made:
    """How the tests of the engine make their models and ask about them."""

    @staticmethod
    def column(name: str, *, low: str = "-100", high: str = "100", center: str = "0", scale: str = "1") -> Column:
        return Column(name=name, low=low, high=high, center=center, scale=scale)

    @staticmethod
    def tensor(name: str, datatype: str, shape: tuple[int, ...], content: Content) -> InputTensor:
        return InputTensor(name=name, datatype=datatype, shape=shape, content=content)

    @staticmethod
    def model(
        architecture: Architecture,
        inputs: Sequence[InputTensor],
        *,
        seed: int = 1,
        datatypes: dict[str, str] | None = None,
        **changes: Any,
    ) -> LoadedModel:
        """With normal weights; `datatypes` of outputs by role."""
        classes, kinds = architecture.classes, {"scores": "FP32", "label": "INT64", "value": "FP32"} | (datatypes or {})
        labels = tuple(f"class {index}" for index in range(classes))
        shapes: dict[str, tuple[int, ...]] = {"scores": (-1, classes), "label": (-1,)} if classes else {"value": (-1,)}
        outputs = tuple(
            OutputTensor(name=role, datatype=kinds[role], shape=shape, role=role, labels=labels)
            for role, shape in shapes.items()
        )
        values: dict[str, Any] = {
            "schema": 1, "name": "m", "version": "1", "description": "", "architecture": architecture,
            "inputs": tuple(inputs), "outputs": outputs,
            "value_range": None if classes else ValueRange(low="-50", high="150"),
            "sensitivity": "personal", "purposes": ("p",), "units_per_row": 1, **changes,
        }  # fmt: skip
        manifest = Manifest(**values)
        check_manifest(manifest)
        module, generator = build(architecture), np.random.default_rng(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.from_numpy(generator.normal(size=tuple(parameter.shape)) / 2))
        facts = ModelFacts(
            name="m", version=manifest.version, model_digest="d" * 64, certificate_digest="c" * 64, epsilon_micro=1,
            delta="0.00001", privacy_unit="example", sensitivity="personal", purposes=("p",),
        )  # fmt: skip
        return LoadedModel(facts, manifest, Predictor(manifest, module))

    @staticmethod
    def asked(
        method: str,
        path: str,
        fields: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        obligations: Obligations = NO_DUTIES,
        actor: str = "a",
    ) -> Admitted:
        target = parse_target(method, path)
        grant = Grant(
            id="g", model="m", operation=target.operation, purpose="p", actor=actor, credential_binding="",
            obligations=obligations, expires_us=NOW_US + 60_000_000,
        )  # fmt: skip
        request = bhttp.Request(
            method=method, scheme="https", authority="a", path=path, fields=tuple(fields), body=body
        )
        return Admitted(grant, target, request, cast(Any, None), cast(Plaintext, None))

    @staticmethod
    def engine(model: LoadedModel) -> Engine:
        return Engine({"m": model}, max_batch_rows=64, clock=lambda: NOW_US)

    def ask(
        self,
        model: LoadedModel,
        tensors: Sequence[Tensor],
        *,
        operation: str = "infer",
        binary: bool = True,
        outputs: Sequence[str] = (),
        obligations: Obligations = NO_DUTIES,
        **parameters: Any,
    ) -> EngineAnswer:
        request = InferRequest(
            inputs=tuple(tensors),
            outputs=tuple(RequestedOutput(name) for name in outputs),
            parameters=parameters,
        )
        fields, body = inference.encode_infer_request(request, binary=binary)
        asked = self.asked("POST", f"/v2/models/m/{operation}", fields, body, obligations=obligations)
        torch.set_grad_enabled(False)  # as the worker does
        try:
            [answer] = self.engine(model).run([asked])
        finally:
            torch.set_grad_enabled(True)
        return answer

    @staticmethod
    def outputs(answer: EngineAnswer) -> dict[str, Any]:
        """By name, nested lists; fails for an error."""
        body = bytes(answer.response.body)
        assert answer.outcome == "completed", body
        decoded = inference.decode_infer_response(answer.response.fields, body)
        return {tensor.name: inference.tensor_to_list(tensor, nested=True) for tensor in decoded.outputs}

    @staticmethod
    def error(answer: EngineAnswer) -> str:
        assert answer.outcome == "failed", bytes(answer.response.body)
        return bytes(answer.response.body).decode()


@pytest.fixture(scope="session")
def made() -> Made:
    return Made()
