"""A provisioned deployment: whole or not at all, private where it must be, and accepted by everything that reads it."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import socket
import ssl
import stat
import subprocess
import threading
import tomllib
from pathlib import Path

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gateway import pki, provisioning
from gateway.authentication.issuers import load_issuers
from gateway.pki import certificate_names, make_authority, make_client
from gateway.provisioning import issue_token, provision
from policy.decide import load_policy
from policy.entities import Role
from sealgate.ambient import now_us, random_bytes
from sealgate.certificate.publishers import load_publishers
from sealgate.deployment import Deployment
from sealgate.errors import ConfigurationError
from sealgate.evidence.trust import load_trust
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.notes import NoteSigner

PRIVATE = {
    "pki/ca.key",
    "pki/server.key",
    "pki/clients/integration.key",
    "pki/clients/auditor.key",
    "pki/clients/operator.key",
    "tokens/issuer.key",
    "publisher.key",
    "evidence/operator.key",
    "log/log.key",
    "log/mldsa.key",
    "log/subjects.key",
}
WANTED = {"audience": "localhost:8443", "origin": "localhost/sealgate", "profile": "container"}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    umask = os.umask(0)  # the widest: modes must not depend on it
    try:
        return provision(tmp_path_factory.mktemp("p") / "state", **WANTED)
    finally:
        os.umask(umask)


def _certificate(deployment: Deployment, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((deployment.pki / name).read_bytes())


# On disk -------------------------------------------------------------------------------------------------------------


def test_everything_is_there_with_its_modes(deployment):
    modes = {}
    for path in deployment.root.rglob("*"):
        status = path.lstat()
        assert stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
        if path.is_dir():
            assert stat.S_IMODE(status.st_mode) == 0o700, path
        else:
            modes[str(path.relative_to(deployment.root))] = stat.S_IMODE(status.st_mode)
    assert stat.S_IMODE(deployment.root.stat().st_mode) == 0o700
    assert {name for name, mode in modes.items() if mode == 0o600} == PRIVATE
    assert {name for name, mode in modes.items() if mode not in (0o600, 0o644)} == set()
    assert {name for name in modes if name.endswith(".key")} == PRIVATE
    for property_ in (
        "pki",
        "tokens",
        "policy",
        "publishers",
        "models",
        "operator_key",
        "log_key",
        "log_mldsa_key",
        "subjects_key",
        "trust",
    ):
        assert getattr(deployment, property_).exists(), property_
    assert deployment.socket.parent.is_dir()
    assert not deployment.database.exists()


def test_no_file_is_wider_for_even_a_moment(tmp_path, monkeypatch):
    """Whoever may look into a folder between a file's creation and its chmod sees nothing that others may read."""
    seen: list[int] = []
    widen = os.fchmod

    def watched(descriptor: int, mode: int) -> None:
        seen.append(os.fstat(descriptor).st_mode & 0o077)
        widen(descriptor, mode)

    monkeypatch.setattr(provisioning.os, "fchmod", watched)
    umask = os.umask(0)
    try:
        provision(tmp_path / "state", **WANTED)
    finally:
        os.umask(umask)
    assert len(seen) > len(PRIVATE)
    assert set(seen) == {0}


def test_no_private_key_stands_in_a_public_file(deployment):
    secrets = [(deployment.root / name).read_bytes() for name in PRIVATE]
    for path in deployment.root.rglob("*"):
        if path.is_file() and str(path.relative_to(deployment.root)) not in PRIVATE:
            data = path.read_bytes()
            assert b"PRIVATE" not in data, path
            assert not any(secret.strip() in data for secret in secrets), path


def test_every_key_is_its_own(deployment):
    assert len({(deployment.root / name).read_bytes() for name in PRIVATE}) == len(PRIVATE)


def test_two_deployments_share_nothing_secret(deployment, tmp_path):
    other = provision(tmp_path / "other", **WANTED)
    for name in PRIVATE:
        assert (other.root / name).read_bytes() != (deployment.root / name).read_bytes()
    assert (other.policy / "tenants.toml").read_bytes() == (deployment.policy / "tenants.toml").read_bytes()


def test_its_readers_accept_it(deployment):
    policy_set = load_policy(deployment.policy)
    assert set(policy_set.tenants.tenants) == {"clinic", "oversight", "operations"}
    assert (deployment.policy / "examples" / "business-hours.cedar").exists()
    assert "business-hours" not in policy_set.rules
    publishers = load_publishers(deployment.publishers)
    assert len(publishers.by_keyid) == 1
    assert len(load_issuers(deployment.tokens)) == 1
    load_trust(deployment.trust)
    assert len(base64.b64decode(deployment.subjects_key.read_text())) == 32


def test_trust_file_names_the_keys_that_sign(deployment):
    trust = tomllib.loads(deployment.trust.read_text())
    operator = load_pem_private_key(deployment.operator_key.read_bytes(), None)
    log = load_pem_private_key(deployment.log_key.read_bytes(), None)
    assert trust["operator_keys"] == [base64.b64encode(operator.public_key().public_bytes_raw()).decode()]
    assert trust["log_keys"] == [NoteSigner.from_seed("localhost/sealgate", log.private_bytes_raw()).vkey]
    assert trust["log_keys"] == [NoteSigner.from_pem("localhost/sealgate", deployment.log_key.read_bytes()).vkey]
    mldsa = load_pem_private_key(deployment.log_mldsa_key.read_bytes(), None)
    assert trust["log_mldsa_keys"] == [Cosigner("localhost/sealgate", mldsa).public.vkey]
    assert (trust["audience"], trust["url"]) == ("localhost:8443", "https://localhost:8443")
    assert trust["accept_software"] is True
    assert (deployment.root / "client" / "ca.pem").read_bytes() == (deployment.pki / "ca.pem").read_bytes()


def test_settings_say_what_was_asked_for(deployment):
    settings = deployment.settings
    assert (settings.deployment.audience, settings.deployment.origin) == ("localhost:8443", "localhost/sealgate")
    assert (settings.gateway.host, settings.gateway.port, settings.runtime.profile) == ("127.0.0.1", 8443, "container")


# Whole or not at all -------------------------------------------------------------------------------------------------


def test_an_existing_deployment_is_never_overwritten(tmp_path):
    first = provision(tmp_path / "state", **WANTED)
    before = {path: path.read_bytes() for path in first.root.rglob("*") if path.is_file()}
    with pytest.raises(ConfigurationError, match="already holds a deployment") as caught:
        provision(tmp_path / "state", **WANTED)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in first.root.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_overwrite_sets_the_old_one_aside(tmp_path):
    first = provision(tmp_path / "state", **WANTED)
    old_key = first.log_key.read_bytes()
    second = provision(tmp_path / "state", overwrite=True, **WANTED)
    (aside,) = (path for path in tmp_path.iterdir() if path.name.startswith("state.replaced-"))
    assert (aside / "log" / "log.key").read_bytes() == old_key
    assert second.log_key.read_bytes() != old_key
    assert len(list(tmp_path.iterdir())) == 2


def test_overwrite_leaves_a_deployment_alone_that_is_being_served(tmp_path):
    state = tmp_path / "state"
    kept = provision(state, **WANTED)
    with (kept.root / "log" / "audit.sqlite.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(ConfigurationError, match="being served; stop it first"):
            provision(state, **WANTED, overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ["state"]
    provision(state, **WANTED, overwrite=True)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_deployment_is_refused_even_with_overwrite(tmp_path, overwrite):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name, says in (("full", "is not empty"), ("file", "is in the way"), ("link", "is in the way")):
        with pytest.raises(ConfigurationError, match=says):
            provision(tmp_path / name, overwrite=overwrite, **WANTED)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work"
    assert len(list(tmp_path.iterdir())) == 3


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path):
    (tmp_path / "empty").mkdir(mode=0o755)
    assert provision(tmp_path / "empty", **WANTED).root.stat().st_mode & 0o777 == 0o700
    assert provision(tmp_path / "a" / "b" / "c", **WANTED).root.is_dir()


@pytest.mark.parametrize("fails_at", [1, 12, 25])
def test_a_failure_in_the_middle_leaves_nothing(tmp_path, monkeypatch, fails_at):
    written = 0
    write = provisioning.write_new

    def failing(path: Path, data: bytes, *, mode: int) -> None:
        nonlocal written
        written += 1
        if written == fails_at:
            raise OSError(28, "No space left on device")
        write(path, data, mode=mode)

    monkeypatch.setattr(provisioning, "write_new", failing)
    with pytest.raises(ConfigurationError, match="cannot be written: No space left on device"):
        provision(tmp_path / "state", **WANTED)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"audience": ""},
        {"audience": "https://localhost"},
        {"audience": "localhost:0"},
        {"audience": "localhost:70000"},
        {"audience": "local host"},
        {"audience": 'a"\nb'},
        {"audience": "[::zz]:1"},
        {"audience": "a/b"},
        {"origin": ""},
        {"origin": "two words"},
        {"origin": 'x"'},
        {"origin": "a+b"},
        {"profile": "lax"},
    ],
)
def test_bad_wishes_are_one_line(tmp_path, change):
    with pytest.raises(ConfigurationError) as caught:
        provision(tmp_path / "state", **{**WANTED, **change})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("audience", "port", "host"),
    [("gate.example", 443, "gate.example"), ("10.1.2.3:9000", 9000, "10.1.2.3"), ("[::2]:8443", 8443, "::2")],
)
def test_other_audiences(tmp_path, audience, port, host):
    deployment = provision(tmp_path / "state", **{**WANTED, "audience": audience})
    assert deployment.settings.gateway.port == port
    names = _certificate(deployment, "server.pem").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    known = names.get_values_for_type(x509.DNSName) + [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]
    assert host in known
    assert {"localhost", "127.0.0.1", "::1"} <= set(known)
    load_trust(deployment.trust)


# Certificates --------------------------------------------------------------------------------------------------------


def test_certificate_extensions(deployment):
    authority, server = _certificate(deployment, "ca.pem"), _certificate(deployment, "server.pem")
    client = _certificate(deployment, "clients/integration.pem")
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    usage = authority.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    for certificate, purpose in (
        (server, ExtendedKeyUsageOID.SERVER_AUTH),
        (client, ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        certificate.verify_directly_issued_by(authority)
        assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [purpose]
        issuer = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        assert issuer.key_identifier == identifier.digest
        assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).critical
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
        assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
        assert certificate.public_key().curve.name == "secp256r1"
    serials = {certificate.serial_number for certificate in (authority, server, client)}
    assert len(serials) == 3
    assert all(0 < serial < 2**159 for serial in serials)


@pytest.mark.parametrize(
    ("name", "tenant", "role"),
    [
        ("integration", "clinic", Role.CLIENT),
        ("auditor", "oversight", Role.AUDITOR),
        ("operator", "operations", Role.OPERATOR),
    ],
)
def test_client_certificates_are_mapped(deployment, name, tenant, role):
    tenants = load_policy(deployment.policy).tenants
    client = tenants.client_of(certificate_names(_certificate(deployment, f"clients/{name}.pem")), frozenset({"ca"}))
    assert client is not None
    assert (client.tenant, client.roles) == (tenant, (role,))
    assert tenants.client_of(certificate_names(_certificate(deployment, "server.pem")), frozenset({"ca"})) is None


def test_a_common_name_counts_only_without_alternative_names(deployment):
    certificate = _certificate(deployment, "clients/integration.pem")
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "integration"
    assert certificate_names(certificate) == ("URI:urn:sealgate:client:integration",)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "plain")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(certificate.not_valid_before_utc)
    plain = builder.not_valid_after(certificate.not_valid_after_utc).sign(key, hashes.SHA256())
    assert certificate_names(plain) == ("CN:plain",)


def _contexts(deployment: Deployment, client: str | None) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.minimum_version = ssl.TLSVersion.TLSv1_3
    server.load_cert_chain(deployment.pki / "server.pem", deployment.pki / "server.key")
    server.load_verify_locations(deployment.pki / "ca.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_STRICT
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours.minimum_version = ssl.TLSVersion.TLSv1_3
    ours.verify_flags |= ssl.VERIFY_X509_STRICT
    ours.load_verify_locations(deployment.root / "client" / "ca.pem")
    if client:
        ours.load_cert_chain(deployment.pki / f"{client}.pem", deployment.pki / f"{client}.key")
    return server, ours


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> dict[str, object]:
    """A real handshake over a socket pair; returns what the server learned of the client."""
    left, right = socket.socketpair()
    left.settimeout(20)
    right.settimeout(20)
    learned: dict[str, object] = {}

    def serve() -> None:
        try:
            with server.wrap_socket(left, server_side=True) as tls:
                learned["peer"] = tls.getpeercert()
                learned["der"] = tls.getpeercert(binary_form=True)
                learned["version"] = tls.version()
                tls.sendall(b"hello")
        except (ssl.SSLError, OSError) as error:
            learned["error"] = error
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(right, server_hostname=host) as tls:
            if tls.recv(5) != b"hello":
                raise ConnectionError("no greeting")
    finally:
        right.close()
        thread.join()
    return learned


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_tls_13_both_ways_under_strict_rules(deployment, host):
    learned = _handshake(*_contexts(deployment, "clients/integration"), host)
    assert learned["version"] == "TLSv1.3"
    assert ("URI", "urn:sealgate:client:integration") in learned["peer"]["subjectAltName"]
    der = learned["der"]
    assert isinstance(der, bytes)
    expected = _certificate(deployment, "clients/integration.pem")
    assert hashlib.sha256(der).digest() == expected.fingerprint(hashes.SHA256())


def test_tls_refuses_the_wrong_name_role_and_authority(deployment, tmp_path):
    server, client = _contexts(deployment, "clients/integration")
    with pytest.raises(ssl.SSLCertVerificationError, match="match"):
        _handshake(server, client, "elsewhere.example")
    refused = (ssl.SSLError, OSError)
    with pytest.raises(refused):
        _handshake(*_contexts(deployment, None), "localhost")
    with pytest.raises(refused):
        _handshake(*_contexts(deployment, "server"), "localhost")  # a server certificate stands for no client
    other = provision(tmp_path / "other", **WANTED)
    with pytest.raises(refused):
        _handshake(server, _contexts(other, "clients/integration")[1], "localhost")
    swapped = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    swapped.load_cert_chain(deployment.pki / "clients/integration.pem", deployment.pki / "clients/integration.key")
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(swapped, client, "localhost")  # nor a client certificate for a server


def test_openssl_agrees(deployment):
    base = ["openssl", "verify", "-x509_strict", "-CAfile", str(deployment.pki / "ca.pem")]
    for purpose, name in (("sslserver", "server.pem"), ("sslclient", "clients/auditor.pem")):
        run = subprocess.run([*base, "-purpose", purpose, str(deployment.pki / name)], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    wrong = subprocess.run(
        [*base, "-purpose", "sslserver", str(deployment.pki / "clients/auditor.pem")], capture_output=True
    )
    assert wrong.returncode != 0


def test_injected_time_decides_validity():
    authority = make_authority("a", now_us=1_800_000_000_000_000, entropy=random_bytes)
    certificate, _ = make_client(authority, "c", now_us=1_800_000_000_000_000, entropy=random_bytes)
    assert certificate.not_valid_before_utc.timestamp() == 1_800_000_000 - pki.BACKDATE_S
    assert certificate.not_valid_after_utc.timestamp() == 1_800_000_000 + pki.LEAF_DAYS * 86400


# Tokens --------------------------------------------------------------------------------------------------------------


def _token(deployment: Deployment, **changes: object) -> str:
    wanted = {
        "subject": "triage-app",
        "tenant": "clinic",
        "roles": ["client"],
        "purposes": ["treatment"],
        "lifetime_s": 600,
    }
    return issue_token(deployment, **{**wanted, "now": now_us(), **changes})


def test_token_claims_round_trip(deployment):
    now = now_us()
    token = _token(deployment, now=now, roles=["client", "auditor"], purposes=["treatment", "billing"])
    keys = jwt.PyJWKSet.from_json((deployment.tokens / "jwks.json").read_text())
    header = jwt.get_unverified_header(token)
    claims = jwt.decode(
        token,
        keys[header["kid"]],
        algorithms=["ES256"],
        audience="https://localhost:8443",
        issuer="https://localhost:8443/local-issuer",
        options={"require": ["iss", "aud", "sub", "iat", "exp", "jti", "client_id"]},
    )
    assert (header["alg"], header["typ"]) == ("ES256", "at+jwt")
    assert claims.pop("jti")
    assert claims == {
        "iss": "https://localhost:8443/local-issuer",
        "aud": "https://localhost:8443",
        "sub": "triage-app",
        "client_id": "triage-app",
        "iat": now // 1_000_000,
        "exp": now // 1_000_000 + 600,
        "tenant": "clinic",
        "roles": ["client", "auditor"],
        "purposes": ["treatment", "billing"],
    }
    tampered = token[:-8] + ("A" * 8 if not token.endswith("A" * 8) else "B" * 8)
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(tampered, keys[header["kid"]], algorithms=["ES256"], audience="https://localhost:8443")


def test_the_gateway_knows_the_issuer_and_its_key(deployment):
    issuer = load_issuers(deployment.tokens)["https://localhost:8443/local-issuer"]
    kid = jwt.get_unverified_header(_token(deployment))["kid"]
    assert (
        jwt.decode(_token(deployment), issuer.keys[kid], algorithms=["ES256"], audience=deployment.token_audience)[
            "sub"
        ]
        == "triage-app"
    )
    with pytest.raises(ConfigurationError):
        _token(deployment, lifetime_s=issuer.max_lifetime_s + 1)


def test_tokens_differ(deployment):
    now = now_us()
    assert len({_token(deployment, now=now) for _ in range(5)}) == 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lifetime_s": 0}, "a token lives 1 to"),
        ({"lifetime_s": -5}, "a token lives 1 to"),
        ({"roles": ["root"]}, "there is no role 'root'; roles are: client, auditor, operator"),
        ({"tenant": "nobody"}, "has no tenant 'nobody'; it has: clinic, operations, oversight"),
        ({"subject": ""}, "a subject is"),
        ({"subject": "a b"}, "a subject is"),
        ({"subject": "x" * 129}, "a subject is"),
    ],
)
def test_tokens_that_would_be_refused_are_not_made(deployment, change, says):
    with pytest.raises(ConfigurationError, match=says):
        _token(deployment, **change)


def test_token_without_its_files_is_one_line(tmp_path):
    deployment = provision(tmp_path / "state", **WANTED)
    key = deployment.tokens / "issuer.key"
    pem = key.read_bytes()
    for broken, says in ((b"", "not a private key in PEM form"), (deployment.log_key.read_bytes(), "must be an ECDSA")):
        key.write_bytes(broken)
        with pytest.raises(ConfigurationError, match=says):
            _token(deployment)
    key.unlink()
    with pytest.raises(ConfigurationError, match="come from its identity providers"):
        _token(deployment)
    key.write_bytes(pem)
    (deployment.tokens / "issuers.toml").write_text("")
    with pytest.raises(ConfigurationError, match=r"no .*issuer"):
        _token(deployment)


@pytest.mark.parametrize(
    ("profile", "accepted"),
    [("strict", ("strict",)), ("container", ("strict", "container")), ("dev", ("strict", "container", "dev"))],
)
def test_clients_are_told_to_refuse_weaker_isolation_than_was_set_up(tmp_path, profile, accepted):
    made = provision(tmp_path / "d", audience="localhost:8443", origin="localhost/log", profile=profile)
    assert load_trust(made.trust).profiles == accepted
