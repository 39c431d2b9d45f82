"""Several versions and workers, as the gateway sees them: the policy must allow every version that could answer, and
keys and evidence can be had of a worker that serves a model."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sealgate.protocol import frames
from sealgate.protocol.hpke import Kem
from sealgate.protocol.ohttp import encode_key_configs
from tests.gateway.conftest import MODEL, key_config, post_sealed

OTHER = msgspec.structs.replace(MODEL, version="2", model_digest="2" * 64, certificate_digest="3" * 64)
OURS, THEIRS = (encode_key_configs([key_config(number, Kem.X25519)]) for number in (11, 12))
WORKERS = (
    frames.PublishedWorker(instance="a", key_configs=OURS, models=("wine",)),
    frames.PublishedWorker(instance="b", key_configs=THEIRS, models=("wine", "oak")),
)


@pytest.fixture
def several(shared: Any) -> Any:
    """The shared gateway, told of something else for one test."""
    before = shared.host.state
    yield shared
    shared.host.push(**{name: getattr(before, name) for name in ("models", "key_configs", "workers")})
    shared.until(lambda: shared.gate.link.state.key_configs == before.key_configs)


def tell(gateway: Any, **changes: Any) -> None:
    gateway.host.push(**changes)
    gateway.until(lambda: all(getattr(gateway.gate.link.state, name) == value for name, value in changes.items()))


def test_every_version_must_be_permitted_and_the_host_hears_which_were_judged(several: Any) -> None:
    tell(several, models=(MODEL, OTHER))
    assert post_sealed(several.client(token=several.token())).status_code == 200
    (frame,) = several.host.heard(frames.Submit)
    assert frame.judged == (MODEL.certificate_digest, OTHER.certificate_digest)
    assert frame.decision.policy_ids == ("clients-infer",)
    assert frame.decision.obligations.round_digits == 6
    several.host.told.clear()
    tell(several, models=(MODEL, msgspec.structs.replace(OTHER, purposes=("research",))))
    assert post_sealed(several.client(token=several.token())).status_code == 403
    assert several.host.heard(frames.Deny)
    several.host.told.clear()
    tell(several, models=(MODEL,))
    assert post_sealed(several.client(token=several.token())).status_code == 200
    assert several.host.heard(frames.Submit)[0].judged == (MODEL.certificate_digest,)


def test_keys_can_be_had_of_the_workers_that_serve_a_model(several: Any) -> None:
    tell(several, key_configs=OURS + THEIRS, workers=WORKERS)
    client = several.client()
    found = {
        model: client.get("/.well-known/ohttp-gateway", params={"model": model} if model else {})
        for model in ("", "wine", "oak", "elm")
    }
    assert [found[model].content for model in ("", "wine", "oak")] == [OURS + THEIRS, OURS + THEIRS, THEIRS]
    assert found["elm"].status_code == 503


def test_evidence_is_asked_of_a_worker_that_serves_the_model(several: Any) -> None:
    for model in ("", "oak"):
        query = {"nonce": "AAAAAAAAAAA"} | ({"model": model} if model else {})
        assert several.client().get("/.well-known/attestation", params=query).status_code == 200
    assert [frame.model for frame in several.host.heard(frames.EvidenceWanted, 2)] == ["", "oak"]
