"""A deployment on disk: where each file of a state directory stands, and the settings in `deployment.toml`.

    deployment.toml                 settings below
    pki/                            ca.pem ca.key server.pem server.key clients/NAME.pem clients/NAME.key
                                    authorities/NAME.pem (further authorities) crl/*.pem, *.der, *.crl revoked.txt
    tokens/                         issuers.toml jwks.json revoked.toml issuer.key (a local issuer, for trials)
    policy/                         the working copy: schema and policies (*.cedar*), tenants.toml, budgets.toml
    policy-history/                 every version that was in force, and which one is (see policy.history)
    retention.toml                  how long records are kept (see audit.retention)
    publishers.toml                 keys whose signature on a model bundle counts
    models/NAME/                    bundles, or folders of versions (see sealgate.certificate.repository)
    evidence/operator.key           signs software evidence
    log/log.key, log/mldsa.key, log/subjects.key, log/people.sqlite, log/audit.sqlite
    log/models-withheld.json        bundles that an operator unloaded (see secure_runtime.host.withheld)
    run/runtime.sock, run/admin.sock
    client/trust.toml, client/ca.pem   what a client needs: hand these out

Trusts: whoever may write the directory. Private files are 0600. Never: holds secrets; it is paths and settings.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from sealgate.errors import ConfigurationError
from sealgate.limits import (
    DEFAULT_MESSAGE_MB,
    MAX_DRAIN_S,
    MAX_GATEWAY_WORKERS,
    MAX_MESSAGE_MB,
    MAX_SETTING,
    MAX_SOCKET_PATH,
    MAX_WORKERS,
    MEMORY_PER_MESSAGE,
)
from sealgate.toml_words import in_words


class DeploymentSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[deployment]`. `audience` is the authority that sealed requests name; `origin` names the log."""

    audience: str
    origin: str
    max_request_mb: int = DEFAULT_MESSAGE_MB  # MiB of a request, and of an answer, inside the seal


class OtherLog(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[[log.others]]`: the log of another host, which this gateway reads for auditors."""

    origin: str
    database: str  # as log.database, with a role or file mode that may only read
    same_tenants: bool = False  # a tenant's own auditors may read it too: it has the same tenants as this deployment


class LogSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[log]`: where the audit log stands, and who is asked to cosign it. Files are relative to the state directory."""

    shard: str = "half-year"  # when a new tree begins; or "never"
    database: str = ""  # "" means the SQLite file log/audit.sqlite; or postgresql+psycopg:///NAME?host=FOLDER
    witness_policy: str = ""  # a C2SP tlog-policy whose witnesses have URLs; "": no witness is asked
    witness_every_s: float = 60.0
    witness_ca: str = ""  # the only authority for the witnesses' TLS; "": those of the system
    others: tuple[OtherLog, ...] = ()


_Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]  # 0: one that is free
_Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_SETTING)]
_Size = Annotated[int, msgspec.Meta(ge=0)]
_Lifetime = Annotated[int, msgspec.Meta(ge=1)]  # seconds
_Seconds = Annotated[float, msgspec.Meta(gt=0)]


class GatewaySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[gateway]`: the network face. `client_certificates` is "none", "optional" or "required"."""

    host: str = "127.0.0.1"
    port: _Port = 8443
    workers: Annotated[int, msgspec.Meta(ge=1, le=MAX_GATEWAY_WORKERS)] = 1
    client_certificates: str = "optional"
    crl: str = "if-present"  # "off", "if-present" or "required"
    trusted_proxies: tuple[str, ...] = ()  # fingerprints or names of proxies' certificates (RFC 9440)
    unix_socket: str = ""  # a proxy on this machine is served here too; relative to the state directory
    unix_socket_group: str = ""  # name or number of the group whose members may connect there; "": the owner alone
    token_audience: str = ""  # "" means https://AUDIENCE
    dpop_urls: tuple[str, ...] = ()  # other base URLs that callers reach the gateway by; https://AUDIENCE always is one
    max_concurrent: _Count = 256  # requests being read or in flight, per gateway process
    body_timeout_s: _Seconds = 20.0  # a slower sender is dropped
    request_timeout_s: _Seconds = 60.0


class ConsoleSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[console]`: the auditors' pages, and the OpenID provider that they may sign in with."""

    enabled: bool = True
    issuer: str = ""  # of tokens/issuers.toml; "": sign-in by client certificate only
    client_id: str = ""
    client_secret_file: str = ""  # relative to the state directory; "": a public client
    scope: str = "openid"
    send_resource: bool = True  # ask for a token for this audience (RFC 8707)
    base_url: str = ""  # where browsers find the gateway; "" means https://AUDIENCE


class RuntimeSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[runtime]`. `profile` is "strict", "container" or "dev" (see docs/operations.md)."""

    profile: str = "strict"
    torch_threads: _Count = 1
    memory_limit_mb: int = 4096
    max_queue: _Count = 1024
    request_timeout_s: _Seconds = 30.0
    disk_reserve_mb: _Size = 64
    device: str = "auto"
    worker_uid: _Size = 65534  # when started as root
    key_active_s: _Lifetime = 24 * 3600
    key_stale_s: _Size = 3600
    single_use: bool = False  # be able to answer a request in a process of its own
    require_audit: bool = False  # load no model whose certificate states no audit of its training
    socket_group: str = ""  # name or number of the group whose members may connect; "": the owner alone
    workers: int = 1  # side by side, each with every model; with placement "per-model" it stays 1
    placement: str = "together"  # all models in each worker; or "per-model": a worker for each model
    drain_s: float = 60.0  # how long a worker that was replaced still takes what was sealed to its keys


class Canary(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`canary` in `[models.NAME]`: so many of a hundred requests that name no version are answered by this one."""

    version: str
    percent: int


class ModelSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[models.NAME]`: one model, by the name that its manifests state. 0 means: no limit of its own."""

    default: str = ""  # the version that answers if a request names none; "": the newest that is loaded
    canary: Canary | None = None
    max_concurrent: int = 0  # requests in flight; beyond, a caller is told to come again
    memory_limit_mb: int = 0  # what loading and warming up may take; with a worker of its own, that worker's limit
    cuda_graphs: bool = False  # on a GPU: capture it for a few numbers of rows, which batches are padded to


class ModelsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[models]`: keys of encrypted bundles (see sealgate.certificate.wrapping_keys), and what is demanded of all."""

    keys: tuple[str, ...] = ()  # sources, as sealgate.certificate.wrapping_keys lists them
    require_encryption: bool = False  # load no model whose weights lie here in plain
    require_model_signature: bool = False  # load no model without a model.sig that holds


class AttestationSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[attestation]`: what vouches for evidence beside the operator's key (docs/attestation.md)."""

    tpm: str = ""  # device of a TPM 2.0, or a UNIX socket that speaks for one; "": none
    tpm_pcrs: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)  # registers of the SHA-256 bank that are quoted
    tsm: str = ""  # the kernel's folder of reports in a confidential machine: /sys/kernel/config/tsm/report; "": none
    snp_certificates: str = "evidence/snp"  # folder with vcek.der, ask.der, ark.der, crl.der
    tdx_collateral: str = "evidence/tdx-collateral.json"
    gpus: bool = False  # endorse the machine's NVIDIA GPUs too; only beside `tsm`
    gpu_manifests: str = "evidence/gpu"  # folder with the maker's reference manifests, *.swidtag


class TelemetrySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[telemetry]`: metrics, traces, and what requests cost (docs/operations.md). All of it stays off unless set, but
    what a request took, which its record says."""

    metrics: str = ""  # ADDRESS:PORT of this machine where GET /metrics is answered in clear; "": nowhere
    metrics_token_file: str = ""  # scrapers must show its content as Bearer token; "": none is asked
    traces: str = ""  # OTLP/HTTP endpoint, as "http://127.0.0.1:4318/v1/traces"; "": nothing is traced
    traces_ca: str = ""  # the only authority for its TLS; "": those of the system
    trace_ratio: float = 0.01  # of the requests that are traced
    traceparent: bool = False  # go on with a caller's trace (W3C Trace Context)
    meter: bool = True  # rows, processor time and energy of each request in its record
    watts_per_cpu: float = 0.0  # of a busy processor, where no counter of energy can be read; 0: not known


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of `deployment.toml`."""

    deployment: DeploymentSection
    log: LogSection = LogSection()
    gateway: GatewaySection = GatewaySection()
    console: ConsoleSection = ConsoleSection()
    runtime: RuntimeSection = RuntimeSection()
    models: ModelsSection = ModelsSection()
    attestation: AttestationSection = AttestationSection()
    named_models: dict[str, ModelSection] = msgspec.field(name="[models.NAME]", default_factory=dict)
    telemetry: TelemetrySection = TelemetrySection()


@dataclass(frozen=True)
class Deployment:
    """A state directory with parsed settings. Paths are absolute."""

    root: Path
    settings: Settings

    @property
    def max_message(self) -> int:
        """Bytes of the largest inner message, either way."""
        return self.settings.deployment.max_request_mb * 1024 * 1024

    @property
    def token_audience(self) -> str:
        return self.settings.gateway.token_audience or f"https://{self.settings.deployment.audience}"

    @property
    def log_url(self) -> str:
        """Where the audit log stands, for `AuditLog` and `AuditReader`."""
        return self.settings.log.database or f"sqlite:///{self.database}"

    @property
    def witness_policy(self) -> Path | None:
        """Whom the runtime host asks to cosign, if anybody."""
        setting = self.settings.log.witness_policy
        return self.root / setting if setting else None

    @property
    def witness_ca(self) -> Path | None:
        """The only authority that certifies witnesses, if one is named."""
        setting = self.settings.log.witness_ca
        return self.root / setting if setting else None

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def gateway_socket(self) -> Path | None:
        """Where a proxy on this machine finds the gateway, if it is to."""
        setting = self.settings.gateway.unix_socket
        return self.root / setting if setting else None

    @property
    def tokens(self) -> Path:
        return self.root / "tokens"

    @property
    def policy(self) -> Path:
        return self.root / "policy"

    @property
    def policy_history(self) -> Path:
        return self.root / "policy-history"

    @property
    def retention(self) -> Path:
        return self.root / "retention.toml"

    @property
    def publishers(self) -> Path:
        return self.root / "publishers.toml"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def withheld(self) -> Path:
        """Which bundles an operator unloaded; the runtime host writes it."""
        return self.root / "log" / "models-withheld.json"

    @property
    def operator_key(self) -> Path:
        return self.root / "evidence" / "operator.key"

    @property
    def log_key(self) -> Path:
        return self.root / "log" / "log.key"

    @property
    def log_mldsa_key(self) -> Path:
        """Signs published checkpoints beside the log's key; a deployment may have none."""
        return self.root / "log" / "mldsa.key"

    @property
    def subjects_key(self) -> Path:
        return self.root / "log" / "subjects.key"

    @property
    def person_keys(self) -> Path:
        """A key for each person in the log (audit.person_keys); the runtime begins it."""
        return self.root / "log" / "people.sqlite"

    @property
    def database(self) -> Path:
        return self.root / "log" / "audit.sqlite"

    @property
    def socket(self) -> Path:
        return self.root / "run" / "runtime.sock"

    @property
    def admin_socket(self) -> Path:
        return self.root / "run" / "admin.sock"

    @property
    def proofs(self) -> Path:
        """Where the gateway's processes remember used proofs of possession. The gateway must own this folder."""
        return self.root / "run" / "gateway"

    @property
    def trust(self) -> Path:
        return self.root / "client" / "trust.toml"


@contextlib.contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """What to bind or connect a UNIX socket at `path` with, however deep the state directory is.

    The kernel takes at most 107 bytes; a longer path is reached through a descriptor of its folder (Linux).
    """
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        yield os.fspath(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def open_deployment(root: Path) -> Deployment:
    """Read `deployment.toml` in `root`; raises ConfigurationError that says what to mend."""
    path = root / "deployment.toml"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ConfigurationError(f"{path} does not exist; make a deployment with: sealgate init {root}") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    try:
        settings = msgspec.convert(_with_named_models(tomllib.loads(text.decode())), Settings)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise ConfigurationError(f"{path}: {in_words(error, Settings)}") from error
    for name, value, allowed in (
        ("gateway.client_certificates", settings.gateway.client_certificates, ("none", "optional", "required")),
        ("gateway.crl", settings.gateway.crl, ("off", "if-present", "required")),
        ("log.shard", settings.log.shard, ("half-year", "never")),
        ("runtime.profile", settings.runtime.profile, ("strict", "container", "dev")),
        ("runtime.placement", settings.runtime.placement, ("together", "per-model")),
    ):
        if value not in allowed:
            raise ConfigurationError(f"{path}: {name} is '{value}', must be one of: {', '.join(allowed)}")
    _check_sizes(path, settings)
    if not 1 <= settings.log.witness_every_s <= 86_400:
        raise ConfigurationError(f"{path}: log.witness_every_s must be from 1 to 86400")
    origins = [settings.deployment.origin, *(other.origin for other in settings.log.others)]
    if len(set(origins)) != len(origins) or not all(other.origin and other.database for other in settings.log.others):
        raise ConfigurationError(f"{path}: each of [[log.others]] needs a database and an origin that is no other's")
    _check_models(path, settings)
    if settings.runtime.single_use and settings.runtime.torch_threads != 1:
        raise ConfigurationError(f"{path}: runtime.single_use needs runtime.torch_threads = 1")
    pcrs = settings.attestation.tpm_pcrs
    if not pcrs or not all(0 <= number <= 23 for number in pcrs):
        raise ConfigurationError(f"{path}: attestation.tpm_pcrs must name registers, 0 to 23")
    _require_telemetry(path, settings.telemetry)
    return Deployment(root.resolve(), settings)


def _check_sizes(path: Path, settings: Settings) -> None:
    """Raise ConfigurationError for messages that no process here could hold."""
    largest, memory = settings.deployment.max_request_mb, settings.runtime.memory_limit_mb
    if not 1 <= largest <= MAX_MESSAGE_MB:
        raise ConfigurationError(f"{path}: deployment.max_request_mb must be from 1 to {MAX_MESSAGE_MB}")
    if memory < largest * MEMORY_PER_MESSAGE:
        raise ConfigurationError(
            f"{path}: with deployment.max_request_mb = {largest} runtime.memory_limit_mb must be at least "
            f"{largest * MEMORY_PER_MESSAGE}: a worker holds a request several times over while it answers it"
        )


def _require_telemetry(path: Path, telemetry: TelemetrySection) -> None:
    """Figures are served to this machine alone, and traces leave it over TLS; raises ConfigurationError."""
    if telemetry.metrics and metrics_address(telemetry.metrics) is None:
        raise ConfigurationError(
            f"{path}: telemetry.metrics must be a loopback address with its port, such as 127.0.0.1:9464; "
            "to let others scrape, put a proxy that authenticates them in front"
        )
    url = urlsplit(telemetry.traces)
    if telemetry.traces and not (url.scheme == "https" or (url.scheme == "http" and _is_loopback(url.hostname or ""))):
        raise ConfigurationError(f"{path}: telemetry.traces must be https://..., or http:// to this machine")
    if not 0 <= telemetry.trace_ratio <= 1:
        raise ConfigurationError(f"{path}: telemetry.trace_ratio must be from 0 to 1")
    if not 0 <= telemetry.watts_per_cpu <= 10_000:
        raise ConfigurationError(f"{path}: telemetry.watts_per_cpu must be from 0 to 10000")


def metrics_address(text: str) -> tuple[str, int] | None:
    """The address and port of `telemetry.metrics`; None if it is not one of this machine alone."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not _is_loopback(host) or not (port.isascii() and port.isdecimal()) or not 0 <= int(port) < 2**16:
        return None
    return host, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _with_named_models(table: dict[str, Any]) -> dict[str, Any]:
    """`[models.NAME]` moved to where `Settings.named_models` is read from."""
    models = table.get("models")
    if not isinstance(models, dict):
        return table
    named = {name: value for name, value in models.items() if isinstance(value, dict)}
    others = {name: value for name, value in models.items() if name not in named}
    return {**table, "models": others, "[models.NAME]": named}


def _check_models(path: Path, settings: Settings) -> None:
    """Raise ConfigurationError for numbers of workers and models that make no sense."""
    runtime = settings.runtime
    if not 1 <= runtime.workers <= MAX_WORKERS:
        raise ConfigurationError(f"{path}: runtime.workers must be from 1 to {MAX_WORKERS}")
    if runtime.placement == "per-model" and runtime.workers != 1:
        raise ConfigurationError(f'{path}: with runtime.placement = "per-model" runtime.workers stays 1')
    if not 0 <= runtime.drain_s <= MAX_DRAIN_S:
        raise ConfigurationError(f"{path}: runtime.drain_s must be from 0 to {MAX_DRAIN_S}")
    for name, model in settings.named_models.items():
        where = f"{path}: models.{name}"
        if not 0 <= model.max_concurrent <= MAX_SETTING or not 0 <= model.memory_limit_mb <= MAX_SETTING:
            raise ConfigurationError(f"{where}: max_concurrent and memory_limit_mb are from 0 to {MAX_SETTING}")
        if model.canary is not None and not 0 <= model.canary.percent <= 100:
            raise ConfigurationError(f"{where}.canary: percent is from 0 to 100")
        if model.canary is not None and not (model.default and model.canary.version):
            raise ConfigurationError(f"{where}: a canary needs its own version, and a default for the other requests")
