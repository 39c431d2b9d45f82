"""What is behind `sealgate init` and `sealgate token`: a complete deployment on disk, and tokens for trials.

Everything is written into a private folder beside the target and moved there with one rename, so a deployment is either
whole or not there. Folders are 0700, private files 0600, from the moment they exist. An existing deployment is never
touched: with `overwrite` it is set aside under a new name, because it holds a log that somebody may need.

Trusts: the person who runs it, and the folder's owner. Never: prints a key, takes one from outside, or weakens one.
Long, because the text of every file of a deployment stands here, in one place.
"""

from __future__ import annotations

import base64
import fcntl
import ipaddress
import json
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from audit.retention import SHIPPED as SHIPPED_RETENTION
from gateway import pki
from gateway.limits import MAX_LIFETIME_S
from policy.entities import Role
from policy.tenants import FILE as TENANTS_FILE
from policy.tenants import parse_tenants
from sealgate.ambient import Clock, Entropy, now_us, random_bytes
from sealgate.deployment import Deployment, open_deployment
from sealgate.durable_files import sync_folder, write_new
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_NAME
from sealgate.protocol.dpop import public_jwk, thumbprint, to_base64url
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.notes import NoteSigner

CLIENT_CERTIFICATES = ("integration", "auditor", "operator")  # the names that the shipped tenants.toml maps
SIGNING = "ES256"

_AUDIENCE = re.compile(
    r"([A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])(?::([1-9][0-9]{0,4}))?"
)
_ORIGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_-]{0,254}")
_PROFILES = ("strict", "container", "dev")


def provision(
    root: Path,
    *,
    audience: str,
    origin: str,
    profile: str,
    require_audit: bool = False,
    overwrite: bool = False,
    clock: Clock = now_us,
    entropy: Entropy = random_bytes,
) -> Deployment:
    """Make a complete deployment at `root` and open it. Raises ConfigurationError, and then `root` is as it was.

    `audience` is the authority that clients will use ("localhost:8443"), `origin` the name of the log. With `overwrite`
    a deployment that is already there is renamed to "ROOT.replaced-TIME"; anything else that is in the way is refused.
    With `require_audit` it will load no model whose certificate states no audit of its training.
    """
    host, port = _parse_audience(audience)
    if not _ORIGIN.fullmatch(origin):
        raise ConfigurationError(
            f"the log's name {origin!r} must be letters, digits and ./_-, as in 'localhost/sealgate'"
        )
    if profile not in _PROFILES:
        raise ConfigurationError(f"the profile is {profile!r}, must be one of: {', '.join(_PROFILES)}")
    root = root.absolute()
    _check_target(root, overwrite=overwrite)
    now = clock()
    plan = _Files()
    _plan_certificates(plan, host, now=now, entropy=entropy)
    _plan_issuer(plan, audience)
    _plan_keys(plan, audience=audience, origin=origin, profile=profile, entropy=entropy)
    _plan_policy(plan)
    settings = _settings(audience=audience, origin=origin, profile=profile, port=port, require_audit=require_audit)
    plan.public["deployment.toml"] = settings.encode()
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
        try:
            plan.write(draft)
            if root.exists() and any(root.iterdir()):
                root.rename(root.with_name(f"{root.name}.replaced-{now // 1_000_000}"))
            draft.rename(root)
            sync_folder(root.parent)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    except OSError as error:
        raise ConfigurationError(f"{root} cannot be written: {error.strerror}") from error
    return open_deployment(root)


def purposes_of(deployment: Deployment, tenant: str) -> tuple[str, ...]:
    """What the policy's working copy lets a tenant use models for; raises ConfigurationError for one that it lacks."""
    path = deployment.policy / TENANTS_FILE
    tenants = parse_tenants(_read(path), name=str(path)).tenants
    if tenant not in tenants:
        raise ConfigurationError(f"{path} has no tenant {tenant!r}; it has: {', '.join(sorted(tenants))}")
    return tuple(sorted(tenants[tenant].max_epsilon_micro))


def issue_token(
    deployment: Deployment,
    *,
    subject: str,
    tenant: str,
    roles: Sequence[str],
    purposes: Sequence[str],
    lifetime_s: int,
    now: int,
    confirmation: Mapping[str, str] | None = None,
    entropy: Entropy = random_bytes,
) -> str:
    """An access token (RFC 9068, `at+jwt`) signed by the deployment's local issuer. `now` is in MICROSECONDS.

    `confirmation` becomes `cnf` (RFC 7800): `{"x5t#S256": ...}` or `{"jkt": ...}`. For trials and tests of a
    deployment: a real one lists its identity provider in `tokens/issuers.toml`. What the token claims is not what it
    gets: the policy decides that. Raises ConfigurationError for what the gateway would refuse anyway.
    """
    if not 0 < lifetime_s <= MAX_LIFETIME_S:
        raise ConfigurationError(f"a token lives 1 to {MAX_LIFETIME_S} seconds, not {lifetime_s}")
    known = [role.value for role in Role]
    for role in roles:
        if role not in known:
            raise ConfigurationError(f"there is no role {role!r}; roles are: {', '.join(known)}")
    if not re.fullmatch(rf"[\x21-\x7e]{{1,{MAX_NAME}}}", subject):
        raise ConfigurationError(f"a subject is 1 to {MAX_NAME} printable characters without spaces")
    purposes_of(deployment, tenant)
    key_path = deployment.tokens / "issuer.key"
    if not key_path.exists():
        raise ConfigurationError(f"{key_path} is not there: this deployment's tokens come from its identity providers")
    key = _read_issuer_key(key_path)
    seconds = now // 1_000_000
    claims: dict[str, object] = {
        "iss": _local_issuer(deployment.tokens / "issuers.toml"),
        "aud": deployment.token_audience,
        "sub": subject,
        "client_id": subject,
        "iat": seconds,
        "exp": seconds + lifetime_s,
        "jti": to_base64url(entropy(16)),
        "tenant": tenant,
        "roles": list(roles),
        "purposes": list(purposes),
    }
    if confirmation:
        claims["cnf"] = _confirmation(confirmation)
    headers = {"typ": "at+jwt", "kid": thumbprint(public_jwk(key.public_key()))}
    return jwt.encode(claims, key, algorithm=SIGNING, headers=headers)


# What goes into a deployment -----------------------------------------------------------------------------------------


@dataclass
class _Files:
    """What will be written, by path below the root: `private` files become 0600, `public` ones 0644."""

    private: dict[str, bytes] = field(default_factory=dict)
    public: dict[str, bytes] = field(default_factory=dict)
    folders: tuple[str, ...] = ("models", "run", "log", "evidence", "client", "policy-history")

    def write(self, root: Path) -> None:
        for name in self.folders:
            (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        for mode, files in ((0o600, self.private), (0o644, self.public)):
            for name, data in files.items():
                path = root / name
                for folder in reversed(path.relative_to(root).parents):
                    (root / folder).mkdir(mode=0o700, exist_ok=True)
                write_new(path, data, mode=mode)
        for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
            folder.chmod(0o700)
            sync_folder(folder)


def _plan_certificates(plan: _Files, host: str, *, now: int, entropy: Entropy) -> None:
    authority = pki.make_authority("Sealgate local authority", now_us=now, entropy=entropy)
    hosts = (host, "localhost", "127.0.0.1", "::1")
    server, server_key = pki.make_server(authority, hosts, now_us=now, entropy=entropy)
    plan.public["pki/ca.pem"] = plan.public["client/ca.pem"] = pki.certificate_pem(authority.certificate)
    plan.private["pki/ca.key"] = _pem(authority.key)
    plan.public["pki/server.pem"] = pki.certificate_pem(server)
    plan.private["pki/server.key"] = _pem(server_key)
    for name in CLIENT_CERTIFICATES:
        certificate, key = pki.make_client(authority, name, now_us=now, entropy=entropy)
        plan.public[f"pki/clients/{name}.pem"] = pki.certificate_pem(certificate)
        plan.private[f"pki/clients/{name}.key"] = _pem(key)


def _plan_issuer(plan: _Files, audience: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    plan.private["tokens/issuer.key"] = _pem(key)
    jwk = public_jwk(key.public_key())
    public = {**jwk, "kid": thumbprint(jwk), "use": "sig", "alg": SIGNING}
    plan.public["tokens/jwks.json"] = json.dumps({"keys": [public]}, indent=2).encode() + b"\n"
    plan.public["tokens/issuers.toml"] = f"""\
# Who may issue access tokens, and how they are checked. One [[issuer]] each; the first is the local one that
# `sealgate token` signs with. For your identity provider (docs/identity.md):
#
# [[issuer]]
# name = "https://login.example.com"       # the exact `iss` claim
# discovery = true                         # or jwks_uri = "https://...", or jwks = "a-file.json"
# algorithms = ["ES256"]
# tenants = ["clinic"]                     # whom it may speak for
#
# Then remove the local issuer and issuer.key.

[[issuer]]
name = "https://{audience}/local-issuer"
jwks = "jwks.json"
algorithms = ["{SIGNING}"]
max_lifetime_s = {MAX_LIFETIME_S}
tenants = ["*"]   # any tenant; name them, or remove this issuer, once another stands beside it
""".encode()


def _plan_keys(plan: _Files, *, audience: str, origin: str, profile: str, entropy: Entropy) -> None:
    operator, publisher, log = (Ed25519PrivateKey.generate() for _ in range(3))
    plan.private["evidence/operator.key"] = _pem(operator)
    plan.private["publisher.key"] = _pem(publisher)
    plan.private["log/log.key"] = _pem(log)
    mldsa = MLDSA44PrivateKey.generate()
    plan.private["log/mldsa.key"] = _pem(mldsa)
    plan.private["log/subjects.key"] = base64.b64encode(entropy(32)) + b"\n"
    plan.public["publishers.toml"] = f"""\
# Keys whose signature on a model bundle counts. The key is a raw Ed25519 public key in base64.

[[publisher]]
name = "local"
key = "{_raw(publisher)}"
""".encode()
    plan.public["client/trust.toml"] = f"""\
# What a client of this deployment relies on. Hand this file and ca.pem to clients over a way that you trust.

audience = "{audience}"
url = "https://{audience}"

# This deployment has no hardware root of trust: its evidence is signed by a key that its operator holds (below).
# `true` accepts that. It means: you trust whoever operates this deployment to run the code that the evidence names;
# a dishonest operator could read what you send. Set it to false to insist on hardware.
accept_software = true

# The isolation that the runtime must show: evidence of a weaker one is refused.
profiles = {json.dumps(_PROFILES[: _PROFILES.index(profile) + 1])}

operator_keys = ["{_raw(operator)}"]
log_keys = ["{NoteSigner.from_seed(origin, log.private_bytes_raw()).vkey}"]

# The log's ML-DSA-44 key, which a quantum computer does not forge: it must have signed what the log publishes too.
log_mldsa_keys = [
  "{Cosigner(origin, mldsa).public.vkey}",
]

# Pins, if you want them: one table for each model that you use.
# [models.NAME]
# model_digest = "..."
# certificate_digest = "..."
# max_epsilon = "3"
""".encode()


def _plan_policy(plan: _Files) -> None:
    shipped = resources.files("policy.shipped")
    for item in _data_files(shipped):
        plan.public[f"policy/{item.name}"] = item.read_bytes()
    plan.public["retention.toml"] = SHIPPED_RETENTION.encode()
    for folder in ("examples", "scenarios"):
        for item in _data_files(shipped / folder):
            plan.public[f"policy/{folder}/{item.name}"] = item.read_bytes()


def _data_files(folder: Traversable) -> Iterable[Traversable]:
    return (item for item in folder.iterdir() if item.name.endswith((".cedar", ".cedarschema", ".toml")))


def _settings(*, audience: str, origin: str, profile: str, port: int, require_audit: bool) -> str:
    return f"""\
# The settings of this deployment. Every setting and its default: docs/operations.md.

[deployment]
audience = "{audience}"  # the authority that sealed requests name
origin = "{origin}"  # the name of the log

[gateway]
host = "127.0.0.1"  # this machine only; "0.0.0.0" or "::" listens on every address
port = {port}

[runtime]
profile = "{profile}"  # "strict", "container" or "dev": which isolation layers must hold (`sealgate doctor` shows them)
require_audit = {str(require_audit).lower()}  # load no model whose certificate states no audit of its training
"""


# Forms of keys and names ---------------------------------------------------------------------------------------------


def _parse_audience(audience: str) -> tuple[str, int]:
    match = _AUDIENCE.fullmatch(audience)
    host, port = (match[1].strip("[]"), int(match[2] or 443)) if match else ("", 0)
    try:
        if ":" in host:
            ipaddress.IPv6Address(host)
    except ValueError:
        host = ""
    if not host or not 0 < port < 65536:
        raise ConfigurationError(f"the audience {audience!r} must be HOST or HOST:PORT, as in 'localhost:8443'")
    return host, port


def _pem(key: Ed25519PrivateKey | MLDSA44PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _raw(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def _confirmation(members: Mapping[str, str]) -> dict[str, str]:
    for name, value in members.items():
        if name not in ("x5t#S256", "jkt") or not re.fullmatch(r"[A-Za-z0-9_-]{43}", value):
            raise ConfigurationError("a token is bound by a SHA-256 thumbprint: 43 characters of base64url")
    return dict(members)


def _local_issuer(path: Path) -> str:
    try:
        return str(tomllib.loads(_read(path).decode())["issuer"][0]["name"])
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, IndexError, TypeError) as error:
        raise ConfigurationError(f"{path}: has no [[issuer]] with a field 'name'") from error


def _read_issuer_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} is not a private key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"{path} must be an ECDSA P-256 key, for {SIGNING}")
    return key


# Files ---------------------------------------------------------------------------------------------------------------


def _check_target(root: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(root):
        return
    if root.is_symlink() or not root.is_dir():
        raise ConfigurationError(f"{root} is in the way: it is not a folder")
    if not any(root.iterdir()):
        return
    if not (root / "deployment.toml").exists():
        raise ConfigurationError(f"{root} is not empty and is no deployment; choose another folder")
    _check_unserved(root)
    if not overwrite:
        raise ConfigurationError(
            f"{root} already holds a deployment; choose another folder, or say --overwrite to set it aside"
        )


def _check_unserved(root: Path) -> None:
    """Refuse while a runtime writes the log there: it would go on in the folder that is set aside."""
    try:
        with (root / "log" / "audit.sqlite.lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return
    except BlockingIOError as error:
        raise ConfigurationError(f"{root} holds a deployment that is being served; stop it first") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
