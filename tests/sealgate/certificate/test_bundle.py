"""The tampering matrix: each attack on a bundle, and the one code that it must end in."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.certificate.bundle import sha256_hex, verify_bundle
from sealgate.certificate.dsse import sign_envelope
from sealgate.certificate.files import (
    _LIMITS,
    CARD,
    CERTIFICATE,
    MANIFEST,
    SIGNATURE,
    WEIGHTS,
    BundleFolder,
    Listing,
)
from sealgate.certificate.publishers import publishers_of
from sealgate.certificate.statement import certificate_statement
from sealgate.errors import CertificateError
from sealgate.limits import MAX_CARD


class Runs:
    """A pickle that would leave a trace if anybody loaded it."""

    def __reduce__(self):
        return (os.mkdir, ("/tmp/sealgate-unpickled",))


def refused(directory: Path, publishers) -> str:
    with pytest.raises(CertificateError) as caught:
        verify_bundle(directory, publishers)
    assert not Path("/tmp/sealgate-unpickled").exists()
    return caught.value.code


def flip(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def test_an_honest_bundle_verifies_and_says_what_it_is(bundle, forge):
    steps = []
    verified = verify_bundle(bundle, forge.publishers, told=lambda step, detail: steps.append(step))
    assert verified.publisher == "hospital"
    assert verified.weights == forge.weights
    assert verified.facts.model_digest == sha256_hex((bundle / WEIGHTS).read_bytes())
    assert verified.facts.certificate_digest == sha256_hex((bundle / CERTIFICATE).read_bytes())
    assert verified.facts.epsilon_micro == forge.certificate.epsilon_micro
    assert (verified.facts.name, verified.facts.privacy_unit, verified.facts.delta) == ("toy", "example", "0.0001")
    assert len(steps) == 11


@pytest.mark.parametrize("name", ["model.pkl", "model.pt", "weights.BIN", "x.joblib", "state.ckpt", "a.npy"])
def test_a_file_named_like_a_pickle(bundle, forge, name):
    (bundle / name).write_bytes(b"harmless")
    assert refused(bundle, forge.publishers) == "pickle-in-bundle"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST, CARD, CERTIFICATE])
def test_a_pickle_inside_an_expected_file(forge, tmp_path, name, protocol):
    files = forge.files()
    files[name] = pickle.dumps(Runs(), protocol=protocol)
    directory = forge.write(tmp_path / "toy", forge.sign(files))
    if name == WEIGHTS:  # signed consistently, so that the pickle itself decides
        forge.weights = files[WEIGHTS]
        directory = forge.write(tmp_path / "signed")
    assert refused(directory, forge.publishers) == "pickle-in-bundle"


def test_a_torch_archive_as_weights(forge, tmp_path):
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Runs()))
    forge.weights = (tmp_path / "archive").read_bytes()
    assert refused(forge.write(tmp_path / "toy"), forge.publishers) == "pickle-in-bundle"


def test_weights_whose_header_length_looks_like_a_pickle_opcode_are_no_pickle(forge, tmp_path):
    padding = 640 - int.from_bytes(forge.weights[:8], "little")  # a header of 0x280 bytes: the file begins 80 02
    header_end = 8 + int.from_bytes(forge.weights[:8], "little")
    forge.weights = (
        (640).to_bytes(8, "little") + forge.weights[8:header_end] + b" " * padding + forge.weights[header_end:]
    )
    assert forge.weights[:2] == b"\x80\x02"
    assert verify_bundle(forge.write(tmp_path / "toy"), forge.publishers).weights == forge.weights


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "model.safetensors.bak", "code.py", "link"])
def test_anything_unexpected(bundle, forge, name):
    if name == "link":
        (bundle / name).symlink_to("/etc/passwd")
    else:
        (bundle / name).write_bytes(b"")
    assert refused(bundle, forge.publishers) == "unexpected-file"


def test_a_directory_full_of_files_is_refused_after_a_few(bundle, forge):
    for number in range(200):
        (bundle / f"{number}.txt").write_bytes(b"")
    assert refused(bundle, forge.publishers) == "unexpected-file"


@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST, CERTIFICATE, CARD, SIGNATURE])
def test_a_missing_file(bundle, forge, name):
    (bundle / name).unlink()
    assert refused(bundle, forge.publishers) == "missing-file"


@pytest.mark.parametrize("kind", ["symlink", "directory", "fifo"])
@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST, SIGNATURE])
def test_an_entry_that_is_no_plain_file(bundle, forge, tmp_path, name, kind):
    moved = tmp_path / "moved"
    (bundle / name).rename(moved)
    if kind == "symlink":
        (bundle / name).symlink_to(moved)
    elif kind == "directory":
        (bundle / name).mkdir()
    else:
        os.mkfifo(bundle / name)
    assert refused(bundle, forge.publishers) == "not-a-plain-file"


def test_a_bundle_that_is_a_symlink_or_missing_or_a_file(bundle, forge, tmp_path):
    (tmp_path / "link").symlink_to(bundle)
    for path in (tmp_path / "link", tmp_path / "nowhere", bundle / CARD):
        assert refused(path, forge.publishers) == "bundle-unreadable"


def test_a_file_that_is_too_large_is_refused_unread(bundle, forge):
    with (bundle / WEIGHTS).open("r+b") as file:
        file.truncate(300 * 1024 * 1024)  # sparse: takes no disk
    assert refused(bundle, forge.publishers) == "file-too-large"
    (bundle / WEIGHTS).write_bytes(forge.weights)
    (bundle / CARD).write_bytes(b"x" * (MAX_CARD + 1))
    assert refused(bundle, forge.publishers) == "file-too-large"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (WEIGHTS, "weights-digest"),
        (MANIFEST, "manifest-digest"),
        (CERTIFICATE, "certificate-digest"),
        (CARD, "file-digest"),
    ],
)
def test_an_altered_file(bundle, forge, name, code):
    flip(bundle / name)
    assert refused(bundle, forge.publishers) == code


def test_weights_swapped_for_others_with_a_new_bundle_signature(forge, tmp_path):
    files = forge.files()
    other = bytearray(files[WEIGHTS])
    other[-1] ^= 1
    directory = forge.write(tmp_path / "toy", forge.sign({**files, WEIGHTS: bytes(other)}))
    assert refused(directory, forge.publishers) == "weights-digest"


def test_a_manifest_swapped_for_another_with_a_new_bundle_signature(forge, tmp_path):
    files = forge.files()
    other = files[MANIFEST].replace(b'"personal"', b'"public"')
    directory = forge.write(tmp_path / "toy", forge.sign({**files, MANIFEST: other}))
    assert refused(directory, forge.publishers) == "manifest-digest"


def test_a_wrong_bundle_signature(bundle, forge):
    envelope = msgspec.json.decode((bundle / SIGNATURE).read_bytes())
    signature = envelope["signatures"][0]["sig"]
    envelope["signatures"][0]["sig"] = ("B" if signature[0] == "A" else "A") + signature[1:]
    (bundle / SIGNATURE).write_bytes(msgspec.json.encode(envelope, order="sorted"))
    assert refused(bundle, forge.publishers) == "bundle-signature"


def test_a_wrong_certificate_signature(forge, tmp_path):
    files = forge.files()
    envelope = msgspec.json.decode(files[CERTIFICATE])
    signature = envelope["signatures"][0]["sig"]
    envelope["signatures"][0]["sig"] = ("B" if signature[0] == "A" else "A") + signature[1:]
    files[CERTIFICATE] = msgspec.json.encode(envelope, order="sorted")
    directory = forge.write(tmp_path / "toy", forge.sign(files))
    assert refused(directory, forge.publishers) == "certificate-signature"


def test_an_unknown_publisher(bundle):
    stranger = publishers_of({"other": Ed25519PrivateKey.generate().public_key()})
    assert refused(bundle, stranger) == "publisher-unknown"
    assert refused(bundle, publishers_of({})) == "publisher-unknown"


def test_a_certificate_of_another_known_publisher(forge, tmp_path):
    forge.certificate_key = Ed25519PrivateKey.generate()
    both = publishers_of({"hospital": forge.key.public_key(), "clinic": forge.certificate_key.public_key()})
    directory = forge.write(tmp_path / "toy")
    assert refused(directory, both) == "publisher-mismatch"
    assert refused(directory, forge.publishers) == "publisher-unknown"


def test_bundle_signature_and_certificate_cannot_stand_for_each_other(forge, tmp_path):
    files = forge.files()
    directory = forge.write(tmp_path / "a", {**files, SIGNATURE: files[CERTIFICATE]})
    assert refused(directory, forge.publishers) == "statement-malformed"
    directory = forge.write(tmp_path / "b", forge.sign({**files, CERTIFICATE: files[SIGNATURE]}))
    assert refused(directory, forge.publishers) == "statement-malformed"


def test_a_certificate_that_names_more_than_weights_and_manifest(forge, tmp_path):
    files = forge.files()
    digests = {WEIGHTS: sha256_hex(files[WEIGHTS]), MANIFEST: sha256_hex(files[MANIFEST]), "extra": "0" * 64}
    files[CERTIFICATE] = sign_envelope(certificate_statement(forge.certificate, digests), forge.key)
    assert refused(forge.write(tmp_path / "toy", forge.sign(files)), forge.publishers) == "statement-subject"


def test_a_bundle_signature_that_leaves_a_file_out(forge, tmp_path):
    files = forge.files()
    signed = forge.sign({name: data for name, data in files.items() if name not in (CARD, SIGNATURE)})
    directory = forge.write(tmp_path / "toy", {**files, SIGNATURE: signed[SIGNATURE]})
    assert refused(directory, forge.publishers) == "statement-subject"


@pytest.mark.parametrize("part", ["manifest", "certificate", "signature"])
def test_parts_that_name_different_models(forge, tmp_path, part):
    if part == "manifest":
        forge.manifest = msgspec.structs.replace(forge.manifest, version="2.0.0")
    elif part == "certificate":
        forge.claim(model="other")
    else:
        forge.bundle_name = "other"
    assert refused(forge.write(tmp_path / "toy"), forge.publishers) == "manifest-inconsistent"


def test_weights_of_another_architecture(forge, tmp_path):
    forge.manifest = msgspec.structs.replace(
        forge.manifest, architecture=msgspec.structs.replace(forge.manifest.architecture, classes=3)
    )
    labels = ("a", "b", "c")
    forge.manifest = msgspec.structs.replace(
        forge.manifest,
        outputs=(
            msgspec.structs.replace(forge.manifest.outputs[0], labels=labels),
            msgspec.structs.replace(forge.manifest.outputs[1], labels=labels, shape=(-1, 3)),
        ),
    )
    assert refused(forge.write(tmp_path / "toy"), forge.publishers) == "weights-shape"


def test_epsilon_lowered_by_one_millionth(forge, tmp_path):
    forge.claim(epsilon_micro=forge.certificate.epsilon_micro - 1)
    assert refused(forge.write(tmp_path / "toy"), forge.publishers) == "epsilon-mismatch"


def test_the_replace_one_figure_lowered(forge, tmp_path):
    forge.claim(epsilon_replace_one_micro=forge.certificate.epsilon_replace_one_micro - 1)
    assert refused(forge.write(tmp_path / "toy"), forge.publishers) == "epsilon-mismatch"


@pytest.mark.parametrize(
    "change",
    [
        {"mechanism__sampling__steps_declared": 61},
        {"mechanism__noise__sigma_micro": 3_999_000},
        {"delta": "0.00009"},
    ],
)
def test_a_parameter_changed_without_epsilon(forge, tmp_path, change):
    assert refused(forge.claim(**change).write(tmp_path / "toy"), forge.publishers) == "epsilon-mismatch"


def test_a_rate_changed_consistently_without_epsilon(forge, tmp_path):
    rate = msgspec.structs.replace(forge.certificate.mechanism.sampling.rate, numerator=13, denominator=50)
    forge.claim(mechanism__sampling__rate=rate, mechanism__sampling__divisor_micro=260_000_000)
    assert refused(forge.write(tmp_path / "toy"), forge.publishers) == "epsilon-mismatch"


def test_a_generous_epsilon_is_accepted_as_stated(forge, tmp_path):
    forge.claim(epsilon_micro=forge.certificate.epsilon_micro + 20_000)
    verified = verify_bundle(forge.write(tmp_path / "toy"), forge.publishers)
    assert verified.facts.epsilon_micro == forge.certificate.epsilon_micro


def test_a_file_that_grows_between_listing_and_reading_is_bounded(bundle, forge, monkeypatch):
    monkeypatch.setitem(_LIMITS, CARD, 3)
    monkeypatch.setattr(BundleFolder, "check_listing", lambda _: Listing(encrypted=False, model_signature=False))
    assert refused(bundle, forge.publishers) == "file-too-large"


def test_without_directory_descriptors_the_same_is_refused(bundle, forge, monkeypatch):
    """As on Windows."""
    monkeypatch.setattr("sealgate.certificate.files._HAS_DIRECTORIES", False)
    assert verify_bundle(bundle, forge.publishers).facts.name == "toy"
    (bundle.parent / "link").symlink_to(bundle)
    assert refused(bundle.parent / "link", forge.publishers) == "bundle-unreadable"
    flip(bundle / WEIGHTS)
    assert refused(bundle, forge.publishers) == "weights-digest"
    (bundle / "x.txt").write_bytes(b"")
    assert refused(bundle, forge.publishers) == "unexpected-file"


def test_a_link_put_in_place_after_the_listing_is_not_followed(bundle, forge, tmp_path, monkeypatch):
    monkeypatch.setattr(BundleFolder, "check_listing", lambda _: Listing(encrypted=False, model_signature=False))
    (bundle / CARD).rename(tmp_path / "moved")
    (bundle / CARD).symlink_to(tmp_path / "moved")
    assert refused(bundle, forge.publishers) == "bundle-unreadable"
