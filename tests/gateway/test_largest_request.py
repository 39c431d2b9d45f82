"""How large a request may be is a setting: kept as the body arrives, and told to whoever asks for the keys."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from gateway.errors import Problem
from gateway.intake import Intake
from sealgate.deployment import Deployment
from sealgate.protocol.sizes import sealed_size
from tests.gateway.conftest import Running
from tests.gateway.test_bounds import Peer, code_of, sealed_head

LARGEST = sealed_size(2 << 20)


@pytest.fixture
def small(deployment, host) -> Iterator[Running]:  # type: ignore[no-untyped-def]
    section = msgspec.structs.replace(deployment.settings.deployment, max_request_mb=2)
    settings = msgspec.structs.replace(deployment.settings, deployment=section)
    running = Running(Deployment(deployment.root, settings), host)
    yield running
    running.close()


def post(gateway: Running, size: int, **fields: str) -> tuple[int, dict[str, str], bytes]:
    """A body of so many bytes that looks sealed; in chunks of HTTP without a declared length."""
    body = bytes([1, 0, 0x20, 0, 1, 0, 1]) + bytes(size - 7)
    with Peer(gateway) as peer:
        if fields:
            peer.send(sealed_head(gateway, **fields) + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
        else:
            peer.send(sealed_head(gateway, Content_Length=str(len(body))) + body)
        return peer.head()


def test_a_few_mebibytes_fit_and_one_byte_more_does_not(small: Running) -> None:
    assert post(small, LARGEST)[0] == 200
    assert len(small.host.bodies()[-1]) == LARGEST
    for fields in ({}, {"Transfer_Encoding": "chunked"}):
        status, said, body = post(small, LARGEST + 1, **fields)
        assert (status, code_of(body), said["upload-limit"]) == (413, "too-large", f"max-size={LARGEST}")
    small.until(lambda: small.gate.sealed.bytes == 0)
    assert len(small.host.bodies()) == 1


def test_the_limit_is_told_beside_the_keys(small: Running, shared: Running) -> None:
    for gateway, largest in ((small, LARGEST), (shared, sealed_size(16 << 20))):
        keys = gateway.client().get("/.well-known/ohttp-gateway")
        assert (keys.status_code, keys.headers["upload-limit"]) == (200, f"max-size={largest}")


def test_answers_under_way_count_against_what_may_come_in() -> None:
    intake = Intake(requests_max=4, bytes_max=10)
    with intake.answering(30):  # paid for: never refused
        assert intake.bytes == 30
        with intake.slot() as slot, pytest.raises(Problem) as refused:
            intake.hold(slot, 1)
    assert refused.value.code == "busy"
    assert intake.bytes == 0
    with intake.slot() as slot:
        intake.hold(slot, 10)
