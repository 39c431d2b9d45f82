"""The trust file: everything that a client believes without being shown, in one TOML file that a person can read.

    audience = "localhost:8443"          what sealed requests name, and evidence must name
    url = "https://localhost:8443"       where the gateway answers
    accept_software = true               opt in to evidence that only an operator's key vouches for (default: refuse)
    operator_keys = ["base64 Ed25519"]   whose word on evidence counts
    log_keys = ["C2SP vkey"]             whose signature on checkpoints counts
    log_mldsa_keys = ["C2SP vkey"]       optional: the logs' ML-DSA-44 keys, which must sign what is published too
    profiles = ["strict"]                optional: sandbox profiles that are acceptable
    required_layers = ["seccomp-seal"]   optional: sandbox layers that must be on
    max_epsilon = "8"                    optional: the largest epsilon that any model may state
    policy_digests = ["hex"]             optional: policies that may be in force
    strict = false                       optional: treat every check that has nothing to compare with as a failure
    [tpm]                                optional: whose TPM quotes count (sealgate.evidence.endorsements.tpm)
    [snp]                                optional: whose SEV-SNP reports count (sealgate.evidence.endorsements.snp)
    [tdx]                                optional: whose TDX quotes count (sealgate.evidence.endorsements.tdx)
    [nvidia-gpu]                         optional: whose GPUs count (sealgate.evidence.endorsements.nvidia_gpu)
    [measurements]                       optional pins: NAME = ["hex", ...], such as code (evidence.measure)
    [models.NAME]                        optional pins: model_digest, certificate_digest, max_epsilon

`ca.pem` beside the file, if there, is the only authority that may certify the gateway's TLS.
An expectation that is present but empty is an error, never a check that always passes.

Trusts: whoever may write the file. Never: holds private keys or tokens.
"""

from __future__ import annotations

import base64
import binascii
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from sealgate.errors import ConfigurationError, SealgateError
from sealgate.evidence.endorsements.nvidia_gpu import GpuAnchor, GpuTable, parse_gpu_anchor
from sealgate.evidence.endorsements.snp import SnpAnchor, SnpTable, parse_snp_anchor
from sealgate.evidence.endorsements.tdx import TdxAnchor, TdxTable, parse_tdx_anchor
from sealgate.evidence.endorsements.tpm import TpmAnchor, TpmTable, parse_tpm_anchor
from sealgate.limits import MAX_NAME, MAX_TRUST_FILE
from sealgate.toml_words import in_words
from sealgate.transparency.cosignatures import CosignerKey
from sealgate.transparency.notes import NoteVerifier
from sealgate.transparency.published import parse_mldsa_log_key

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_EPSILON = re.compile(r"([0-9]{1,6})(?:\.([0-9]{1,6}))?\Z")
_LABEL = re.compile(r"[a-z][a-z0-9.-]{0,63}\Z")
_PROFILES = ("strict", "container", "dev")


@dataclass(frozen=True, kw_only=True)
class ModelPin:
    """What a client expects of one model; None where the file says nothing."""

    model_digest: str | None = None
    certificate_digest: str | None = None
    max_epsilon_micro: int | None = None


@dataclass(frozen=True, kw_only=True)
class Trust:
    """A trust file, parsed: every value present is of the right shape and not empty."""

    audience: str
    url: str
    operator_keys: tuple[bytes, ...]
    log_keys: tuple[NoteVerifier, ...]
    log_mldsa_keys: tuple[CosignerKey, ...] = ()
    accept_software: bool = False
    profiles: tuple[str, ...] | None = None
    required_layers: tuple[str, ...] = ()
    max_epsilon_micro: int | None = None
    policy_digests: tuple[str, ...] = ()
    measurements: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tpm: TpmAnchor | None = None
    snp: SnpAnchor | None = None
    tdx: TdxAnchor | None = None
    nvidia_gpu: GpuAnchor | None = None
    strict: bool = False
    models: Mapping[str, ModelPin] = field(default_factory=dict)
    ca_file: Path | None = None
    source: str = "trust file"

    def strictly(self) -> Trust:
        """The same trust, with every skipped check a failure."""
        return replace(self, strict=True)


class _PinTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    model_digest: str | None = None
    certificate_digest: str | None = None
    max_epsilon: str | None = None


class _TrustTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    audience: str
    url: str
    operator_keys: tuple[str, ...]
    log_keys: tuple[str, ...]
    log_mldsa_keys: tuple[str, ...] | None = None
    accept_software: bool = False
    profiles: tuple[str, ...] | None = None
    required_layers: tuple[str, ...] | None = None
    max_epsilon: str | None = None
    policy_digests: tuple[str, ...] | None = None
    measurements: dict[str, tuple[str, ...]] = {}
    tpm: TpmTable | None = None
    snp: SnpTable | None = None
    tdx: TdxTable | None = None
    nvidia_gpu: GpuTable | None = msgspec.field(default=None, name="nvidia-gpu")
    strict: bool = False
    models: dict[str, _PinTable] = {}


def load_trust(path: Path) -> Trust:
    """Read a trust file, or `trust.toml` in a directory; raises ConfigurationError that says what to mend."""
    if path.is_dir():
        path = path / "trust.toml"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TRUST_FILE + 1)
    except OSError as error:
        hint = "ask the service's operator for it (`sealgate init` writes it to client/trust.toml)"
        raise ConfigurationError(f"trust file {path} cannot be read: {error.strerror}; {hint}") from error
    authority = path.with_name("ca.pem")
    return parse_trust(data, source=str(path), ca_file=authority if authority.exists() else None)


def parse_trust(data: bytes, *, source: str, ca_file: Path | None = None) -> Trust:
    """The trust in these bytes; raises ConfigurationError."""
    if len(data) > MAX_TRUST_FILE:
        raise ConfigurationError(f"{source}: larger than {MAX_TRUST_FILE} bytes")
    try:
        table = msgspec.convert(tomllib.loads(data.decode()), _TrustTable)
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{source}: not UTF-8 text") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError, ValueError) as error:
        raise ConfigurationError(f"{source}: {in_words(error, _TrustTable)}") from error
    try:
        return Trust(
            audience=_authority(table.audience),
            url=_url(table.url),
            operator_keys=tuple(_operator_key(text) for text in _not_empty(table.operator_keys, "operator_keys")),
            log_keys=tuple(_log_key(text) for text in _not_empty(table.log_keys, "log_keys")),
            log_mldsa_keys=_log_mldsa_keys(table),
            accept_software=table.accept_software,
            profiles=_profiles(table.profiles),
            required_layers=_layers(table.required_layers),
            max_epsilon_micro=None if table.max_epsilon is None else parse_epsilon(table.max_epsilon),
            policy_digests=_digests(table.policy_digests, "policy_digests"),
            measurements={_label(name): _digests(one, name) for name, one in table.measurements.items()},
            tpm=None if table.tpm is None else parse_tpm_anchor(table.tpm),
            snp=None if table.snp is None else parse_snp_anchor(table.snp),
            tdx=None if table.tdx is None else parse_tdx_anchor(table.tdx),
            nvidia_gpu=None if table.nvidia_gpu is None else parse_gpu_anchor(table.nvidia_gpu),
            strict=table.strict,
            models={_name(name): _pin(name, pin) for name, pin in table.models.items()},
            ca_file=ca_file,
            source=source,
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from error


def parse_epsilon(text: str) -> int:
    """A decimal epsilon as millionths, exactly; raises ConfigurationError."""
    match = _EPSILON.match(text)
    if match is None:
        raise ConfigurationError(f"epsilon '{text[:20]}' is not a decimal with at most six places")
    return int(match[1]) * 1_000_000 + int((match[2] or "").ljust(6, "0"))


def _not_empty(values: tuple[str, ...], name: str) -> tuple[str, ...]:
    if not values:
        raise ConfigurationError(f"{name} is empty: nothing could be verified; list at least one key")
    return values


def _name(name: str) -> str:
    if not name or len(name) > MAX_NAME:
        raise ConfigurationError("a model name under [models] is empty or too long")
    return name


def _authority(text: str) -> str:
    if not text or len(text) > 255 or not re.fullmatch(r"[A-Za-z0-9.\-\[\]:]+", text):
        raise ConfigurationError("audience must be HOST or HOST:PORT")
    return text


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        sound = parts.scheme == "https" and parts.hostname and parts.port != 0 and not (parts.query or parts.fragment)
    except ValueError:
        sound = False
        parts = urlsplit("")
    if not sound or parts.username is not None or parts.password is not None:
        raise ConfigurationError("url must be https://HOST[:PORT][/PREFIX], without user, query or fragment")
    return text.rstrip("/")


def _operator_key(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32:
        raise ConfigurationError("operator_keys must be base64 of raw Ed25519 public keys (32 bytes)")
    return raw


def _log_key(text: str) -> NoteVerifier:
    try:
        return NoteVerifier.parse(text)
    except SealgateError as error:
        raise ConfigurationError("log_keys must be verifier keys of the form NAME+HASH+KEY") from error


def _log_mldsa_keys(table: _TrustTable) -> tuple[CosignerKey, ...]:
    if table.log_mldsa_keys is None:
        return ()
    keys = tuple(parse_mldsa_log_key(text) for text in _not_empty(table.log_mldsa_keys, "log_mldsa_keys"))
    logs = {_log_key(text).name for text in table.log_keys}
    for key in keys:
        if key.name not in logs:
            raise ConfigurationError(f"log_mldsa_keys has a key for '{key.name}', of which log_keys has none")
    return keys


def _profiles(profiles: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if profiles is not None and (not profiles or not set(profiles) <= set(_PROFILES)):
        raise ConfigurationError(f"profiles must list at least one of: {', '.join(_PROFILES)}")
    return profiles


def _label(name: str) -> str:
    if not _LABEL.match(name):
        raise ConfigurationError(f"'{name[:20]}' is no name of a layer or measurement (docs/attestation.md lists them)")
    return name


def _layers(names: tuple[str, ...] | None) -> tuple[str, ...]:
    if names is None:
        return ()
    if not names:
        raise ConfigurationError("required_layers is empty: nothing would be required; list layers or leave it out")
    return tuple(_label(name) for name in names)


def _digests(values: tuple[str, ...] | None, name: str) -> tuple[str, ...]:
    if values is None:
        return ()
    if not values or not all(_DIGEST.match(value) for value in values):
        raise ConfigurationError(f"{name} must list digests of 64 lowercase hexadecimal digits, at least one")
    return values


def _pin(name: str, table: _PinTable) -> ModelPin:
    for digest in (table.model_digest, table.certificate_digest):
        if digest is not None and not _DIGEST.match(digest):
            raise ConfigurationError(f"a digest under [models.{name}] is not 64 lowercase hexadecimal digits")
    if table.model_digest is None and table.certificate_digest is None and table.max_epsilon is None:
        raise ConfigurationError(f"[models.{name}] pins nothing; name model_digest, certificate_digest or max_epsilon")
    return ModelPin(
        model_digest=table.model_digest,
        certificate_digest=table.certificate_digest,
        max_epsilon_micro=None if table.max_epsilon is None else parse_epsilon(table.max_epsilon),
    )
