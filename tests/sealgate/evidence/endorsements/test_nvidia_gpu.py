"""NVIDIA GPUs: a real report to its real root, every part exchanged in turn, a fake GPU that the real root refuses."""

from __future__ import annotations

import datetime
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import ConfigurationError, DecodeError, EvidenceError
from sealgate.evidence.claims import Claims, encode_claims
from sealgate.evidence.endorsements.nvidia_gpu import (
    GpuAnchor,
    GpuTable,
    describe_nvidia_gpu,
    judge_nvidia_gpu,
    parse_gpu_anchor,
)
from sealgate.evidence.endorsements.spdm import parse_spdm_report
from sealgate.evidence.token import Endorsement, bind_payload, endorse_software, sign_token
from sealgate.evidence.transcript import EvidenceRefused
from sealgate.evidence.trust import Trust
from sealgate.evidence.verify import verify_evidence
from tests.sealgate.evidence.endorsements.fake_gpu import (
    DEVICE,
    DRIVER,
    SIGNER,
    VBIOS,
    Chain,
    FakeGpu,
    FakeManifest,
    dice,
    digest_of,
    manifests,
    proof_of,
)
from tests.sealgate.evidence.endorsements.test_snp import CHIP as PROCESSOR
from tests.sealgate.evidence.endorsements.test_snp import trust_text as snp_text

SAMPLES = Path(__file__).parent / "samples"
NVIDIA = "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48"  # SHA-256 of NVIDIA's device root, DER
BIND = b"b" * 32
NOW_US = 1_800_000_000_000_000
GPU = FakeGpu()
DOCUMENTS = [one.document() for one in manifests()]

REAL = bytes.fromhex((SAMPLES / "nvidia_gh100_report.hex").read_text())
REAL_CHAIN = [
    one.public_bytes(Encoding.DER)
    for one in x509.load_pem_x509_certificates((SAMPLES / "nvidia_gh100_chain.pem").read_bytes())
]
REAL_BIND = REAL[4:36]
REAL_NOW_US = int(datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC).timestamp()) * 1_000_000
REAL_PINS = {str(index): (value.hex(),) for index, value in parse_spdm_report(REAL).blocks.items() if any(value)}


def anchor(**changes: Any) -> GpuAnchor:
    values: dict[str, Any] = {
        "roots": (DEVICE.root_digest,),
        "driver_versions": (DRIVER,),
        "vbios_versions": (VBIOS,),
        "rim_roots": (SIGNER.root_digest,),
    }
    return parse_gpu_anchor(GpuTable(**values | changes))


def real_anchor(**changes: Any) -> GpuAnchor:
    return anchor(**{"roots": (NVIDIA,), "rim_roots": None, "measurements": REAL_PINS} | changes)


def proof(gpu: FakeGpu = GPU, documents: list[bytes] | None = None, **changes: object) -> bytes:
    return proof_of([gpu.gpu(BIND, **changes)], DOCUMENTS if documents is None else documents)


def refused(made: bytes, held: GpuAnchor | None = None, says: str = ".", *, now_us: int = NOW_US) -> None:
    with pytest.raises((EvidenceError, DecodeError), match=says):
        judge_nvidia_gpu(made, BIND, anchor() if held is None else held, now_us=now_us)


# A real GPU ----------------------------------------------------------------------------------------------------------


def test_a_real_report_verifies_to_nvidias_root() -> None:
    """Chain, firmware of the key, signature, nonce, versions, and every measurement that is not zero, pinned."""
    endorsed = judge_nvidia_gpu(proof_of([[REAL, REAL_CHAIN]], []), REAL_BIND, real_anchor(), now_us=REAL_NOW_US)
    assert (endorsed.kind, endorsed.device_only, endorsed.covers_code) == ("nvidia-gpu", True, False)
    assert endorsed.detail == f"1 GPU: driver {DRIVER}, firmware {VBIOS}, {len(REAL_PINS)} of 64 measurements compared"
    told = dict(describe_nvidia_gpu(proof_of([[REAL, REAL_CHAIN]], [])))
    assert (told["GPU 0: driver"], told["GPU 0: root"]) == (DRIVER, NVIDIA)


def test_a_real_report_of_which_anything_is_changed_is_refused() -> None:
    """A byte of every field of both messages, of the signature, and each certificate in turn."""
    lengths = [1, 1, 1, 1, 32, 1, 1, 1, 1, 1, 1, 3]
    places = [sum(lengths[:count]) for count in range(len(lengths))]
    places += [48 + block * 55 + part for block in range(64) for part in (block % 5, 7)]
    record_end = 48 - 3 + 3520
    places += [record_end, record_end + 32, record_end + 34, *range(record_end + 34, len(REAL), 23), len(REAL) - 1]
    for place in places:
        changed = bytearray(REAL)
        changed[place] ^= 0x01
        with pytest.raises((EvidenceError, DecodeError)):
            judge_nvidia_gpu(proof_of([[bytes(changed), REAL_CHAIN]], []), REAL_BIND, real_anchor(), now_us=REAL_NOW_US)
    for place in range(len(REAL_CHAIN)):
        for chain in ([*REAL_CHAIN[:place], *REAL_CHAIN[place + 1 :]], _flipped(REAL_CHAIN, place)):
            with pytest.raises((EvidenceError, DecodeError)):
                judge_nvidia_gpu(proof_of([[REAL, chain]], []), REAL_BIND, real_anchor(), now_us=REAL_NOW_US)


def _flipped(chain: list[bytes], place: int) -> list[bytes]:
    changed = bytearray(chain[place])
    changed[-1] ^= 1
    return [*chain[:place], bytes(changed), *chain[place + 1 :]]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"driver_versions": ("550.90.08",)}, "driver 550.90.07 is none"),
        ({"vbios_versions": ("96.00.9f.00.02",)}, "firmware 96.00.9f.00.01 is none"),
        ({"measurements": {"2": ("00" * 48,)}}, "measurement 2"),
        ({"measurements": {"65": ("00" * 48,)}}, "measurement 65"),  # which it does not have
        ({"rim_roots": (SIGNER.root_digest,)}, "no manifest of 550.90.07"),
        ({"roots": (DEVICE.root_digest,)}, "root certificate is none"),
    ],
)
def test_a_real_report_is_refused_where_the_trust_file_wants_another_gpu(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(EvidenceError, match=says):
        judge_nvidia_gpu(proof_of([[REAL, REAL_CHAIN]], []), REAL_BIND, real_anchor(**changes), now_us=REAL_NOW_US)


def test_a_real_report_is_about_its_own_nonce_only() -> None:
    with pytest.raises(EvidenceError, match="other claims"):
        judge_nvidia_gpu(proof_of([[REAL, REAL_CHAIN]], []), BIND, real_anchor(), now_us=REAL_NOW_US)


# A fake GPU ----------------------------------------------------------------------------------------------------------


def test_a_gpu_that_measures_what_its_makers_manifests_say() -> None:
    endorsed = judge_nvidia_gpu(proof(), BIND, anchor(), now_us=NOW_US)
    assert endorsed.detail == f"1 GPU: driver {DRIVER}, firmware {VBIOS}, 3 of 8 measurements compared"
    both = anchor(measurements={"8": (digest_of(8).hex(),)})
    assert "4 of 8" in judge_nvidia_gpu(proof(), BIND, both, now_us=NOW_US).detail
    sibling = Chain(DEVICE.names, dice=DEVICE.dice, tag="sibling")
    two = proof_of([GPU.gpu(BIND), GPU.changed(chain=sibling).gpu(BIND)], [])
    told = anchor(
        roots=(DEVICE.root_digest, sibling.root_digest),
        rim_roots=None,
        measurements={"1": (digest_of(1).hex(),)},
    )
    assert judge_nvidia_gpu(two, BIND, told, now_us=NOW_US).detail.startswith("2 GPUs: ")


def test_a_fake_gpu_is_refused_under_nvidias_real_root() -> None:
    """It carries NVIDIA's names. Only the root's digest tells, and no certificate of NVIDIA's helps."""
    refused(proof(), anchor(roots=(NVIDIA,)), "root certificate is none")
    report, own = GPU.report(BIND), list(DEVICE.certificates)
    refused(proof_of([[report, [*own[:-1], REAL_CHAIN[-1]]]], DOCUMENTS), anchor(roots=(NVIDIA,)), "do not chain")
    refused(proof_of([[report, list(REAL_CHAIN)]], DOCUMENTS), anchor(roots=(NVIDIA,)), "signature does not hold")


def test_every_part_swapped_in_turn_is_refused() -> None:
    other = GPU.changed(chain=Chain(DEVICE.names, tag="other", dice=DEVICE.dice))
    elsewhere = Chain(SIGNER.names, tag="other")
    for gpu, documents, says in (
        (GPU.gpu(b"c" * 32), DOCUMENTS, "other claims"),
        ([other.report(BIND), list(DEVICE.certificates)], DOCUMENTS, "signature does not hold"),
        ([GPU.report(BIND), list(other.chain.certificates)], DOCUMENTS, "root certificate is none"),
        ([GPU.report(BIND), [other.chain.certificates[0], *DEVICE.certificates[1:]]], DOCUMENTS, "do not chain"),
        ([GPU.report(BIND), []], DOCUMENTS, "too few"),
        ([GPU.report(BIND), list(DEVICE.certificates) * 3], DOCUMENTS, "malformed"),
        (GPU.changed(firmware=bytes(48)).gpu(BIND), DOCUMENTS, "another firmware"),
        (GPU.changed(firmware=b"").gpu(BIND), DOCUMENTS, "another firmware"),
        (GPU.gpu(BIND), DOCUMENTS[:1], f"no manifest of {VBIOS}"),
        (GPU.gpu(BIND), [DOCUMENTS[0], *DOCUMENTS], "two manifests"),
        (GPU.gpu(BIND), [*DOCUMENTS, b"<x/>"], "signature"),
        (GPU.gpu(BIND), [FakeManifest(DRIVER, {2: ["11" * 48]}).document(), DOCUMENTS[1]], "measurement 3"),
        (GPU.gpu(BIND), [FakeManifest(DRIVER, {0: [digest_of(1).hex()]}).document(), DOCUMENTS[1]], "one measurement"),
        (GPU.gpu(BIND), [FakeManifest(DRIVER, {90: ["11" * 48]}).document(), DOCUMENTS[1]], "measurement 91"),
        (GPU.gpu(BIND), [FakeManifest(DRIVER, {2: ["11" * 48]}, elsewhere).document()], "root certificate is none"),
    ):
        refused(proof_of([gpu], documents), None, says)
    refused(proof_of([GPU.gpu(BIND), GPU.gpu(BIND)], DOCUMENTS), None, "twice")
    refused(proof_of([], DOCUMENTS), None, "malformed")
    refused(proof_of([GPU.gpu(BIND)] * 17, DOCUMENTS), None, "malformed")


def test_a_gpu_is_one_however_its_certificate_is_written() -> None:
    """(r, n - s) is a signature where (r, s) is one, so there are two certificates of the same key that both hold."""
    leaf, *above = DEVICE.certificates
    written = rewritten(leaf)
    assert written != leaf
    judge_nvidia_gpu(proof_of([[GPU.report(BIND), [written, *above]]], DOCUMENTS), BIND, anchor(), now_us=NOW_US)
    refused(proof_of([GPU.gpu(BIND), [GPU.report(BIND), [written, *above]]], DOCUMENTS), None, "twice")


def rewritten(der: bytes) -> bytes:
    """The same certificate under the other of the two signatures."""
    found = x509.load_der_x509_certificate(der)
    r, s = decode_dss_signature(found.signature)
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
    start = der.index(found.tbs_certificate_bytes) + len(found.tbs_certificate_bytes)
    algorithm = der[start : start + 2 + der[start + 1]]
    signature = b"\x00" + encode_dss_signature(r, order - s)
    body = found.tbs_certificate_bytes + algorithm + b"\x03" + bytes([len(signature)]) + signature
    return b"\x30\x82" + struct.pack(">H", len(body)) + body


@pytest.mark.parametrize(
    ("chain", "says"),
    [
        (Chain(DEVICE.names, dice=dice(bytes(48))), "another firmware"),
        (Chain(DEVICE.names, dice=b"\x30\x00"), "another firmware"),
        (Chain(DEVICE.names), "does not say which firmware"),
        (Chain(DEVICE.names, dice=DEVICE.dice, authority=False), "may not sign"),
        (Chain(DEVICE.names, dice=DEVICE.dice, path_length=1), "may not sign"),
        (Chain(DEVICE.names, dice=DEVICE.dice, ends=datetime.datetime(2026, 2, 1, tzinfo=datetime.UTC)), "not valid"),
    ],
)
def test_chains_that_do_not_hold(chain: Chain, says: str) -> None:
    refused(proof(GPU.changed(chain=chain)), anchor(roots=(chain.root_digest,)), says)


def test_a_path_that_is_as_long_as_allowed_holds() -> None:
    chain = Chain(DEVICE.names, dice=DEVICE.dice, path_length=2)
    judge_nvidia_gpu(proof(GPU.changed(chain=chain)), BIND, anchor(roots=(chain.root_digest,)), now_us=NOW_US)


@pytest.mark.parametrize(
    "changes",
    [
        {"request": "10e001ff"},  # another version
        {"request": "118101ff"},  # another request
        {"request": "11e000ff"},  # not signed
        {"request": "11e00101"},  # one measurement
        {"response": "12600000"},
        {"response": "117f0000"},  # an error
        {"response": "11600001"},  # another slot
        {"more": struct.pack("<HH", 3, 1) + b"x"},  # the driver twice
        {"more": struct.pack("<HH", 99, 9)},  # ends early
    ],
)
def test_messages_of_another_kind_are_refused_although_signed(changes: dict[str, object]) -> None:
    with pytest.raises(DecodeError):
        parse_spdm_report(GPU.report(BIND, **changes))
    refused(proof(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks": {}},
        {"blocks": {0: digest_of(1)}},
        {"blocks": {255: digest_of(1)}},
        {"driver": b""},
        {"driver": b"550.90.07; rm -rf /\x00"},
        {"vbios": b"\x00" * 7},
    ],
)
def test_reports_that_say_too_little_or_nonsense_are_refused(changes: dict[str, object]) -> None:
    refused(proof(GPU.changed(**changes)))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_altered_byte_of_a_report_is_noticed(data: st.DataObject) -> None:
    report = bytearray(GPU.report(BIND))
    report[data.draw(st.integers(0, len(report) - 1))] ^= data.draw(st.integers(1, 255))
    refused(proof_of([[bytes(report), list(DEVICE.certificates)]], DOCUMENTS))


@settings(max_examples=150, deadline=None)
@given(data=st.one_of(st.binary(max_size=200), st.binary(max_size=300).map(lambda rest: REAL[:40] + rest)))
def test_garbage_is_a_typed_error(data: bytes) -> None:
    refused(data)
    with pytest.raises(DecodeError):
        parse_spdm_report(data)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers(1, 254), st.binary(max_size=64), min_size=1, max_size=20))
def test_what_was_put_into_a_report_is_read_from_it(blocks: dict[int, bytes]) -> None:
    assert parse_spdm_report(GPU.changed(blocks=blocks).report(BIND)).blocks == blocks


# In a token ----------------------------------------------------------------------------------------------------------


def trust_text(**changes: str) -> str:
    values = {
        "roots": f'["{DEVICE.root_digest}"]',
        "driver_versions": f'["{DRIVER}"]',
        "vbios_versions": f'["{VBIOS}"]',
        "rim_roots": f'["{SIGNER.root_digest}"]',
    } | changes
    return "[nvidia-gpu]\n" + "".join(f"{name} = {value}\n" for name, value in values.items() if value)


@pytest.mark.parametrize(
    "changes",
    [
        {"roots": "[]"},
        {"roots": '["00"]'},
        {"driver_versions": "[]"},
        {"vbios_versions": '["?"]'},
        {"rim_roots": "[]"},
        {"rim_roots": ""},
        {"measurements": "{}"},
        {"measurements": '{0 = ["00"]}'},
        {"measurements": "{1 = []}"},
        {"measurements": '{255 = ["' + "00" * 48 + '"]}'},
        {"x": "1"},
    ],
)
def test_a_trust_file_that_pins_too_little_is_an_error(
    make_trust: Callable[..., Trust], changes: dict[str, str]
) -> None:
    make_trust(trust_text())
    with pytest.raises(ConfigurationError, match=r"^trust\.toml: "):
        make_trust(trust_text(**changes))


class Token:
    """Evidence of one runtime with the endorsements whose letters are given: s(oftware), p(rocessor), g(pu)."""

    def __init__(self, claims: Claims, operator: Ed25519PrivateKey) -> None:
        self.claims, self.operator = claims, operator

    def judge(self, kinds: str, trust: Trust, *, gpu_bind: bytes = b"") -> Any:
        bind = bind_payload(encode_claims(self.claims))
        made = {
            "s": lambda: endorse_software(bind, self.operator),
            "p": lambda: Endorsement("snp", b"", PROCESSOR.proof(bind)),
            "g": lambda: Endorsement("nvidia-gpu", b"", proof_of([GPU.gpu(gpu_bind or bind)], DOCUMENTS)),
        }
        evidence = sign_token(self.claims, self.operator, tuple(made[kind]() for kind in kinds))
        asked: dict[str, Any] = {"nonce": b"n" * 32, "published": self.claims.key_configs}
        return verify_evidence(evidence, trust, now_us=NOW_US, **asked)

    def code(self, kinds: str, trust: Trust, **changes: Any) -> tuple[str, str]:
        with pytest.raises(EvidenceRefused) as failure:
            self.judge(kinds, trust, **changes)
        return failure.value.code, str(failure.value)


@pytest.fixture
def token(make_claims: Callable[..., Claims], operator: Ed25519PrivateKey) -> Token:
    return Token(make_claims(assurance="hardware", device="cuda:0"), operator)


def test_a_gpu_counts_only_beside_the_machine_that_asked_it(token: Token, make_trust: Callable[..., Trust]) -> None:
    trust = make_trust(snp_text() + trust_text())
    found = token.judge("spg", trust)
    assert (found.grade, found.grades["device"]) == ("hardware", "self-asserted")
    assert any(check.detail.startswith("nvidia-gpu: 1 GPU") for check in found.transcript)
    assert token.judge("spg", make_trust(snp_text(covers_code="true") + trust_text())).grades["device"] == "hardware"
    for kinds in ("g", "sg"):
        code, why = token.code(kinds, trust)
        assert code == "endorsement"
        assert "only beside" in why
    code, why = token.code("spg", make_trust(trust_text()))  # the machine's report counts for nobody here
    assert (code, "only beside" in why) == ("endorsement", True)


def test_a_gpu_alone_raises_no_grade(
    make_claims: Callable[..., Claims], operator: Ed25519PrivateKey, make_trust: Callable[..., Trust]
) -> None:
    """Where the trust file says nothing of GPUs, its report is shown as skipped, and gives nothing."""
    software = Token(make_claims(device="cuda:0"), operator)
    found = software.judge("sg", make_trust())
    assert found.grade == "software"
    assert any(check.outcome == "skipped" and "nvidia-gpu" in check.detail for check in found.transcript)


def test_a_report_taken_away_is_noticed_where_gpus_are_demanded(token: Token, make_trust: Callable[..., Trust]) -> None:
    trust = make_trust(snp_text() + trust_text())
    assert "nothing vouches for the worker's device cuda:0" in token.code("sp", trust)[1]
    assert token.code("spg", trust, gpu_bind=b"c" * 32)[0] == "endorsement"
    assert token.code("spgg", trust)[0] == "endorsement"


def test_a_worker_on_the_processor_needs_no_gpu(
    make_claims: Callable[..., Claims], operator: Ed25519PrivateKey, make_trust: Callable[..., Trust]
) -> None:
    plain = Token(make_claims(assurance="hardware", device="cpu"), operator)
    assert plain.judge("sp", make_trust(snp_text() + trust_text())).grade == "hardware"
