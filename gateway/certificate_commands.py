"""`sealgate certificate`: the deployment's own authority, and which certificates do not count any more.

Light at import; the work is imported when it is done. Trusts: whoever may write the state directory. Never: prints a
key, or says that a revocation is on record when it is not.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from sealgate.command import Command

if TYPE_CHECKING:
    import datetime

    from cryptography import x509

    from gateway.own_authority import Shown

_REASONS = {
    "unspecified": "unspecified",
    "key-compromise": "key_compromise",
    "superseded": "superseded",
    "affiliation-changed": "affiliation_changed",
    "cessation-of-operation": "cessation_of_operation",
}
_DAYS = 397


def _configure(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="certificate_command", metavar="WHAT", required=True)

    one = what.add_parser("issue", help="a new client certificate")
    _state(one)
    one.add_argument("name", metavar="NAME", help="of its files in STATE/pki/clients")
    one.add_argument(
        "--san",
        action="append",
        default=[],
        metavar="KIND:VALUE",
        help="an alternative name, as [[client]] of tenants.toml maps it: URI:..., DNS:... or email:...; may be "
        "repeated (default: URI:urn:sealgate:client:NAME)",
    )
    _days(one)

    one = what.add_parser("renew", help="a new key and certificate for the same names")
    _state(one)
    one.add_argument("name", metavar="NAME", help="a client's, or `server` for the gateway's own")
    one.add_argument("--revoke", action="store_true", help="refuse the old certificate from now on")
    _days(one)

    one = what.add_parser("revoke", help="refuse a client certificate from now on")
    _state(one)
    one.add_argument("target", metavar="NAME|FILE|FINGERPRINT", help="which certificate")
    one.add_argument("--reason", choices=_REASONS, default="unspecified", help="for the list and the record")
    one.add_argument("--note", default="", metavar="TEXT", help="why, for the record")

    one = what.add_parser("list", help="the client certificates, whom they stand for and until when")
    _state(one)
    one.add_argument("--json", action="store_true", help="the same for machines")

    one = what.add_parser("inspect", help="whether a client certificate counts now, for whom, and if not why")
    _state(one)
    one.add_argument("target", metavar="NAME|FILE", help="which certificate")


def _state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state", metavar="STATE", type=Path, help="the deployment's folder")


def _days(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--days", type=int, default=_DAYS, help="how long it lives (default and most: %(default)s)")


def _run(arguments: argparse.Namespace) -> int:
    work = {"issue": _issue, "renew": _renew, "revoke": _revoke, "list": _list, "inspect": _inspect}
    return work[arguments.certificate_command](arguments)


def _issue(arguments: argparse.Namespace) -> int:
    from gateway.own_authority import issue
    from sealgate.deployment import open_deployment

    deployment = open_deployment(arguments.state)
    shown = issue(deployment, arguments.name, names=tuple(arguments.san), days=arguments.days)
    _print_made(shown, deployment.pki / "clients" / f"{arguments.name}.pem")
    if shown.client is None:
        print("It stands for nobody yet. To give it a caller, add to policy/tenants.toml and apply that:")
        print(f'  [[client]]\n  certificate = "{shown.names[0]}"\n  tenant = "..."\n  subject = "..."')
        print('  roles = ["client"]\n  purposes = ["..."]')
    return 0


def _renew(arguments: argparse.Namespace) -> int:
    from gateway.authentication.authorities import fingerprint_of
    from gateway.own_authority import SERVER, renew
    from sealgate.deployment import open_deployment

    deployment = open_deployment(arguments.state)
    shown, old = renew(deployment, arguments.name, days=arguments.days)
    folder = deployment.pki if arguments.name == SERVER else deployment.pki / "clients"
    _print_made(shown, folder / f"{arguments.name}.pem")
    if arguments.name == SERVER:
        print("A gateway that runs shows it to new connections from now on.")
    elif arguments.revoke:
        return _refuse(arguments, old, reason="superseded", note="")
    else:
        print(f"The old one counts until {_day(old.not_valid_after_utc)}, unless you revoke it:")
        print(f"  sealgate certificate revoke {arguments.state} {fingerprint_of(old)}")
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    from gateway.own_authority import find
    from sealgate.deployment import open_deployment

    found = find(open_deployment(arguments.state), arguments.target)
    return _refuse(arguments, found, reason=arguments.reason, note=arguments.note)


def _refuse(arguments: argparse.Namespace, what: x509.Certificate | str, *, reason: str, note: str) -> int:
    from cryptography.x509 import ReasonFlags

    from gateway.own_authority import revoke
    from gateway.revocation_record import put_on_record
    from sealgate.deployment import open_deployment
    from sealgate.protocol.administration import CredentialRevoked

    deployment = open_deployment(arguments.state)
    done = revoke(deployment, what, reason=ReasonFlags[_REASONS[reason]])
    if done.before:
        print(f"{done.fingerprint} was revoked before (it is in {done.place})")
        return 0
    print(f"revoked: {done.fingerprint}, in {done.place}; in force now, on open connections too")
    note = "; ".join(filter(None, (reason, note)))
    put_on_record(deployment, CredentialRevoked(what="certificate", fingerprint=done.fingerprint, note=note))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from gateway.own_authority import certificates
    from sealgate.deployment import open_deployment
    from sealgate.terminal import render_table

    shown = certificates(open_deployment(arguments.state))
    if arguments.json:
        print(json.dumps([_plain(item) for item in shown], indent=2))
        return 0
    headings = ("name", "counts", "until", "stands for", "names", "fingerprint")
    rows = [
        (item.name, item.standing, _day(item.until), _caller(item), ", ".join(item.names), item.fingerprint[:16])
        for item in shown
    ]
    print(render_table(headings, rows))
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from gateway.own_authority import explain, find
    from sealgate.deployment import open_deployment
    from sealgate.errors import ConfigurationError
    from sealgate.terminal import render_pairs

    deployment = open_deployment(arguments.state)
    found = find(deployment, arguments.target)
    if isinstance(found, str):
        raise ConfigurationError("a fingerprint says nothing about its certificate: name its file")
    shown, reasons = explain(deployment, found)
    pairs: list[tuple[str, object]] = [("counts", "yes" if shown.standing == "good" else "no")]
    if shown.standing != "good":
        pairs += [("reason", shown.standing), *(("", reason) for reason in reasons)]
    pairs += [
        ("names", ", ".join(shown.names) or "none"),
        ("stands for", _caller(shown)),
        ("until", _day(shown.until)),
        ("fingerprint", shown.fingerprint),
    ]
    print(render_pairs(pairs))
    return 0 if shown.standing == "good" and shown.client is not None else 1


def _plain(item: Shown) -> dict[str, object]:
    client = item.client
    return {
        "name": item.name,
        "names": list(item.names),
        "fingerprint": item.fingerprint,
        "until": item.until.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "standing": item.standing,
        "tenant": None if client is None else client.tenant,
        "subject": None if client is None else client.subject,
    }


def _print_made(shown: Shown, path: Path) -> None:
    print(f"wrote {path} and {path.with_suffix('.key').name} (0600)")
    print(f"  names        {', '.join(shown.names)}")
    print(f"  until        {_day(shown.until)}")
    print(f"  fingerprint  {shown.fingerprint}")
    if shown.client is not None:
        print(f"  stands for   {_caller(shown)}")


def _caller(shown: Shown) -> str:
    return "nobody" if shown.client is None else f"{shown.client.tenant}/{shown.client.subject}"


def _day(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%d}"


CERTIFICATE = Command(
    summary="issue, renew, revoke and list client certificates",
    description="Works with the deployment's own certificate authority in STATE/pki. A gateway that runs takes every "
    "change at once, without a restart; a revocation is also put on record by the runtime host, if it runs.",
    configure=_configure,
    run=_run,
    extra="server",
)
