"""The two signed statements of a bundle, as in-toto Statements v1: the certificate and the list of files.

Pure: builds and parses canonical bytes. Trusts: nothing. Never: reads a file.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from sealgate.certificate.refusals import refusal
from sealgate.certificate.schema import Certificate, Composition
from sealgate.errors import DecodeError
from sealgate.limits import MAX_CERTIFICATE
from sealgate.protocol.canonical import canonical_json, parse_canonical_json

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
CERTIFICATE_PREDICATE = "urn:sealgate:predicate:dp-certificate:v2"
BUNDLE_PREDICATE = "urn:sealgate:predicate:model-bundle:v1"
COMPOSITION_PREDICATE = "urn:sealgate:predicate:dp-composition:v1"
PIPELINE_PREDICATE = "urn:sealgate:predicate:model-pipeline:v1"
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

P = TypeVar("P")


class BundleFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The predicate of `bundle.sig`: which model these files are. The digests stand in the statement's subject."""

    name: str
    version: str


class _Digest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str


class _Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    digest: _Digest


class _Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    type_: str = msgspec.field(name="_type")
    subject: tuple[_Subject, ...]
    predicateType: str  # noqa: N815 - the name that the standard gives
    predicate: Any


def _statement(
    predicate_type: str, predicate: Certificate | Composition | BundleFiles, digests: dict[str, str]
) -> bytes:
    return canonical_json(
        _Statement(
            type_=STATEMENT_TYPE,
            subject=tuple(_Subject(name, _Digest(digests[name])) for name in sorted(digests)),
            predicateType=predicate_type,
            predicate=predicate,
        )
    )


def certificate_statement(certificate: Certificate, digests: dict[str, str]) -> bytes:
    """Canonical bytes of the certificate over the named files (hex SHA-256 by file name)."""
    return _statement(CERTIFICATE_PREDICATE, certificate, digests)


def bundle_statement(files: BundleFiles, digests: dict[str, str]) -> bytes:
    """Canonical bytes of the statement that lists every file of a bundle."""
    return _statement(BUNDLE_PREDICATE, files, digests)


def _parse(payload: bytes, predicate_type: str, kind: type[P], malformed: str) -> tuple[P, dict[str, str]]:
    try:
        statement = msgspec.convert(parse_canonical_json(payload, limit=MAX_CERTIFICATE), _Statement)
        if statement.type_ != STATEMENT_TYPE or statement.predicateType != predicate_type:
            raise DecodeError("another kind of statement")
        digests = {subject.name: subject.digest.sha256 for subject in statement.subject}
        if len(digests) != len(statement.subject) or not all(map(_SHA256.match, digests.values())):
            raise DecodeError("subjects are malformed")
    except (DecodeError, msgspec.ValidationError) as error:
        raise refusal("statement-malformed", "a signed payload is not the in-toto statement it should be") from error
    try:
        predicate = msgspec.convert(statement.predicate, kind)
    except msgspec.ValidationError as error:
        raise refusal(malformed, "a signed predicate has not the known shape") from error
    return predicate, digests


def parse_certificate_statement(payload: bytes) -> tuple[Certificate, dict[str, str]]:
    """Certificate and subject digests; raises CertificateError."""
    return _parse(payload, CERTIFICATE_PREDICATE, Certificate, "certificate-malformed")


def parse_bundle_statement(payload: bytes) -> tuple[BundleFiles, dict[str, str]]:
    """Model name and the digests of all files; raises CertificateError."""
    return _parse(payload, BUNDLE_PREDICATE, BundleFiles, "statement-malformed")


def composition_statement(composition: Composition, digests: dict[str, str]) -> bytes:
    """Canonical bytes of a pipeline's certificate over its manifest."""
    return _statement(COMPOSITION_PREDICATE, composition, digests)


def parse_composition_statement(payload: bytes) -> tuple[Composition, dict[str, str]]:
    """A pipeline's certificate and subject digests; raises CertificateError."""
    return _parse(payload, COMPOSITION_PREDICATE, Composition, "certificate-malformed")


def pipeline_statement(files: BundleFiles, digests: dict[str, str]) -> bytes:
    """Canonical bytes of the statement that lists a pipeline's files and its members' signatures."""
    return _statement(PIPELINE_PREDICATE, files, digests)


def parse_pipeline_statement(payload: bytes) -> tuple[BundleFiles, dict[str, str]]:
    """Model name and digests; raises CertificateError."""
    return _parse(payload, PIPELINE_PREDICATE, BundleFiles, "statement-malformed")
