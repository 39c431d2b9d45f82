"""Claims and their envelope: exact round trips, agreement with the standards, and nothing that can be exchanged."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import cbor2
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealgate.errors import ConfigurationError, DecodeError
from sealgate.evidence.claims import Claims, decode_claims, encode_claims, state_digest
from sealgate.evidence.token import bind_payload, key_id, parse_token
from sealgate.protocol import cbor
from sealgate.protocol.frames import Layer
from secure_runtime.attestation.software import Attester, SoftwareAttester

MakeClaims = Callable[..., Claims]


def test_claims_round_trip_and_carry_the_registered_labels(make_claims: MakeClaims) -> None:
    claims = make_claims()
    payload = encode_claims(claims)
    assert decode_claims(payload) == claims
    found = cbor2.loads(payload)
    assert found[3] == "sealgate.test:8443"  # aud
    assert (found[6], found[4]) == (1_800_000_000, 1_800_003_600)  # iat, exp
    assert found[10] == b"n" * 32  # nonce
    assert found[265] == "urn:sealgate:evidence:v1"  # eat_profile
    assert found[263] == 0  # dbgstat: enabled; root on the host can debug
    assert found[8][1] == {1: 1, -1: 6, -2: claims.completion_key}  # cnf: COSE_Key, OKP, Ed25519
    assert all(label < -65536 for label in found if label not in (3, 4, 6, 8, 10, 263, 265))


def test_the_envelope_is_a_cose_sign1_that_an_independent_reader_verifies(
    make_claims: MakeClaims, operator: Ed25519PrivateKey
) -> None:
    evidence = SoftwareAttester(operator).attest(make_claims())
    outer = cbor2.loads(evidence)
    assert outer.tag == 61
    assert outer.value.tag == 18
    protected, unprotected, payload, signature = outer.value.value
    structure = cbor2.dumps(["Signature1", protected, b"", payload])
    operator.public_key().verify(signature, structure)
    public = operator.public_key().public_bytes_raw()
    assert cbor2.loads(protected) == {1: -8, 4: hashlib.sha256(public).digest()[:8], 16: "application/eat+cwt"}
    ((kind, kid, proof),) = unprotected[-65537]
    bind = hashlib.sha256(b"sealgate evidence v1\x00" + payload).digest()
    assert (kind, kid) == ("software", key_id(public))
    operator.public_key().verify(proof, b"sealgate software endorsement v1\x00" + bind)
    assert bind_payload(payload) == bind


def test_the_state_digest_ignores_what_changes_and_nothing_else(make_claims: MakeClaims) -> None:
    digest = state_digest(make_claims())
    changing = {
        "nonce": b"",
        "issued_at_us": 5_000_000,
        "expires_at_us": 9_000_000,
        "key_configs": b"k",
        "policy_digest": "e" * 64,
        "log_checkpoint": b"c",
    }
    assert state_digest(make_claims(**changing)) == digest
    lasting = {
        "audience": "other",
        "completion_key": b"k" * 32,
        "instance": "other",
        "models": (),
        "layers": {},
        "probes": {},
        "host_layers": {},
        "profile": "dev",
        "assurance": "hardware",
        "degraded": True,
        "device": "cuda:0",
        "measurements": {},
        "log_origin": "other",
    }
    assert set(changing) | set(lasting) == set(Claims.__struct_fields__)
    for name, value in lasting.items():
        assert state_digest(make_claims(**{name: value})) != digest, name


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layers=st.dictionaries(st.text(max_size=8), st.builds(Layer, state=st.text(max_size=8)), max_size=4),
    nonce=st.binary(min_size=8, max_size=64),
    instance=st.text(max_size=20),
    degraded=st.booleans(),
)
def test_any_claims_round_trip(
    make_claims: MakeClaims, layers: dict[str, Layer], nonce: bytes, instance: str, degraded: bool
) -> None:
    claims = make_claims(layers=layers, nonce=nonce, instance=instance, degraded=degraded)
    assert decode_claims(encode_claims(claims)) == claims


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 100_000), change=st.integers(1, 255))
def test_changed_evidence_parses_to_typed_errors_only(
    make_claims: MakeClaims, operator: Ed25519PrivateKey, place: int, change: int
) -> None:
    evidence = bytearray(SoftwareAttester(operator).attest(make_claims()))
    evidence[place % len(evidence)] ^= change
    with contextlib.suppress(DecodeError):
        decode_claims(parse_token(bytes(evidence)).payload)


@settings(max_examples=200)
@given(data=st.binary(max_size=200))
def test_garbage_is_a_typed_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        parse_token(data)
    with pytest.raises(DecodeError):
        decode_claims(data)


def _relabelled(payload: bytes, **changes: object) -> bytes:
    found = dict(cbor.decode(payload))  # type: ignore[arg-type]
    for label, value in changes.items():
        key = int(label.removeprefix("c").replace("m", "-"))
        if value is None:
            found.pop(key)
        else:
            found[key] = value  # type: ignore[assignment]
    return cbor.encode(found)


@pytest.mark.parametrize(
    "changes",
    [
        {"c265": "urn:other"},
        {"c265": None},
        {"c3": None},
        {"c3": 5},
        {"c6": "now"},
        {"c6": True},
        {"c4": -1},
        {"c4": 2**63},
        {"c263": 1},  # debugging disabled, says a software runtime
        {"c10": "text"},
        {"c8": {}},
        {"c8": {1: {1: 1, -1: 6, -2: b"short"}, -65537: b""}},
        {"c8": {1: {1: 2, -1: 6, -2: b"k" * 32}, -65537: b""}},
        {"c8": {1: {1: 1, -1: 6, -2: b"k" * 32, 3: -8}, -65537: b""}},
        {"c99": 1},  # a claim that the profile does not know
        {"cm65538": None},
        {"cm65543": [{"name": "toy"}]},
        {"cm65544": {"landlock": {"state": "on", "detail": "", "more": 1}}},
        {"cm65544": {"landlock": {"state": "on"}}},  # a second way to write an empty detail
        {"cm65541": 1},
    ],
)
def test_claims_outside_the_profile_are_refused(make_claims: MakeClaims, changes: dict[str, object]) -> None:
    with pytest.raises(DecodeError):
        decode_claims(_relabelled(encode_claims(make_claims()), **changes))


def _envelope(evidence: bytes) -> list[cbor.Value]:
    outer = cbor.decode(evidence)
    assert isinstance(outer, cbor.Tag)
    assert isinstance(outer.value, cbor.Tag)
    assert isinstance(outer.value.value, list)
    return outer.value.value


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, cbor.encode({1: -7, 4: b"k", 16: "application/eat+cwt"})),  # another algorithm
        (0, cbor.encode({1: -8, 4: b"k", 16: "application/cwt"})),
        (0, cbor.encode({1: -8, 4: "k", 16: "application/eat+cwt"})),
        (0, cbor.encode({1: -8, 16: "application/eat+cwt"})),
        (0, b""),
        (0, b"\xff"),
        (1, {}),
        (1, {-65537: [["software", b"k"]]}),
        (1, {-65537: [["software", b"k", "text"]]}),
        (1, {-65537: [["software", b"k", b"p"]] * 9}),
        (1, {-65537: [], 4: b"k"}),
        (2, None),
        (3, "signature"),
    ],
)
def test_envelopes_outside_the_profile_are_refused(
    make_claims: MakeClaims, operator: Ed25519PrivateKey, at: int, value: cbor.Value
) -> None:
    parts = _envelope(SoftwareAttester(operator).attest(make_claims()))
    parts[at] = value
    with pytest.raises(DecodeError):
        parse_token(cbor.encode(cbor.Tag(61, cbor.Tag(18, parts))))


def test_an_envelope_without_its_tags_is_refused(make_claims: MakeClaims, operator: Ed25519PrivateKey) -> None:
    parts = _envelope(SoftwareAttester(operator).attest(make_claims()))
    for shape in (parts, cbor.Tag(18, parts), cbor.Tag(61, parts), cbor.Tag(61, cbor.Tag(17, parts)), parts[:3]):
        with pytest.raises(DecodeError):
            parse_token(cbor.encode(shape))


def test_a_software_attester_refuses_to_state_more_than_it_is(
    make_claims: MakeClaims, operator: Ed25519PrivateKey
) -> None:
    attester: Attester = SoftwareAttester(operator)
    with pytest.raises(ConfigurationError):
        attester.attest(make_claims(assurance="hardware"))
    assert attester.assurance == "software"


def test_an_attester_reads_its_operators_key(make_claims: MakeClaims, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    path = tmp_path / "operator.key"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert SoftwareAttester.load(path).public_key == key.public_key().public_bytes_raw()
    for content in (
        b"",
        b"not a key",
        generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"operator\.key"):
            SoftwareAttester.load(path)
    with pytest.raises(ConfigurationError):
        SoftwareAttester.load(tmp_path / "missing.key")


def test_claims_cannot_be_changed(make_claims: MakeClaims) -> None:
    with pytest.raises(AttributeError):
        make_claims().audience = "other"  # type: ignore[misc]
    assert isinstance(make_claims(), msgspec.Struct)
