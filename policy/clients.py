"""`[[client]]` of tenants.toml: what a client certificate stands for, by its names and the authority behind it.

    certificate = "DNS:robot.example.org"            that very name
    certificate = "URI:spiffe://example.org/ward/*"  every SPIFFE ID below that path (SPIFFE-ID, section 2)
    authority = "partner"                            only below pki/authorities/partner.pem; left out: below pki/ca.pem
    subject_from = "certificate"                     the subject is the name itself, not a fixed text

For one name the most specific rule counts: the very name before a path, a longer path before a shorter one, a rule that
names the authority before one for any ("*"). If a certificate still stands for two, it stands for nobody.

Trusts: that the certificate was verified, and that its names and authorities were read from it. Never: guesses between
two rules, lets one authority make another's clients unless a rule says so, or takes a certificate with several URIs for
a SPIFFE identity (X509-SVID, section 2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

from policy.entities import Role
from policy.errors import PolicyFileError
from policy.limits import MAX_PURPOSES
from policy.toml import Name
from sealgate.limits import MAX_NAME

_CertificateName = Annotated[str, msgspec.Meta(pattern=r"^(URI|DNS|email|CN):[\x21-\x7e]{1,512}\Z")]

_SPIFFE_ID = re.compile(r"spiffe://[a-z0-9._-]{1,255}((?:/[A-Za-z0-9._-]+)*)")
_SUBJECT = re.compile(rf"[\x21-\x7e]{{1,{MAX_NAME}}}")
_BELOW = "/*"
_ANY = "*"


class CertificateClient(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a client certificate with this name stands for. `subject` is set in every client that is handed out."""

    certificate: _CertificateName
    tenant: Name
    subject: Annotated[str, msgspec.Meta(pattern=rf"^[\x21-\x7e]{{0,{MAX_NAME}}}\Z")] = ""
    subject_from: Annotated[str, msgspec.Meta(pattern=r"^(rule|certificate)\Z")] = "rule"
    authority: Annotated[str, msgspec.Meta(pattern=rf"^(\*|[A-Za-z0-9._-]{{1,{MAX_NAME}}})\Z")] = "ca"
    roles: Annotated[tuple[Role, ...], msgspec.Meta(min_length=1, max_length=len(Role))]
    purposes: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_PURPOSES)] = ()


@dataclass(frozen=True)
class ClientRules:
    """Every `[[client]]` by name (or by path, with its last "/") and authority."""

    exact: Mapping[tuple[str, str], CertificateClient]
    below: Mapping[tuple[str, str], CertificateClient]

    def __len__(self) -> int:
        return len(self.exact) + len(self.below)

    def client_of(self, names: Iterable[str], authorities: frozenset[str]) -> CertificateClient | None:
        """Whom a VERIFIED certificate with these names, issued below these authorities, stands for; None: nobody."""
        distinct = tuple(dict.fromkeys(names))
        uris = sum(name.startswith("URI:") for name in distinct)
        if uris > 1 and any(name.lower().startswith("uri:spiffe:") for name in distinct):
            return None
        found: dict[tuple[object, ...], CertificateClient] = {}
        for name in distinct:
            for client in self._by_name(name, authorities):
                found[client.tenant, client.subject, client.roles, client.purposes] = client
        return next(iter(found.values())) if len(found) == 1 else None

    def _by_name(self, name: str, authorities: frozenset[str]) -> Iterator[CertificateClient]:
        """What the most specific rules make of one name: more than one only if several authorities stand behind it."""
        for rules, key in self._places(name):
            named = [rules[key, authority] for authority in authorities if (key, authority) in rules]
            most_specific = named or [rule for rule in (rules.get((key, _ANY)),) if rule is not None]
            if most_specific:
                yield from (client for rule in most_specific if (client := _client(rule, name)) is not None)
                return

    def _places(self, name: str) -> Iterator[tuple[Mapping[tuple[str, str], CertificateClient], str]]:
        """Where rules for a name may stand, the most specific first."""
        yield self.exact, name
        if is_spiffe_id(name.removeprefix("URI:")):
            path, _, last = name.rpartition("/")
            while last and not path.endswith(":/"):  # down to the trust domain
                yield self.below, f"{path}/"
                path, _, last = path.rpartition("/")


def is_spiffe_id(text: str) -> bool:
    """Whether the text is a SPIFFE ID of a workload: a trust domain and a path (SPIFFE-ID, section 2)."""
    match = _SPIFFE_ID.fullmatch(text)
    return match is not None and bool(match[1]) and not {".", ".."} & set(match[1].split("/"))


def _client(rule: CertificateClient, name: str) -> CertificateClient | None:
    if rule.subject_from == "rule":
        return rule
    subject = name.partition(":")[2]
    return msgspec.structs.replace(rule, subject=subject) if _SUBJECT.fullmatch(subject) else None


def client_rules(items: Iterable[CertificateClient], *, name: str) -> ClientRules:
    """The rules of a file; `name` is what errors call it. Raises PolicyFileError."""
    exact: dict[tuple[str, str], CertificateClient] = {}
    below: dict[tuple[str, str], CertificateClient] = {}
    for index, item in enumerate(items):
        where = f"{name}: client[{index}]"
        rules, key = _place(item.certificate, exact=exact, below=below, where=where)
        if (key, item.authority) in rules:
            raise PolicyFileError(f"{where}.certificate: '{item.certificate}' is there twice")
        if bool(item.subject) == (item.subject_from == "certificate"):
            raise PolicyFileError(
                f'{name}: give either `subject` or `subject_from = "certificate"` - at `client[{index}].subject`'
            )
        rules[key, item.authority] = item
    return ClientRules(exact, below)


def _place(
    certificate: str,
    *,
    exact: dict[tuple[str, str], CertificateClient],
    below: dict[tuple[str, str], CertificateClient],
    where: str,
) -> tuple[dict[tuple[str, str], CertificateClient], str]:
    kind, _, value = certificate.partition(":")
    if kind != "URI" or not (value.lower().startswith("spiffe:") or "*" in value):
        return exact, certificate
    path = value.removesuffix(_BELOW)
    if path != value and is_spiffe_id(f"{path}/workload"):
        return below, f"{kind}:{path}/"
    if is_spiffe_id(value):
        return exact, certificate
    raise PolicyFileError(f"{where}.certificate: '{certificate}' is neither a SPIFFE ID nor a path of them with '/*'")
