"""What a runtime says of itself, and its one encoding: the claims set of an Entity Attestation Token (RFC 9711).

Registered claims where the registry has one (nonce, iat, exp, aud, cnf, eat_profile, dbgstat), private-use labels
below -65536 for the rest. `cnf` confirms two keys: the worker's completion key as a COSE_Key, and the OHTTP key
configurations that requests are sealed to. `dbgstat` is `enabled` for software evidence, always: whoever is root on
such a host can debug it.

Trusts nothing: parsed claims are an allegation until `sealgate.evidence.verify` has judged them.
Never: floats, secrets, caller data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from sealgate.errors import DecodeError
from sealgate.protocol import cbor
from sealgate.protocol.frames import Layer, ModelFacts

EAT_PROFILE = "urn:sealgate:evidence:v1"

_AUD, _EXP, _IAT, _CNF, _NONCE, _DBGSTAT, _PROFILE = 3, 4, 6, 8, 10, 263, 265
_CNF_COSE_KEY, _CNF_KEY_CONFIGS = 1, -65537
_DEBUG_ENABLED, _DEBUG_DISABLED = 0, 1
_SECOND = 1_000_000
_LAST_SECOND = 1 << 40
_KTY, _CRV, _X, _OKP, _ED25519 = 1, -1, -2, 1, 6

_PRIVATE = {
    "instance": -65538,
    "assurance": -65539,
    "profile": -65540,
    "degraded": -65541,
    "device": -65542,
    "models": -65543,
    "layers": -65544,
    "probes": -65545,
    "host_layers": -65546,
    "measurements": -65547,
    "policy_digest": -65548,
    "log_origin": -65549,
    "log_checkpoint": -65550,
}
_REGISTERED = {_AUD, _EXP, _IAT, _CNF, _NONCE, _DBGSTAT, _PROFILE}


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One runtime's statement about itself. Digests lowercase hex SHA-256.

    `layers` and `probes` are the worker's own reading, `host_layers` the host's reading of the worker. `assurance` is
    the strongest kind of endorsement that the attester adds: "software", "tpm" or "hardware".
    """

    nonce: bytes  # the asker's; empty when nobody asked for freshness
    issued_at_us: int  # encoded in whole seconds, as CWT wants
    expires_at_us: int
    audience: str  # the :authority that sealed requests name
    key_configs: bytes  # application/ohttp-keys
    completion_key: bytes  # Ed25519 public key of the instance
    instance: str
    models: tuple[ModelFacts, ...]
    layers: dict[str, Layer]
    probes: dict[str, Layer]
    host_layers: dict[str, Layer] = {}
    profile: str  # "strict", "container", "dev"
    assurance: str
    degraded: bool
    device: str
    measurements: dict[str, str]
    policy_digest: str
    log_origin: str
    log_checkpoint: bytes  # the newest signed checkpoint of the log


def encode_claims(claims: Claims) -> bytes:
    """The payload: deterministic CBOR of the claims set."""
    plain: dict[str, Any] = {name: msgspec.to_builtins(getattr(claims, name)) for name in _PRIVATE}
    plain["log_checkpoint"] = claims.log_checkpoint
    found: dict[int | str, cbor.Value] = {label: plain[name] for name, label in _PRIVATE.items()}
    found |= {
        _PROFILE: EAT_PROFILE,
        _IAT: claims.issued_at_us // _SECOND,
        _EXP: claims.expires_at_us // _SECOND,
        _AUD: claims.audience,
        _DBGSTAT: _debug_status(claims.assurance),
        _CNF: {
            _CNF_COSE_KEY: {_KTY: _OKP, _CRV: _ED25519, _X: claims.completion_key},
            _CNF_KEY_CONFIGS: claims.key_configs,
        },
    }
    if claims.nonce:
        found[_NONCE] = claims.nonce
    return cbor.encode(found)


def decode_claims(payload: bytes) -> Claims:
    """The claims in exactly these bytes; raises DecodeError for anything missing, unknown or of another profile."""
    found = cbor.decode(payload)
    if not isinstance(found, Mapping):
        raise DecodeError("evidence is not a claims set")
    if found.get(_PROFILE) != EAT_PROFILE:
        raise DecodeError("evidence follows another profile", code="evidence-profile")
    if set(found) | {_NONCE} != _REGISTERED | set(_PRIVATE.values()):
        raise DecodeError("evidence lacks claims, or has some that its profile does not know")
    values: dict[str, Any] = {name: found[label] for name, label in _PRIVATE.items()}
    values |= {"nonce": found.get(_NONCE, b""), "audience": found[_AUD]}
    values |= {"issued_at_us": _time(found[_IAT]), "expires_at_us": _time(found[_EXP])}
    values["completion_key"], values["key_configs"] = _confirmed_keys(found[_CNF])
    try:
        claims = msgspec.convert(values, Claims, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise DecodeError("a claim of the evidence is of the wrong type") from error
    if found[_DBGSTAT] != _debug_status(claims.assurance) or encode_claims(claims) != payload:
        raise DecodeError("claims of the evidence contradict each other")
    return claims


def state_digest(claims: Claims) -> str:
    """SHA-256 of what does not change while an instance lives: `evidence_digest` in its records.

    Left out are the nonce and times, the keys and policy (both rotate, and are recorded when they do) and the
    checkpoint. The host computes it once per worker, a client from the evidence that it verified.
    """
    changing = {"nonce": b"", "issued_at_us": 0, "expires_at_us": 0, "key_configs": b"", "policy_digest": ""}
    lasting = msgspec.structs.replace(claims, **changing, log_checkpoint=b"")
    return hashlib.sha256(b"sealgate runtime state v1\x00" + encode_claims(lasting)).hexdigest()


def _time(seconds: cbor.Value) -> int:
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not 0 < seconds < _LAST_SECOND:
        raise DecodeError("a time of the evidence is out of range")
    return seconds * _SECOND


def _debug_status(assurance: str) -> int:
    return _DEBUG_DISABLED if assurance == "hardware" else _DEBUG_ENABLED


def _confirmed_keys(cnf: cbor.Value) -> tuple[bytes, bytes]:
    if not isinstance(cnf, Mapping) or set(cnf) != {_CNF_COSE_KEY, _CNF_KEY_CONFIGS}:
        raise DecodeError("evidence does not confirm a key")
    key, configs = cnf[_CNF_COSE_KEY], cnf[_CNF_KEY_CONFIGS]
    if not isinstance(key, Mapping) or set(key) != {_KTY, _CRV, _X} or not isinstance(configs, bytes):
        raise DecodeError("evidence does not confirm a key")
    x = key[_X]
    if key[_KTY] != _OKP or key[_CRV] != _ED25519 or not isinstance(x, bytes) or len(x) != 32:
        raise DecodeError("the confirmed key is not an Ed25519 key")
    return x, configs
