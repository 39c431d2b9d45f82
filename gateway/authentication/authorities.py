"""Which authorities count for client certificates now, and whether a certificate stands below one of them.

    pki/ca.pem                  the authority named "ca"
    pki/authorities/NAME.pem    further ones: each file holds one certificate or several, each of them an anchor
    pki/crl/                    revocation lists: *.pem, *.crl, *.der

All of them are read again when they change, without a restart; what was read together is one `Generation`. A file of
authorities that cannot be read, or holds none, leaves what it held before in force and is reported: a slip in adding
one must not lock everybody out. To take one away is to remove its file, which counts whatever is wrong with others.
Revocation lists that cannot be read mean that nobody's certificate counts until they can: what they would have said is
not known.

Trusts: whoever may write these files. Never: takes an end certificate for an authority, or asks the network.
"""

from __future__ import annotations

import datetime
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification

from gateway.authentication.revocation_lists import RevocationLists, is_authority, parse_lists
from gateway.authentication.watched_files import Contents, WatchedFiles
from gateway.errors import Unauthenticated
from gateway.limits import MAX_ANCHORS, MAX_AUTHORITIES, MAX_AUTHORITY_FILE, MAX_CHAIN, MAX_CRL_FILE, MAX_CRL_FILES
from sealgate.ambient import Clock, now_us
from sealgate.errors import ConfigurationError

FOLDER = "authorities"
BUILT_IN = "ca"  # the name of pki/ca.pem
_SUFFIXES = (".pem", ".crl", ".der")
LIST_SUFFIXES = (*_SUFFIXES, *(suffix.upper() for suffix in _SUFFIXES))  # one passed over would be one not obeyed

_Parsed = TypeVar("_Parsed")

_ANY_NAME = verification.ExtensionPolicy.webpki_defaults_ee().may_be_present(
    x509.SubjectAlternativeName, verification.Criticality.AGNOSTIC, None
)  # a certificate may be known by its common name alone (`gateway.pki.certificate_names`)
_AUTHORITY = verification.ExtensionPolicy.webpki_defaults_ca()


@dataclass(frozen=True)
class Authority:
    """A name, and the certificates that it stands for."""

    name: str
    anchors: tuple[x509.Certificate, ...]
    store: verification.Store


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What was in force together. `lists` is None while revocation lists cannot be read."""

    number: int
    authorities: tuple[Authority, ...]
    lists: RevocationLists | None

    @property
    def pem(self) -> str:
        """Every anchor, for a TLS context."""
        anchors = (anchor for authority in self.authorities for anchor in authority.anchors)
        return "".join(anchor.public_bytes(Encoding.PEM).decode("ascii") for anchor in anchors)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A certificate was good under these authorities, and is in the same generation from `from_us` to `until_us`.

    `path` holds the fingerprints of the certificate and of every one between it and the anchors, these included.
    """

    authorities: frozenset[str]
    path: frozenset[str]
    from_us: int
    until_us: int


class Authorities:
    """One per process and use. `report` is told, in words, when changed files cannot be used, and when they can."""

    def __init__(
        self, pki: Path, *, crl: str, clock: Clock = now_us, report: Callable[[str], None] = lambda _: None
    ) -> None:
        """Raises ConfigurationError: nothing starts without authorities and lists that can be read."""
        self._pki = pki
        self._crl = crl
        self._report = report
        self._anchors_trouble = self._lists_trouble = self._told = ""
        self._expected: frozenset[bytes] = frozenset()  # issuers that had a list: one must be there from then on
        self._anchors = WatchedFiles(
            pki / "ca.pem",
            folder=pki / FOLDER,
            suffixes=(".pem",),
            files_max=MAX_AUTHORITIES,
            bytes_max=MAX_AUTHORITY_FILE,
            clock=clock,
        )
        self._lists = WatchedFiles(
            folder=pki / "crl", suffixes=LIST_SUFFIXES, files_max=MAX_CRL_FILES, bytes_max=MAX_CRL_FILE, clock=clock
        )
        try:
            authorities = tuple(_parse_authority(*file) for file in (self._anchors.changed() or {}).items())
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the authorities for client certificates cannot be used: {words_of(error)}"
            ) from error
        if not authorities:
            raise ConfigurationError(f"the certificates in {pki} cannot be used: there is no ca.pem")
        try:
            lists = self._parse_lists(self._changed_lists() or {})
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"the revocation lists cannot be used: {words_of(error)}") from error
        self._expected = lists.expected
        self._generation = Generation(number=1, authorities=authorities, lists=lists)

    def current(self) -> Generation:
        """What is in force now. Looks at the files on every question."""
        before = self._generation
        authorities, lists = before.authorities, before.lists
        try:
            if (contents := self._anchors.changed()) is not None:
                self._anchors_trouble = ""
                authorities = tuple(self._reread(contents, before.authorities))
        except (OSError, ValueError) as error:
            self._anchors_trouble = f"authorities stay as they were: {words_of(error)}"
            left = tuple(item for item in before.authorities if not _is_gone(self._file_of(item)))
            authorities = authorities if len(left) == len(authorities) else left
        try:
            if (contents := self._changed_lists()) is not None:
                # Whatever comes of reading them: what was said before does not count any more.
                self._generation = before = replace(before, number=before.number + 1, lists=None)
                lists = self._parse_lists(contents)
                self._lists_trouble = ""
        except (OSError, ValueError) as error:
            lists = None
            self._lists_trouble = f"no client certificate counts: {words_of(error)}"
        if authorities is not before.authorities or lists is not before.lists:
            if lists is not None:
                self._expected = lists.expected
            self._generation = Generation(number=before.number + 1, authorities=authorities, lists=lists)
        self._tell()
        return self._generation

    def _reread(self, contents: Contents, before: tuple[Authority, ...]) -> Iterator[Authority]:
        """What is in the files now; of a file that cannot be used, what was in it before."""
        kept = {self._file_of(authority): authority for authority in before}
        for path, data in contents.items():
            try:
                yield _parse_authority(path, data)
            except ValueError as error:
                self._anchors_trouble = f"authorities stay as they were: {error}"
                if path in kept:
                    yield kept[path]

    def _file_of(self, authority: Authority) -> Path:
        return self._pki / "ca.pem" if authority.name == BUILT_IN else self._pki / FOLDER / f"{authority.name}.pem"

    def _changed_lists(self) -> Contents | None:
        return None if self._crl == "off" else self._lists.changed()

    def _parse_lists(self, contents: Contents) -> RevocationLists:
        parsed = [item for _, items in _each(contents, parse_lists) for item in items]
        return RevocationLists(parsed, required=self._crl == "required", expected=self._expected)

    def _tell(self) -> None:
        """Say what is wrong when it begins, and once more when it has ended."""
        trouble = "; ".join(filter(None, (self._anchors_trouble, self._lists_trouble)))
        if trouble != self._told:
            self._told = trouble
            self._report(trouble or "authorities and revocation lists are as they should be")


def judge(
    generation: Generation, leaf: x509.Certificate, others: Sequence[x509.Certificate], *, now_us: int
) -> Judgement:
    """Whether the certificate is good now (RFC 5280 section 6). Raises Unauthenticated with the reason."""
    if generation.lists is None:
        raise Unauthenticated("crl-unreadable")
    if not _us(leaf.not_valid_before_utc) <= now_us < _us(leaf.not_valid_after_utc):
        raise Unauthenticated("certificate-expired")
    found: list[Judgement] = []
    refused: Unauthenticated | None = None
    for authority in generation.authorities:
        chain = _chain(authority, leaf, others, now_us=now_us)
        if chain is None:
            continue
        try:
            until_us = _listed_until(generation.lists, chain, now_us=now_us)
        except Unauthenticated as refusal:
            if refusal.code == "certificate-revoked":
                raise
            refused = refusal
            continue
        found.append(
            Judgement(
                authorities=frozenset({authority.name}),
                path=frozenset(fingerprint_of(item) for item in chain),
                from_us=max(_us(item.not_valid_before_utc) for item in chain),
                until_us=min(until_us, *(_us(item.not_valid_after_utc) for item in chain)),
            )
        )
    if not found:
        raise refused or Unauthenticated("certificate-untrusted")
    return Judgement(
        authorities=frozenset[str]().union(*(item.authorities for item in found)),
        path=frozenset[str]().union(*(item.path for item in found)),
        from_us=max(item.from_us for item in found),
        until_us=min(item.until_us for item in found),
    )


def _chain(
    authority: Authority, leaf: x509.Certificate, others: Sequence[x509.Certificate], *, now_us: int
) -> list[x509.Certificate] | None:
    """The path from the certificate to an anchor, if there is one."""
    try:
        return _verified(authority, leaf, others, now_us=now_us)
    except (verification.VerificationError, ValueError, UnsupportedAlgorithm):
        return None


def objections(generation: Generation, leaf: x509.Certificate, *, now_us: int) -> dict[str, str]:
    """Why no path leads to each authority, in the verifier's words: for the operator's own commands alone."""
    found: dict[str, str] = {}
    for authority in generation.authorities:
        try:
            _verified(authority, leaf, (), now_us=now_us)
        except (verification.VerificationError, ValueError, UnsupportedAlgorithm) as error:
            found[authority.name] = _in_words(str(error))
    return found


def _in_words(said: str) -> str:
    if "no interior errors" in said:
        return "is not its issuer"
    plain = said.partition(" (encountered")[0].replace("validation failed: ", "").replace("candidates exhausted: ", "")
    return plain.replace("2.5.29.15:", "2.5.29.15 (key usage):")


def _verified(
    authority: Authority, leaf: x509.Certificate, others: Sequence[x509.Certificate], *, now_us: int
) -> list[x509.Certificate]:
    moment = datetime.datetime.fromtimestamp(now_us // 1_000_000, datetime.UTC)
    builder = verification.PolicyBuilder().store(authority.store).time(moment).max_chain_depth(MAX_CHAIN)
    builder = builder.extension_policies(ca_policy=_AUTHORITY, ee_policy=_ANY_NAME)
    return builder.build_client_verifier().verify(leaf, list(others)).chain


def _listed_until(lists: RevocationLists, chain: list[x509.Certificate], *, now_us: int) -> int:
    """The first nextUpdate of the lists about this path. An anchor is trusted by its file, not by a list."""
    until_us = _us(chain[0].not_valid_after_utc)
    for certificate, issuer in itertools.pairwise(chain):
        listed = lists.until_us(certificate, issuer, now_us=now_us)
        until_us = until_us if listed is None else min(until_us, listed)
    return until_us


def _parse_authority(path: Path, data: bytes) -> Authority:
    further = path.parent.name == FOLDER
    if further and path.stem == BUILT_IN:
        raise ValueError(f"{path} has the name that stands for pki/ca.pem")
    ((_, anchors),) = _each({path: data}, _parse_anchors)
    return Authority(path.stem if further else BUILT_IN, anchors, verification.Store(list(anchors)))


def _is_gone(path: Path) -> bool:
    """Whether the file is not there. One that may not be looked at is."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def _parse_anchors(data: bytes) -> tuple[x509.Certificate, ...]:
    try:
        anchors = tuple(x509.load_pem_x509_certificates(data))
        authorities = [is_authority(anchor) for anchor in anchors]
    except (ValueError, x509.DuplicateExtension, x509.InvalidVersion) as error:
        raise ValueError("is not a certificate in PEM form") from error
    if len(anchors) != data.count(b"-----BEGIN "):
        raise ValueError("holds something other than whole certificates")
    if len(anchors) > MAX_ANCHORS:
        raise ValueError(f"holds more than {MAX_ANCHORS} certificates")
    if not all(authorities):
        raise ValueError("holds a certificate that is not an authority's")
    return anchors


def _each(
    contents: Contents, parse: Callable[[bytes], tuple[_Parsed, ...]]
) -> Iterator[tuple[Path, tuple[_Parsed, ...]]]:
    for path, data in contents.items():
        try:
            yield path, parse(data)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from error


def fingerprint_of(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER form, lowercase hex: how lists and logs name a certificate."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def words_of(error: OSError | ValueError) -> str:
    """What is wrong with a file, in our words or the system's, never a library's."""
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)


def _us(moment: datetime.datetime) -> int:
    return int(moment.timestamp()) * 1_000_000
