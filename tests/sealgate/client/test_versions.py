"""A client before several workers and several versions: evidence of each model's own worker, answers of exactly the
version that was asked for, and no answer of a version that the evidence does not name."""

from __future__ import annotations

import httpx
import msgspec
import pytest

from sealgate.client.errors import ReceiptRefused
from sealgate.client.session import Session
from sealgate.errors import EvidenceError
from tests.sealgate.client.conftest import PURPOSE, TOKEN, FakeService, Instance, _answer

ROWS = [[1.0, 2.0, 3.0]]


class OneWorkerEach(FakeService):
    """Two models, each with a worker of its own, and one published list."""

    def __init__(self) -> None:
        super().__init__()
        other = Instance("instance-2")
        other.rotate(7)
        self.served = {
            "toy": (self.instance, self.model),
            "oak": (other, msgspec.structs.replace(self.model, name="oak", certificate_digest="c" * 64)),
        }
        self.asked: list[str] = []

    def handle(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/.well-known/attestation":
            self.asked.append(request.url.params.get("model", ""))
            self.instance, self.model = self.served[self.asked[-1] or "toy"]
        if request.url.path == "/.well-known/ohttp-gateway":
            published = b"".join(instance.key_configs() for instance, _ in self.served.values())
            return _answer(200, published, "application/ohttp-keys")
        if request.url.path.startswith("/sealed/"):
            number = request.content[0]
            name = request.url.path.rpartition("/")[2]
            self.instance, self.model = self.served[name]
            others = {key for other, (one, _) in self.served.items() if other != name for key in one.keys}
            assert number not in others, "sealed to the worker of another model"
        return super().handle(request)


def session(service: FakeService) -> Session:
    outer = service.transport()
    return Session(service.trust(), purpose=PURPOSE, token=TOKEN, outer=outer, clock=service.clock)


def test_the_evidence_of_each_models_worker_is_kept() -> None:
    service = OneWorkerEach()
    with session(service) as client:
        for _ in range(3):
            for model in ("toy", "oak"):
                client.ready(model)
        assert service.asked == ["toy", "oak"], "asked once for each, however requests alternate"
        service.served["oak"][0].rotate(20)  # its keys are gone: new evidence of that worker, once
        client.ready("oak")
        client.ready("toy")
    assert service.asked == ["toy", "oak", "oak"]


def test_the_version_that_is_asked_for_answers_or_the_answer_is_refused() -> None:
    service = FakeService()
    second = msgspec.structs.replace(service.model, version="2", model_digest="1" * 64, certificate_digest="2" * 64)
    service.claim_changes = {"models": (service.model, second)}
    with session(service) as client:
        assert client.infer("toy", ROWS).labels  # whichever the operator chose
        assert client.infer("toy", ROWS, version="1").labels
        with pytest.raises(ReceiptRefused, match="another model, or other weights"):
            client.infer("toy", ROWS, version="2")
        service.model = second
        assert client.infer("toy", ROWS, version="2").receipt.record.certificate_digest == "2" * 64
        with pytest.raises(EvidenceError, match="no model 'toy' of version '3'"):
            client.infer("toy", ROWS, version="3")
        service.model = msgspec.structs.replace(second, certificate_digest="9" * 64)
        with pytest.raises(ReceiptRefused, match="another model, or other weights"):
            client.infer("toy", ROWS)
