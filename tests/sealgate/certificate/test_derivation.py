"""A certificate that was carried over: what compressed weights are, and each way to claim one that is another's."""

from __future__ import annotations

import struct
from fractions import Fraction
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load, save

from sealgate.certificate.audits import demand_audit
from sealgate.certificate.bundle import sha256_hex, verify_bundle
from sealgate.certificate.compressing import bf16_bits, compress_weights, int8_rows
from sealgate.certificate.compression import Compression
from sealgate.certificate.derivation import require_compressed
from sealgate.certificate.dsse import sign_envelope
from sealgate.certificate.encryption import encrypt_bundle
from sealgate.certificate.files import CERTIFICATE, MANIFEST, ORIGINAL_CERTIFICATE, ORIGINAL_MANIFEST
from sealgate.certificate.publishers import publishers_of
from sealgate.certificate.recompute import recompute
from sealgate.certificate.schema import Certificate, Derivation, Release
from sealgate.certificate.statement import certificate_statement
from sealgate.certificate.wrapping_keys import KeyRing, open_key, write_new_key
from sealgate.errors import CertificateError
from sealgate.protocol.canonical import canonical_json
from tests.sealgate.certificate.conftest import Forge, some_weights
from tests.sealgate.certificate.test_claims import audit

_once = cache(recompute)


@pytest.fixture(autouse=True)
def remembered_figures(monkeypatch):
    """The same constants are recomputed once for all tests here: what is tested is what becomes of the figure."""
    monkeypatch.setattr("sealgate.certificate.recompute.recompute", _once)


finite = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 5)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**127), max_value=2.0**127),
)


@given(finite)
@settings(max_examples=60, deadline=None)
def test_whole_numbers_are_the_nearest_multiples_of_their_rows_scale(weights):
    whole, scale = int8_rows(weights)
    assert whole.min() >= -127
    for row, numbers, step in zip(weights, whole, scale, strict=True):
        assert step > 0
        for weight, number in zip(row, numbers, strict=True):
            ratio = Fraction(float(weight)) / Fraction(float(step))
            if step > 1e-30:  # below, a subnormal scale has few digits of its own
                assert abs(ratio - int(number)) <= Fraction(1, 2) + Fraction(1, 10**4)


@given(finite)
@settings(max_examples=60, deadline=None)
def test_bfloat16_is_what_torch_rounds_to(weights):
    import torch

    wanted = torch.from_numpy(weights).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert (bf16_bits(weights) == wanted).all()


def test_what_would_be_infinite_in_bfloat16_is_refused():
    with pytest.raises(CertificateError):
        bf16_bits(np.array([[3.4e38]], dtype=np.float32))


@pytest.mark.parametrize("kind", ["int8", "bf16"])
def test_the_same_weights_give_the_same_file_that_safetensors_reads(kind):
    data = compress_weights(some_weights(), kind)
    assert data == compress_weights(some_weights(), kind)
    (size,) = struct.unpack_from("<Q", data)
    assert size % 8 == 0
    if kind == "int8":
        found = load(data)
        assert found["layers.0.weight"].tolist() == [[32, -64, 127]]
        assert found["layers.0.weight.scale"].tolist() == [np.float32(2) / np.float32(127)]
        assert found["layers.0.bias"].tolist() == [0.25]


class Compressed:
    """Forges a bundle that says it was made from another one, and signs whatever it is given."""

    def __init__(self, forge: Forge, kind: str = "int8") -> None:
        self.forge = forge
        files = forge.files()
        self.original_weights = forge.weights
        self.original_certificate, self.original_manifest = files[CERTIFICATE], files[MANIFEST]
        self.weights = compress_weights(forge.weights, kind)
        self.manifest = msgspec.structs.replace(
            forge.manifest, version="1.0.0+" + kind, compression=Compression(kind=kind)
        )
        self.derivation = Derivation(
            how=kind,
            weights_digest=sha256_hex(forge.weights),
            manifest_digest=sha256_hex(self.original_manifest),
            certificate_digest=sha256_hex(self.original_certificate),
            bytes_before=len(forge.weights),
            bytes_after=len(self.weights),
        )
        self.certificate = msgspec.structs.replace(forge.certificate, version=self.manifest.version)
        self.left_out: tuple[str, ...] = ()

    def files(self) -> dict[str, bytes]:
        certificate = self.certificate
        if self.derivation is not None:
            certificate = msgspec.structs.replace(certificate, derivation=self.derivation)
        signing = Forge(key=self.forge.key, manifest=self.manifest, certificate=certificate, weights=self.weights)
        files = signing.files()
        files[ORIGINAL_CERTIFICATE], files[ORIGINAL_MANIFEST] = self.original_certificate, self.original_manifest
        for name in self.left_out:
            del files[name]
        return signing.sign(files)

    def write(self, directory: Path) -> Path:
        return self.forge.write(directory, self.files())

    def other_original(self, certificate: Certificate, key: Ed25519PrivateKey | None = None) -> None:
        """Another signed certificate of the same weights and manifest in the place of the original's."""
        digests = {
            "model.safetensors": sha256_hex(self.original_weights),
            MANIFEST: sha256_hex(self.original_manifest),
        }
        filled = msgspec.structs.replace(
            certificate, weights_digest=digests["model.safetensors"], manifest_digest=digests[MANIFEST]
        )
        self.original_certificate = sign_envelope(certificate_statement(filled, digests), key or self.forge.key)
        self.derivation = msgspec.structs.replace(
            self.derivation, certificate_digest=sha256_hex(self.original_certificate)
        )


@pytest.fixture
def made(forge):
    return Compressed(forge)


def refused(made: Compressed, directory: Path, publishers=None) -> str:
    with pytest.raises(CertificateError) as caught:
        verify_bundle(made.write(directory), publishers or made.forge.publishers)
    return caught.value.code


@pytest.mark.parametrize("kind", ["int8", "bf16"])
def test_an_honest_compressed_bundle_carries_the_certificate(forge, tmp_path, kind):
    made = Compressed(forge, kind)
    verified = verify_bundle(made.write(tmp_path / "toy"), forge.publishers)
    assert verified.facts.epsilon_micro == forge.certificate.epsilon_micro
    assert verified.facts.model_digest == sha256_hex(made.weights) != sha256_hex(forge.weights)
    assert verified.manifest.compressed == Compression(kind=kind)
    digest = sha256_hex(made.original_certificate)
    words = require_compressed(
        verified.certificate,
        verified.weights,
        original_certificate_digest=digest,
        original_weights=forge.weights,
    )
    assert kind in words


def test_the_audit_of_the_original_is_the_compressed_models(forge, tmp_path):
    """A deployment that demands an audit loads what was made from an audited model, and nothing else that was."""
    stated = audit(code_digest=forge.certificate.environment.code_digest)
    made = Compressed(forge.claim(audit=stated))
    found = verify_bundle(made.write(tmp_path / "toy"), forge.publishers)
    assert (found.facts.audited, demand_audit(found.certificate.audit)) == (True, stated)
    claimed = Compressed(forge.claim(audit=None))
    claimed.certificate = msgspec.structs.replace(claimed.certificate, audit=stated)
    assert refused(claimed, tmp_path / "other") == "derivation"


def test_encrypting_it_keeps_the_files_of_its_original(made, tmp_path):
    directory = made.write(tmp_path / "toy")
    write_new_key(tmp_path / "key")
    key = open_key(f"file:{tmp_path / 'key'}")
    encrypt_bundle(directory, made.forge.publishers, key)
    again = verify_bundle(directory, made.forge.publishers, data_key=KeyRing((key,)).unwrap)
    assert (again.weights, again.locked_under) == (made.weights, key.name)


def test_weights_of_another_model_are_found_by_who_has_the_original(made, tmp_path):
    other = bytes(
        save(
            {
                "layers.0.weight": np.array([[0.1, 1.0, -2.0]], dtype=np.float32),
                "layers.0.bias": np.array([0.5], dtype=np.float32),
            }
        )
    )
    made.weights = compress_weights(other, "int8")  # the publisher lies: signatures hold
    verified = verify_bundle(made.write(tmp_path / "toy"), made.forge.publishers)
    with pytest.raises(CertificateError) as caught:
        require_compressed(
            verified.certificate,
            verified.weights,
            original_certificate_digest=sha256_hex(made.original_certificate),
            original_weights=made.original_weights,
        )
    assert caught.value.code == "derivation"


def test_an_original_that_it_does_not_name_is_none(made, tmp_path):
    verified = verify_bundle(made.write(tmp_path / "toy"), made.forge.publishers)
    with pytest.raises(CertificateError):
        require_compressed(
            verified.certificate,
            verified.weights,
            original_certificate_digest="00" * 32,
            original_weights=made.original_weights,
        )


CLAIMS = {
    "a smaller epsilon replaced": {"epsilon_replace_one_micro": 10**9},
    "a larger epsilon, which would do": {"epsilon_micro": 1_726_495 + 10_000},
    "another population": {"not_protected": ("requests", "and more")},
    "other data": {"dataset__commitment": "ef" * 32},
    "another code": {"environment__code_digest": "12" * 32},
    "another note": {"selection__note": "chosen on public data"},
    "an earlier day": {"issued": "2026-01-01"},
}


@pytest.mark.parametrize("changes", CLAIMS.values(), ids=CLAIMS)
def test_a_claim_that_is_not_the_originals(made, tmp_path, changes):
    original = made.certificate
    made.forge.claim(**changes)
    made.certificate = msgspec.structs.replace(made.forge.certificate, version=made.manifest.version)
    made.forge.certificate = original
    assert refused(made, tmp_path / "toy") == "derivation"


def test_the_certificate_of_a_better_protected_model(made, tmp_path):
    """The attack: a model that cost much, with the certificate of one that cost little, re-signed with a false link."""
    costly = msgspec.structs.replace(
        made.forge.certificate,
        mechanism=msgspec.structs.replace(
            made.forge.certificate.mechanism,
            noise=msgspec.structs.replace(made.forge.certificate.mechanism.noise, sigma_micro=2_000_000),
        ),
    )
    made.other_original(costly)
    assert refused(made, tmp_path / "toy") == "derivation"


def test_an_original_by_another_publisher(made, tmp_path):
    other = Ed25519PrivateKey.generate()
    made.other_original(made.forge.certificate, key=other)
    both = publishers_of({"hospital": made.forge.key.public_key(), "other": other.public_key()})
    assert refused(made, tmp_path / "both", both) == "publisher-mismatch"
    assert refused(made, tmp_path / "one") == "publisher-unknown"


def test_an_original_that_was_made_from_a_third(made, tmp_path):
    made.other_original(
        msgspec.structs.replace(
            made.forge.certificate, derivation=msgspec.structs.replace(made.derivation, weights_digest="aa" * 32)
        )
    )
    assert refused(made, tmp_path / "toy") == "derivation"


def test_releases_may_be_added_and_not_left_out(made, tmp_path):
    more = Release(what="accuracy of the compressed model", where="card", covered=False)
    made.certificate = msgspec.structs.replace(made.certificate, releases=(*made.certificate.releases, more))
    verify_bundle(made.write(tmp_path / "more"), made.forge.publishers)
    made.certificate = msgspec.structs.replace(made.certificate, releases=(more,))
    assert refused(made, tmp_path / "less") == "derivation"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"sensitivity": "public"}, "derivation"),
        ({"purposes": ("marketing",)}, "derivation"),
        ({"units_per_row": 7}, "derivation"),
        ({"description": "another"}, "derivation"),
        ({"compression": msgspec.UNSET}, "derivation"),
        ({"compression": Compression(kind="bf16")}, "derivation"),
        ({"compression": Compression(kind="int4")}, "manifest-inconsistent"),
        ({"compression": Compression(kind="int8", frozen_digest="ab" * 32)}, "manifest-inconsistent"),
    ],
)
def test_a_manifest_that_is_not_the_originals(made, tmp_path, change, code):
    made.manifest = msgspec.structs.replace(made.manifest, **change)
    assert refused(made, tmp_path / "toy") == code


def test_every_part_of_the_link_is_needed(made, tmp_path):
    for name in ("weights_digest", "manifest_digest", "certificate_digest"):
        honest = made.derivation
        made.derivation = msgspec.structs.replace(honest, **{name: "aa" * 32})
        assert refused(made, tmp_path / name) == "derivation"
        made.derivation = honest
    made.derivation, kept = None, made.derivation
    assert refused(made, tmp_path / "none") == "derivation"
    made.derivation = kept
    made.left_out = (ORIGINAL_MANIFEST,)
    assert refused(made, tmp_path / "half") == "missing-file"
    made.left_out = (ORIGINAL_MANIFEST, ORIGINAL_CERTIFICATE)
    assert refused(made, tmp_path / "bare") == "derivation"


def test_original_files_beside_an_ordinary_bundle(made, tmp_path):
    made.manifest, made.derivation = made.forge.manifest, None
    made.certificate, made.weights = made.forge.certificate, made.forge.weights
    assert refused(made, tmp_path / "toy") == "derivation"


def test_original_files_that_nobody_signed(forge, made, tmp_path):
    directory = forge.write(tmp_path / "toy")
    (directory / ORIGINAL_CERTIFICATE).write_bytes(made.original_certificate)
    (directory / ORIGINAL_MANIFEST).write_bytes(made.original_manifest)
    with pytest.raises(CertificateError) as caught:
        verify_bundle(directory, forge.publishers)
    assert caught.value.code == "statement-subject"


@pytest.mark.parametrize("name", [ORIGINAL_CERTIFICATE, ORIGINAL_MANIFEST])
def test_original_files_that_were_exchanged(made, tmp_path, name):
    directory = made.write(tmp_path / "toy")
    (directory / name).write_bytes((directory / name).read_bytes().replace(b"a", b"b", 1))
    with pytest.raises(CertificateError) as caught:
        verify_bundle(directory, made.forge.publishers)
    assert caught.value.code == "file-digest"


def test_plain_weights_under_a_compressed_manifest_and_the_other_way_round(made, tmp_path):
    compressed = made.weights
    made.weights = made.forge.weights + b""
    made.original_weights = made.weights
    assert refused(made, tmp_path / "plain") == "derivation"  # the model would be its own original
    made.weights = compress_weights(made.forge.weights, "bf16")
    assert refused(made, tmp_path / "bf16") == "weights-shape"
    forge = Forge(key=made.forge.key, weights=compressed)
    with pytest.raises(CertificateError) as caught:
        verify_bundle(forge.write(tmp_path / "ordinary"), forge.publishers)
    assert caught.value.code == "weights-header"


def test_a_manifest_without_compression_is_written_as_it_always_was(forge):
    assert b"compression" not in canonical_json(forge.manifest)
    assert b"derivation" not in canonical_json(forge.certificate)
