"""Claims of a plausible runtime, and a trust file that fits them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.evidence.claims import Claims
from sealgate.evidence.trust import Trust, parse_trust
from sealgate.protocol.frames import Layer, ModelFacts
from sealgate.protocol.hpke import Kem, KemPrivateKey
from sealgate.protocol.ohttp import KeyConfig, encode_key_configs
from sealgate.transparency.notes import Checkpoint, NoteSigner, sign_checkpoint

NOW_US = 1_800_000_000_000_000
OPERATOR = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
LOG = NoteSigner.from_seed("example.test/log", b"\x02" * 32)
KEYS = encode_key_configs(
    [
        KeyConfig(2, Kem.MLKEM768_X25519, KemPrivateKey(Kem.MLKEM768_X25519, b"\x03" * 32).public_bytes()),
        KeyConfig(1, Kem.X25519, KemPrivateKey(Kem.X25519, b"\x04" * 32).public_bytes()),
    ]
)
MODEL = ModelFacts(
    name="toy",
    version="1",
    model_digest="a" * 64,
    certificate_digest="b" * 64,
    epsilon_micro=2_500_000,
    delta="0.00001",
    privacy_unit="example",
    sensitivity="personal",
    purposes=("diagnosis",),
)


@pytest.fixture
def now_us() -> int:
    return NOW_US


@pytest.fixture
def operator() -> Ed25519PrivateKey:
    return OPERATOR


@pytest.fixture
def model() -> ModelFacts:
    return MODEL


@pytest.fixture
def make_claims() -> Callable[..., Claims]:
    def make(**changes: Any) -> Claims:
        values: dict[str, Any] = {
            "nonce": b"n" * 32,
            "issued_at_us": NOW_US,
            "expires_at_us": NOW_US + 3600 * 1_000_000,
            "audience": "sealgate.test:8443",
            "key_configs": KEYS,
            "completion_key": Ed25519PrivateKey.from_private_bytes(b"\x05" * 32).public_key().public_bytes_raw(),
            "instance": "instance-1",
            "models": (MODEL,),
            "layers": {"landlock": Layer(state="on"), "seccomp": Layer(state="on", detail="two stages")},
            "probes": {"open-file": Layer(state="on")},
            "host_layers": {"no-new-privileges": Layer(state="on")},
            "profile": "strict",
            "assurance": "software",
            "degraded": False,
            "device": "cpu",
            "measurements": {"code": "c" * 64},
            "policy_digest": "d" * 64,
            "log_origin": LOG.name,
            "log_checkpoint": sign_checkpoint(Checkpoint(LOG.name, 7, b"\x09" * 32), LOG),
        }
        return Claims(**values | changes)

    return make


@pytest.fixture
def trust_text() -> Callable[..., str]:
    def text(extra: str = "", **changes: str) -> str:
        values = {
            "audience": '"sealgate.test:8443"',
            "url": '"https://sealgate.test:8443"',
            "accept_software": "true",
            "operator_keys": f'["{base64.b64encode(OPERATOR.public_key().public_bytes_raw()).decode()}"]',
            "log_keys": f'["{LOG.vkey}"]',
        } | changes
        return "".join(f"{name} = {value}\n" for name, value in values.items() if value) + extra

    return text


@pytest.fixture
def make_trust(trust_text: Callable[..., str]) -> Callable[..., Trust]:
    return lambda *args, **changes: parse_trust(trust_text(*args, **changes).encode(), source="trust.toml")
