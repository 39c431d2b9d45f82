"""The endorsement `tpm`: a TPM 2.0 quote whose qualifying data is `bind` (TPM 2.0 Library Part 2 and 3, TPM2_Quote).

    proof = CBOR [TPMS_ATTEST, TPMT_SIGNATURE, TPMT_PUBLIC, {index: value of the SHA-256 PCR}]

Shows that, when these claims were made, somebody on the machine with this TPM could use it, and that the machine had
booted as its platform configuration registers say. The trust file pins the attestation key by its TPM Name, which
covers the attributes that keep it from signing anything but what the TPM itself states, and the registers' values:

    [tpm]
    attestation_keys = ["000b..."]       TPM Names, hex (nameAlg and SHA-256 of the public area)
    covers_code = false                  the registers pin everything that runs, this runtime included
    [tpm.pcrs]
    0 = ["hex"]                          acceptable values; at least one register

Trusts: the trust file; the maker of the TPM, unseen: whether the key lives in a chip or in a program that plays one
(swtpm) cannot be told from a Name. That is why this grade is `tpm` and never `hardware`.
Never: accepts a key that may sign other things than quotes, another bank than SHA-256, or bytes that follow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from sealgate.errors import ConfigurationError, DecodeError, EvidenceError
from sealgate.evidence.endorsements.endorsed import Endorsed, Reader, pinned_values
from sealgate.protocol import cbor

KIND = "tpm"
PCR_COUNT = 24

GENERATED, ATTEST_QUOTE = 0xFF544347, 0x8018
ALG_RSA, ALG_SHA256, ALG_NULL, ALG_RSASSA, ALG_RSAPSS, ALG_ECDSA, ALG_ECC = 0x01, 0x0B, 0x10, 0x14, 0x16, 0x18, 0x23
_ALG_SHA384, _ALG_SHA512 = 0x0C, 0x0D
_CURVES: dict[int, type[ec.EllipticCurve]] = {3: ec.SECP256R1, 4: ec.SECP384R1}
_HASHES: dict[int, type[hashes.HashAlgorithm]] = {
    ALG_SHA256: hashes.SHA256,
    _ALG_SHA384: hashes.SHA384,
    _ALG_SHA512: hashes.SHA512,
}
FIXED_TPM, FIXED_PARENT, SENSITIVE_ORIGIN, DECRYPT, RESTRICTED, SIGN = 1 << 1, 1 << 4, 1 << 5, 1 << 17, 1 << 16, 1 << 18
_NEEDED = FIXED_TPM | FIXED_PARENT | SENSITIVE_ORIGIN | RESTRICTED | SIGN
_NAME = 34  # bytes: nameAlg and a SHA-256
_MIN_RSA_BITS, _DEFAULT_EXPONENT = 2048, 65537
_CLOCK_INFO, _FIRMWARE = 17, 8

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class TpmTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[tpm]` of a trust file."""

    attestation_keys: tuple[str, ...]
    pcrs: dict[str, tuple[str, ...]]
    covers_code: bool = False


@dataclass(frozen=True, kw_only=True)
class TpmAnchor:
    """Whose quotes count, and of which platforms."""

    names: tuple[bytes, ...]
    pcrs: Mapping[int, tuple[bytes, ...]]
    covers_code: bool


@dataclass(frozen=True, kw_only=True)
class Quote:
    """A TPMS_ATTEST of the type quote, parsed."""

    extra_data: bytes
    selected: tuple[int, ...]
    pcr_digest: bytes


@dataclass(frozen=True, kw_only=True)
class AttestationKey:
    """A TPMT_PUBLIC of a key that signs quotes and nothing of others."""

    name: bytes
    key: PublicKey


def parse_tpm_anchor(table: TpmTable) -> TpmAnchor:
    """The anchor in `[tpm]`; raises ConfigurationError."""
    names = pinned_values(table.attestation_keys, "attestation_keys under [tpm]", width=_NAME)
    if not all(name[:2] == ALG_SHA256.to_bytes(2, "big") for name in names):
        raise ConfigurationError("attestation_keys under [tpm] must be TPM Names: 000b and a SHA-256")
    if not table.pcrs or not all(index.isdecimal() and int(index) < PCR_COUNT for index in table.pcrs):
        raise ConfigurationError("[tpm.pcrs] must name at least one register, 0 to 23")
    pcrs = {int(index): pinned_values(one, f"[tpm.pcrs] {index}", width=32) for index, one in table.pcrs.items()}
    return TpmAnchor(names=names, pcrs=pcrs, covers_code=table.covers_code)


def judge_tpm(proof: bytes, bind: bytes, anchor: TpmAnchor) -> Endorsed:
    """The endorsement, or EvidenceError or DecodeError."""
    attest, signature, public, values = _parts(proof)
    quote, key = parse_quote(attest), parse_public(public)
    if key.name not in anchor.names:
        raise _refused("the quote is signed by a TPM key that attestation_keys does not name")
    verify_tpm_signature(signature, attest, key.key)
    if quote.extra_data != bind:
        raise _refused("the quote is about other claims")
    registers = _registers(quote, values)
    for index, acceptable in sorted(anchor.pcrs.items()):
        if index not in registers:
            raise _refused(f"the quote does not cover register {index}, which is pinned")
        if registers[index] not in acceptable:
            raise _refused(f"register {index} has another value than the trust file pins")
    pinned = " ".join(str(index) for index in sorted(anchor.pcrs))
    return Endorsed(
        kind=KIND,
        grade=KIND,
        detail=f"quote over registers {pinned}",
        anchor=f"TPM key {key.name.hex()[:16]}...",
        covers_code=anchor.covers_code,
    )


def describe_tpm(proof: bytes) -> list[tuple[str, str]]:
    """What the endorsement says, not verified: the key's Name and the registers, as a trust file would pin them."""
    _, _, public, values = _parts(proof)
    registers = [(f"register {index}", value.hex()) for index, value in values.items() if isinstance(value, bytes)]
    return [("TPM key", parse_public(public).name.hex()), *registers]


def _parts(proof: bytes) -> tuple[bytes, bytes, bytes, Mapping[int | str, cbor.Value]]:
    match cbor.decode(proof):
        case [bytes() as attest, bytes() as signature, bytes() as public, dict() as values]:
            return attest, signature, public, values
    raise DecodeError("a TPM endorsement is malformed")


def parse_quote(attest: bytes) -> Quote:
    """Raises DecodeError for anything but a quote over one selection of the SHA-256 bank."""
    reader = Reader(attest, order=">")
    if reader.number(4) != GENERATED or reader.number(2) != ATTEST_QUOTE:
        raise DecodeError("it is no quote that a TPM made")
    reader.sized()  # the signer's qualified name: says in which hierarchy, which nobody asks
    extra_data = reader.sized()
    reader.take(_CLOCK_INFO + _FIRMWARE)
    if reader.number(4) != 1 or reader.number(2) != ALG_SHA256:
        raise DecodeError("the quote is not over the SHA-256 registers alone")
    mask = int.from_bytes(reader.sized(1), "little")
    digest = reader.sized()
    reader.end()
    selected = tuple(index for index in range(mask.bit_length()) if mask >> index & 1)
    return Quote(extra_data=extra_data, selected=selected, pcr_digest=digest)


def parse_public(public: bytes) -> AttestationKey:
    """Raises DecodeError for a malformed public area, EvidenceError for a key that could sign what no TPM states."""
    reader = Reader(public, order=">")
    kind, name_algorithm, attributes = reader.number(2), reader.number(2), reader.number(4)
    reader.sized()  # the policy of its use
    if name_algorithm != ALG_SHA256:
        raise DecodeError("a TPM key is named by another digest than SHA-256")
    if attributes & _NEEDED != _NEEDED or attributes & DECRYPT:
        raise _refused("the TPM key is not restricted to what its TPM states")
    if reader.number(2) != ALG_NULL:
        raise DecodeError("a TPM signing key has no symmetric algorithm")
    if reader.number(2) != ALG_NULL:
        reader.number(2)  # the scheme's digest; the signature names its own
    key = _rsa(reader) if kind == ALG_RSA else _elliptic(reader, kind)
    reader.end()
    return AttestationKey(name=name_algorithm.to_bytes(2, "big") + hashlib.sha256(public).digest(), key=key)


def verify_tpm_signature(signature: bytes, message: bytes, key: PublicKey) -> None:
    """A TPMT_SIGNATURE over the message; raises EvidenceError or DecodeError."""
    reader = Reader(signature, order=">")
    scheme, digest = reader.number(2), _HASHES.get(reader.number(2))
    if digest is None:
        raise DecodeError("a quote is signed with a digest that is not accepted")
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and scheme == ALG_ECDSA:
            r, s = (int.from_bytes(reader.sized(), "big") for _ in range(2))
            reader.end()
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(digest()))
            return
        if isinstance(key, rsa.RSAPublicKey) and scheme in (ALG_RSASSA, ALG_RSAPSS):
            raw = reader.sized()
            reader.end()
            pss = padding.PSS(mgf=padding.MGF1(digest()), salt_length=padding.PSS.AUTO)
            key.verify(raw, message, pss if scheme == ALG_RSAPSS else padding.PKCS1v15(), digest())
            return
    except InvalidSignature as error:
        raise _refused("the TPM's signature does not hold") from error
    raise DecodeError("a quote is signed in a way that does not fit its key")


def _registers(quote: Quote, values: Mapping[int | str, cbor.Value]) -> dict[int, bytes]:
    """The registers' values, once they are those that were quoted (Part 3, TPM2_Quote: a digest in ascending order)."""
    found = {index: values.get(index) for index in quote.selected}
    if set(values) != set(quote.selected):
        raise DecodeError("a quote is not about the registers that are given with it")
    told: dict[int, bytes] = {}
    for index, value in found.items():
        if not isinstance(value, bytes) or len(value) != 32:
            raise DecodeError("a register's value is malformed")
        told[index] = value
    if hashlib.sha256(b"".join(told[index] for index in sorted(told))).digest() != quote.pcr_digest:
        raise _refused("the registers' values are not those that were quoted")
    return told


def _rsa(reader: Reader) -> rsa.RSAPublicKey:
    bits, exponent = reader.number(2), reader.number(4)
    modulus = int.from_bytes(reader.sized(), "big")
    if bits < _MIN_RSA_BITS or modulus.bit_length() != bits:
        raise DecodeError("a TPM's RSA key is too small or malformed")
    try:
        return rsa.RSAPublicNumbers(exponent or _DEFAULT_EXPONENT, modulus).public_key()
    except ValueError as error:
        raise DecodeError("a TPM's RSA key is malformed") from error


def _elliptic(reader: Reader, kind: int) -> ec.EllipticCurvePublicKey:
    curve = _CURVES.get(reader.number(2))
    if kind != ALG_ECC or curve is None or reader.number(2) != ALG_NULL:
        raise DecodeError("a TPM key is of a kind that is not accepted")
    x, y = (int.from_bytes(reader.sized(), "big") for _ in range(2))
    try:
        return ec.EllipticCurvePublicNumbers(x, y, curve()).public_key()
    except ValueError as error:
        raise DecodeError("a TPM's elliptic-curve key is malformed") from error


def _refused(why: str) -> EvidenceError:
    return EvidenceError(why, code="endorsement-signature")
