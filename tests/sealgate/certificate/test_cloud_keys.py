"""Keys in Google Cloud KMS and Azure Key Vault: their libraries, against both services as a server here plays them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sealgate.certificate import encryption_commands
from sealgate.certificate.files import KEY, WEIGHTS
from sealgate.certificate.key_envelope import KeyEnvelope, envelope_bytes, parse_envelope
from sealgate.certificate.wrapping_keys import KeyRing, open_key, open_key_ring
from sealgate.errors import ConfigurationError
from tests.sealgate.certificate.conftest import Forge
from tests.sealgate.certificate.services.clouds import IDENTITY_HEADER, Clouds, serve
from tests.sealgate.certificate.test_key_services import (
    DATA_KEY,
    WEIGHTS_A,
    WEIGHTS_B,
    Authority,
    locked,
    missing,
    toml,
    wrapped,
    write_private,
)

RING = "projects/project/locations/europe-west3/keyRings/ring"
MODELS = f"{RING}/cryptoKeys/models"
NAMES = {"gcpkms": "gcpkms:project/europe-west3/ring/models", "azurekv": "azurekv:127.0.0.1:"}

needs_google = pytest.mark.skipif(missing("google.auth"), reason="SKIPPED FOR WANT OF google-auth")
needs_azure = pytest.mark.skipif(
    missing("azure") or missing("azure.keyvault") or missing("azure.identity"),
    reason="SKIPPED FOR WANT OF azure-keyvault-keys and azure-identity",
)
KINDS = [pytest.param("gcpkms", marks=needs_google), pytest.param("azurekv", marks=needs_azure)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("clouds")
    Authority(made)
    return made


@pytest.fixture(scope="module")
def clouds(folder: Path) -> Iterator[Clouds]:
    served = serve(folder)
    write_private(folder / "account.json", served.service_account())
    served.google[MODELS] = [os.urandom(32)]
    served.turn_azure_key("models")
    yield served
    served.shutdown()
    served.server_close()


@pytest.fixture
def source(clouds: Clouds, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes the file of a service, changed as told, and says the source. Who runs signs in as in the cloud itself."""
    for name in [name for name in os.environ if name.startswith(("AZURE_", "GOOGLE_", "IDENTITY_", "MSI_"))]:
        monkeypatch.delenv(name)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder / "ca.pem"))  # for where tokens are had
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{clouds.url}/identity")
    monkeypatch.setenv("IDENTITY_HEADER", IDENTITY_HEADER)
    files = {
        "gcpkms": {
            "key": MODELS,
            "endpoint": clouds.url,
            "credentials_file": "account.json",
            "ca_file": "ca.pem",
        },
        "azurekv": {"key": f"{clouds.url}/keys/models", "ca_file": "ca.pem"},
    }
    clouds.asked.clear()
    clouds.answers.clear()

    def make(kind: str, file: str = "", **changes: Any) -> str:
        file = file or f"{kind}.toml"
        (folder / file).write_text(toml(files[kind] | changes))
        return f"{kind}:{file}"

    return make


def changed(envelope: KeyEnvelope, at: int) -> KeyEnvelope:
    raw = bytearray(envelope.wrapped_bytes)
    raw[at] ^= 1
    return parse_envelope(envelope_bytes(WEIGHTS_A, key=envelope.key, wrapped=bytes(raw)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_of_a_cloud_wraps_for_its_own_weights_only(source: Callable[..., str], folder: Path, kind: str) -> None:
    envelope, ring = wrapped(source(kind), folder)
    assert envelope.key.startswith(NAMES[kind])
    assert DATA_KEY not in envelope.wrapped_bytes
    assert ring.unwrap(envelope).reveal() == DATA_KEY
    moved = parse_envelope(envelope_bytes(WEIGHTS_B, key=envelope.key, wrapped=envelope.wrapped_bytes))
    locked(ring, moved, "changed, or is of other weights")
    for at in (-1, len(envelope.wrapped_bytes) // 2):
        locked(ring, changed(envelope, at), "changed, or is of other weights")


@needs_azure
def test_what_no_vault_wrapped_is_not_sent_there(source: Callable[..., str], folder: Path, clouds: Clouds) -> None:
    envelope, ring = wrapped(source("azurekv"), folder)
    clouds.asked.clear()
    for foreign in (b"x", envelope.wrapped_bytes[:-1], envelope.wrapped_bytes + b"x", b"\x02" + bytes(100)):
        other = parse_envelope(envelope_bytes(WEIGHTS_A, key=envelope.key, wrapped=foreign))
        locked(ring, other, "not wrapped by such a service")
    locked(ring, changed(envelope, 0), "not wrapped by such a service")
    assert not clouds.asked


@needs_azure
def test_the_vault_alone_unwraps_and_sees_no_data_key(source: Callable[..., str], folder: Path, clouds: Clouds) -> None:
    """A key of one use travels, not the data key; and a version that is not there opens nothing."""
    envelope, ring = wrapped(source("azurekv"), folder)
    clouds.asked.clear()
    ring.unwrap(envelope)
    version = envelope.wrapped_bytes[1:33].decode()
    assert clouds.asked[-1] == f"POST /keys/models/{version}/unwrapkey"
    elsewhere = envelope.wrapped_bytes.replace(version.encode(), b"0" * 32)
    locked(ring, parse_envelope(envelope_bytes(WEIGHTS_A, key=envelope.key, wrapped=elsewhere)), "not this version")


@needs_google
def test_versions_of_a_google_key_turn_and_end(source: Callable[..., str], folder: Path, clouds: Clouds) -> None:
    turning = f"{RING}/cryptoKeys/turning"
    clouds.google[turning] = [os.urandom(32)]
    before, ring = wrapped(source("gcpkms", "turning.toml", key=turning), folder)
    clouds.google[turning].append(os.urandom(32))
    after, _ = wrapped("gcpkms:turning.toml", folder)
    assert before.key == after.key
    assert ring.unwrap(before) == ring.unwrap(after)
    clouds.google[turning][0] = None
    locked(ring, before, "disabled or destroyed")
    assert ring.unwrap(after).reveal() == DATA_KEY
    clouds.google[turning][1] = None
    with pytest.raises(ConfigurationError, match="disabled or destroyed"):
        wrapped("gcpkms:turning.toml", folder)


@needs_azure
def test_versions_of_an_azure_key_turn_and_end(source: Callable[..., str], folder: Path, clouds: Clouds) -> None:
    first = clouds.turn_azure_key("turning")
    vault = source("azurekv", "turning.toml", key=f"{clouds.url}/keys/turning")
    before, ring = wrapped(vault, folder)
    second = clouds.turn_azure_key("turning")
    after, _ = wrapped(vault, folder)
    assert (before.wrapped_bytes[1:33], after.wrapped_bytes[1:33]) == (first.encode(), second.encode())
    assert ring.unwrap(before) == ring.unwrap(after)
    clouds.disabled.add(first)
    locked(open_key_ring([vault], folder=folder), before, "disabled")
    assert open_key_ring([vault], folder=folder).unwrap(after).reveal() == DATA_KEY
    clouds.azure["turning"][second] = None
    with pytest.raises(ConfigurationError, match="must be an RSA key"):
        wrapped(vault, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_authority_that_is_named_counts(
    source: Callable[..., str], folder: Path, tmp_path: Path, kind: str
) -> None:
    """Also where a variable of the environment names one that would do."""
    envelope, _ = wrapped(source(kind), folder)
    Authority(tmp_path)
    (folder / "other.pem").write_bytes((tmp_path / "ca.pem").read_bytes())
    strange = open_key_ring([source(kind, "other.toml", ca_file="other.pem")], folder=folder)
    locked(strange, envelope, "TLS is not to be trusted")


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_that_is_not_there_says_so(source: Callable[..., str], folder: Path, clouds: Clouds, kind: str) -> None:
    absent = {"gcpkms": f"{RING}/cryptoKeys/absent", "azurekv": f"{clouds.url}/keys/absent"}[kind]
    with pytest.raises(ConfigurationError, match=r"NOT_FOUND|no such key"):
        wrapped(source(kind, "absent.toml", key=absent), folder)


@needs_google
def test_google_credentials_that_are_no_good_say_so(
    source: Callable[..., str], folder: Path, clouds: Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    envelope, _ = wrapped(source("gcpkms"), folder)
    (folder / "open.json").write_text(clouds.service_account())
    (folder / "open.json").chmod(0o644)
    for name, text in (("empty.json", "{}"), ("bad.json", "no"), ("list.json", "[]")):
        write_private(folder / name, text)
    for file, says in (
        ("open.json", "others can read"),
        ("none.json", "cannot be read"),
        ("empty.json", "not the key of a service account"),
        ("bad.json", "not the key of a service account"),
        ("list.json", "not the key of a service account"),
    ):
        locked(open_key_ring([source("gcpkms", "c.toml", credentials_file=file)], folder=folder), envelope, says)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(folder / "none.json"))
    nobody = open_key_ring([source("gcpkms", "c.toml", credentials_file="")], folder=folder)
    locked(nobody, envelope, "no credentials")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(folder / "account.json"))
    found = open_key_ring([source("gcpkms", "c.toml", credentials_file="")], folder=folder)
    assert found.unwrap(envelope).reveal() == DATA_KEY


@needs_google
def test_a_service_account_that_google_does_not_know_signs_nobody_in(
    source: Callable[..., str], folder: Path, clouds: Clouds
) -> None:
    envelope, _ = wrapped(source("gcpkms"), folder)
    from cryptography.hazmat.primitives.asymmetric import rsa

    mine, clouds.account_key = clouds.account_key, rsa.generate_private_key(65537, 2048)
    try:
        locked(open_key_ring([source("gcpkms")], folder=folder), envelope, "nobody signs in")
    finally:
        clouds.account_key = mine


@needs_azure
def test_azure_without_credentials_says_so(
    source: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And prints nothing of what the library says of it."""
    envelope, _ = wrapped(source("azurekv"), folder)
    monkeypatch.setenv("IDENTITY_HEADER", "wrong")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
    locked(open_key_ring(["azurekv:azurekv.toml"], folder=folder), envelope, "no credentials")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_service_that_does_not_answer_is_asked_once(source: Callable[..., str], folder: Path, kind: str) -> None:
    envelope, _ = wrapped(source(kind), folder)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes connections, nobody answers them
        address = f"https://127.0.0.1:{silent.getsockname()[1]}"
        place = {"gcpkms": {"endpoint": address}, "azurekv": {"key": f"{address}/keys/models"}}[kind]
        key = open_key(source(kind, "silent.toml", timeout_s=0.2, **place), folder=folder)
        asked = parse_envelope(envelope_bytes(WEIGHTS_A, key=key.name, wrapped=envelope.wrapped_bytes))
        for _ in range(3):
            locked(KeyRing((key,)), asked, "does not answer")
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (200, b"", "is not understood"),
        (200, b"[]", "is not understood|RSA"),
        (200, b'{"plaintext": "AA=="}', "no data key|is not understood"),
        (200, b'{"plaintext": 7, "value": 7}', "is not understood"),
        (200, b"{" * 100_000, "is not understood|answers with an error"),
        (302, b"", "is not understood|answers with an error"),
        (403, b'{"error": {"status": "PERMISSION_DENIED", "message": "secret words"}}', "does not let"),
        (500, b'{"error": {"status": "INTERNAL\\u0007secret words"}}', "without a name|with an error"),
        (500, b'{"error": 7}', "is not understood|with an error"),
    ],
)
def test_answers_of_any_kind_are_one_clear_line(
    source: Callable[..., str], folder: Path, clouds: Clouds, kind: str, status: int, body: bytes, says: str
) -> None:
    envelope, ring = wrapped(source(kind), folder)
    ring.unwrap(envelope)
    clouds.answers[:] = [(status, body)] * 2  # a vault is asked for the key first
    with pytest.raises(Exception, match=says) as failure:
        ring.unwrap(envelope)
    assert getattr(failure.value, "code", "") == "weights-locked"
    assert "secret words" not in str(failure.value)


@needs_google
@needs_azure
def test_the_commands_take_both_and_go_from_one_to_the_other(
    source: Callable[..., str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge = Forge()
    bundle = forge.write(tmp_path / "toy")
    google, azure = (f"{kind}:{folder}/{source(kind).partition(':')[2]}" for kind in ("gcpkms", "azurekv"))
    assert encryption_commands.encrypt(bundle, forge.publishers, [google]) == 0
    assert f"encrypted under key {NAMES['gcpkms']}" in capsys.readouterr().out
    assert not (bundle / WEIGHTS).exists()
    assert encryption_commands.rewrap(bundle, forge.publishers, [google], to=azure) == 0
    assert parse_envelope((bundle / KEY).read_bytes()).key.startswith(NAMES["azurekv"])
    assert encryption_commands.decrypt(bundle, forge.publishers, [azure]) == 0
    assert (bundle / WEIGHTS).read_bytes() == forge.weights
