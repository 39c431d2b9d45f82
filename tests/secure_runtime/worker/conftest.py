"""One sealed exchange's parts, made by hand: a key ring with a clock that tests move, requests, grants."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest

from sealgate.protocol import bhttp
from sealgate.protocol.frames import Grant, Obligations
from sealgate.protocol.ohttp import ResponseOpener, decode_key_configs, seal_request
from secure_runtime.worker.keys import KeyRing

AUDIENCE = "gateway.test:8443"
START_US = 1_800_000_000_000_000


@dataclass
class Bench:
    """A worker's key ring at a time of our choosing, and a client that seals to it."""

    now_us: int = START_US
    keys: KeyRing = field(init=False)

    def __post_init__(self) -> None:
        self.keys = self.ring()

    def clock(self) -> int:
        return self.now_us

    def ring(self, **changes: Any) -> KeyRing:
        values: dict[str, Any] = {"active_s": 3600, "stale_s": 600, "replay_max": 1000, **changes}
        return KeyRing(("MLKEM768-X25519", "X25519"), clock=self.clock, **values)

    def date(self, offset_s: int = 0) -> str:
        return format_datetime(datetime.fromtimestamp(self.now_us // 1_000_000 + offset_s, UTC), usegmt=True)

    def inner(self, **changes: Any) -> bytes:
        """An inner request; `drop` names fields to leave out, `extra` adds some, the rest replaces."""
        fields = {"date": self.date(), "purpose": "treatment", "credential-binding": "binding"}
        fields.update(changes.pop("fields", {}))
        for name in changes.pop("drop", ()):
            del fields[name]
        extra = tuple(changes.pop("extra", ()))
        values: dict[str, Any] = {
            "method": "POST",
            "scheme": "https",
            "authority": AUDIENCE,
            "path": "/v2/models/tumour/infer",
            "body": b"{}",
            **changes,
        }
        return bhttp.encode_request(bhttp.Request(fields=tuple(fields.items()) + extra, **values))

    def seal(self, inner: bytes, *, which: int = 0, chunked: bool = False) -> tuple[bytes, str, ResponseOpener]:
        config = decode_key_configs(self.keys.published())[which]
        return seal_request(config, inner, chunked=chunked)

    def grant(self, **changes: Any) -> Grant:
        values: dict[str, Any] = {
            "id": "grant-1",
            "model": "tumour",
            "operation": "infer",
            "purpose": "treatment",
            "actor": "a",
            "credential_binding": "binding",
            "obligations": Obligations(),
            "expires_us": self.now_us + 10_000_000,
            **changes,
        }
        return Grant(**values)


@pytest.fixture
def bench() -> Bench:
    return Bench()
