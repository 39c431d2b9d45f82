"""What is behind `sealgate token revoke`, `restore` and `revocations`.

First the file, which gateways look at on every request, then the record: a revocation must not wait for a host that is
away. Trusts: whoever may write the state directory; a token's own text only for which token it is. Never: puts an
identifier of a person on record (of a caller, the host records the pseudonym), or hides that there is no record.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import msgspec

from gateway.authentication.issuers import load_issuers
from gateway.authentication.revocation_file import change_revocations, read_revocations, utc_seconds
from gateway.authentication.revocations import Revocation
from gateway.authentication.tokens import parse_unverified
from gateway.errors import Unauthenticated
from gateway.limits import MAX_LEEWAY_S, MAX_LIFETIME_S, MAX_TOKEN
from gateway.revocation_record import put_on_record
from policy.tenants import FILE as TENANTS_FILE
from policy.tenants import parse_tenants
from sealgate.ambient import now_us
from sealgate.client.times import parse_moment
from sealgate.deployment import Deployment, open_deployment
from sealgate.errors import ConfigurationError
from sealgate.protocol.administration import CredentialRevoked
from sealgate.terminal import printable, printable_json, render_table

# No token that exists now is accepted later than this, whatever its issuer's settings are.
_LONGEST_S = MAX_LIFETIME_S + 2 * MAX_LEEWAY_S


def revoke(arguments: argparse.Namespace) -> int:
    """Refuse what the arguments select, from now on."""
    deployment = open_deployment(arguments.state)
    now = now_us()
    entry = _entry(arguments, deployment, now=now)
    if arguments.issuer is not None:
        _require_issuer(deployment, arguments.issuer)
    until = _until(arguments, entry, now=now)
    if until is not None:
        entry = msgspec.structs.replace(entry, until=until)
    if entry.is_over(now):
        raise ConfigurationError("the revocation would end before it begins: no such token is accepted any more")
    change_revocations(
        deployment.tokens, lambda old: (*(item for item in old if not _same(item, entry)), entry), now=now
    )
    ends = f" until {utc_seconds(entry.until)}" if entry.until else ""
    print(f"revoked{ends}: {describe(entry)}")
    _record(deployment, entry, restored=False)
    return 0


def restore(arguments: argparse.Namespace) -> int:
    """Take back a revocation that was made with the same selection."""
    deployment = open_deployment(arguments.state)
    now = now_us()
    wanted = _entry(arguments, deployment, now=now)
    if not any(_same(item, wanted) for item in read_revocations(deployment.tokens)):
        raise ConfigurationError(
            f"nothing is revoked by exactly this: {describe(wanted)}; see: "
            f"sealgate token revocations {arguments.state} (a time is restored as it is written there)"
        )
    change_revocations(deployment.tokens, lambda old: tuple(item for item in old if not _same(item, wanted)), now=now)
    print(f"restored: {describe(wanted)}")
    _record(deployment, wanted, restored=True)
    return 0


def show(arguments: argparse.Namespace) -> int:
    """List what is revoked."""
    entries = read_revocations(open_deployment(arguments.state).tokens)
    now = now_us()
    if arguments.json:
        listed = [_plain(entry) | {"over": entry.is_over(now)} for entry in entries]
        print(printable_json(json.dumps(listed, indent=2)))
    elif not entries:
        print("nothing is revoked")
    else:
        rows = [(describe(entry), _ends(entry, now), entry.reason) for entry in entries]
        print(render_table(("revoked", "until", "reason"), rows))
    return 0


def describe(entry: Revocation) -> str:
    """An entry in plain words, safe to print."""
    words = [f"token {entry.jti}"] if entry.jti is not None else []
    words += [f"caller {entry.subject}"] if entry.subject is not None else []
    words = words or ["every token"]
    words += [f"of tenant {entry.tenant}"] if entry.tenant is not None else []
    words += [f"of issuer {entry.issuer}"] if entry.issuer is not None else []
    words += [f"issued before {utc_seconds(entry.issued_before)}"] if entry.issued_before is not None else []
    return printable(" ".join(words))


# The selection -------------------------------------------------------------------------------------------------------


def _entry(arguments: argparse.Namespace, deployment: Deployment, *, now: int) -> Revocation:
    fields: dict[str, Any] = {
        "jti": arguments.jti,
        "subject": arguments.subject,
        "tenant": arguments.tenant,
        "issuer": arguments.issuer,
        "reason": arguments.reason,
        "issued_before": _moment(arguments.issued_before, now=now) if arguments.issued_before else None,
    }
    if arguments.token_file is not None:
        fields |= _of_token(arguments.token_file)
    if arguments.every and fields["issued_before"] is None:
        raise ConfigurationError("--every needs --issued-before: a revocation must not refuse the tokens to come")
    if arguments.tenant is not None:
        _require_tenant(deployment, arguments.tenant)
    if any(isinstance(value, str) and not value.isprintable() for value in fields.values()):
        raise ConfigurationError("a selection and its reason are one line of printable text")
    try:
        return msgspec.convert({name: value for name, value in fields.items() if value is not None}, Revocation)
    except msgspec.ValidationError as error:
        raise ConfigurationError(str(error)) from error


def _of_token(path: Path) -> dict[str, Any]:
    """Which token the text in a file is. Its signature does not matter: the worst is to refuse a token that is not."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TOKEN + 2).decode("ascii").strip()
        _, payload = parse_unverified(text)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, Unauthenticated) as error:
        raise ConfigurationError(f"{path} holds no token") from error
    jti, issuer = payload.get("jti"), payload.get("iss")
    if not isinstance(jti, str) or not isinstance(issuer, str):
        raise ConfigurationError(f"the token in {path} has no id (jti); revoke its caller: --subject, --tenant")
    return {"jti": jti, "issuer": issuer}


def _require_tenant(deployment: Deployment, tenant: str) -> None:
    path = deployment.policy / TENANTS_FILE
    try:
        tenants = parse_tenants(path.read_bytes(), name=str(path)).tenants
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if tenant not in tenants:
        raise ConfigurationError(f"{path} has no tenant {tenant!r}; it has: {', '.join(sorted(tenants))}")


def _require_issuer(deployment: Deployment, issuer: str) -> None:
    known = load_issuers(deployment.tokens)
    if issuer not in known:
        raise ConfigurationError(f"there is no issuer {issuer!r}; there are: {', '.join(sorted(known))}")


def _until(arguments: argparse.Namespace, entry: Revocation, *, now: int) -> datetime.datetime | None:
    """When the entry may go: as asked, or when no token that it means can be accepted any more."""
    if arguments.until:
        return _moment(arguments.until, now=now)
    if entry.jti is not None:
        return _utc(now // 1_000_000 + _LONGEST_S)
    if entry.issued_before is not None:
        return _utc(math.ceil(entry.issued_before.timestamp()) + _LONGEST_S)
    return None


def _moment(text: str, *, now: int) -> datetime.datetime:
    """A time from the command line, rounded up to the whole second that `iat` is counted in."""
    moment = now if text == "now" else parse_moment(text, now_us=now)
    return _utc(-(-moment // 1_000_000))


def _utc(seconds: int) -> datetime.datetime:
    try:
        return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise ConfigurationError("the time is too far away") from error


def _same(one: Revocation, other: Revocation) -> bool:
    """Whether both select the same tokens."""
    return all(
        getattr(one, name) == getattr(other, name) for name in ("jti", "issuer", "tenant", "subject", "issued_before")
    )


def _plain(entry: Revocation) -> dict[str, Any]:
    found = msgspec.to_builtins(entry)
    times = {name: utc_seconds(value) for name in ("issued_before", "until") if (value := getattr(entry, name))}
    return dict(found) | times


def _ends(entry: Revocation, now: int) -> str:
    if entry.until is None:
        return "restored"
    return f"{utc_seconds(entry.until)}{' (over)' if entry.is_over(now) else ''}"


# The record ----------------------------------------------------------------------------------------------------------


def _record(deployment: Deployment, entry: Revocation, *, restored: bool) -> None:
    by_name = entry.jti is None and entry.subject is not None
    bounds = f"tokens issued before {utc_seconds(entry.issued_before)}" if entry.issued_before is not None else ""
    frame = CredentialRevoked(
        what="subject" if by_name else "token",
        fingerprint="" if by_name else hashlib.sha256((entry.jti or describe(entry)).encode()).hexdigest(),
        tenant=entry.tenant or "",
        subject=(entry.subject or "") if by_name else "",
        restored=restored,
        note="; ".join(filter(None, (bounds, entry.reason))),
    )
    put_on_record(deployment, frame)
