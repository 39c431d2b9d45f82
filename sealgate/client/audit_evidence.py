"""`sealgate audit checkpoint` and `verify`: keep what the log signed, and verify evidence offline.

`verify` needs no network and no credential: the trust file's log keys decide. Never: prints "verified" for what was
skipped, or writes over a kept checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sealgate.client.audit_output import JSON_HELP, finish, format_json, open_client, read_bounded, replace_file


def configure(commands: Any) -> None:
    """Add them."""
    checkpoint = commands.add_parser("checkpoint", help="the newest signed checkpoint", description=_checkpoint.__doc__)
    checkpoint.add_argument("--out", type=Path, metavar="FILE", help="keep it, for the next audit")
    checkpoint.add_argument("--kept", type=Path, metavar="FILE", help="prove that the log only grew since this one")
    checkpoint.add_argument("--cosigned", action="store_true", help="the newest one that the log's witnesses cosigned")
    checkpoint.add_argument("--json", action="store_true", help=JSON_HELP)
    finish(checkpoint, _checkpoint, online=True)

    verify = commands.add_parser("verify", help="verify a bundle, offline", description=_verify.__doc__)
    verify.add_argument("bundle", type=Path, metavar="BUNDLE", help="what `sealgate audit export` wrote")
    verify.add_argument("--strict", action="store_true", help="a skipped step is a failure")
    verify.add_argument("--receipt", type=Path, action="append", default=[], metavar="FILE", help="must be in the log")
    verify.add_argument("--kept", type=Path, metavar="FILE", help="checkpoint kept from an earlier audit")
    verify.add_argument("--witness-policy", type=Path, metavar="FILE", help="whose cosignatures count (tlog-policy)")
    verify.add_argument("--cosigned", type=Path, metavar="FILE", help="the checkpoint that witnesses cosigned")
    verify.add_argument("--json", action="store_true", help=JSON_HELP)
    finish(verify, _verify, online=False)


def _checkpoint(arguments: argparse.Namespace) -> int:
    """Fetch the newest checkpoint and verify its signature; with --kept, prove that the log only grew since then."""
    from sealgate.client.errors import UsageError
    from sealgate.limits import MAX_NOTE
    from sealgate.terminal import render_pairs
    from sealgate.transparency.published import strength

    if arguments.out is not None and arguments.out.exists():
        raise UsageError(f"{arguments.out} exists; a kept checkpoint is never replaced: name another file")
    if arguments.cosigned and arguments.kept is not None:
        raise UsageError("--kept proves growth to the newest checkpoint, which no witness may have seen yet")
    grown = ""
    with open_client(arguments) as client:
        if arguments.kept is None:
            verified = client.checkpoint(cosigned=arguments.cosigned)
        else:
            old, verified = client.prove_growth(read_bounded(arguments.kept, MAX_NOTE))
            grown = f"only grew, from {old.checkpoint.size} to {verified.checkpoint.size} records"
    if arguments.out is not None:
        replace_file(arguments.out, verified.note)
    checkpoint = verified.checkpoint
    document = {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}
    if arguments.json:
        print(format_json(document | ({"grown": grown} if grown else {})))
    else:
        signed = f"{', '.join(verified.signers)} ({strength(checkpoint.origin, client.trust.log_mldsa_keys)})"
        pairs = [*document.items(), ("signed by", signed)]
        pairs += [("proven", grown)] if grown else []
        print(render_pairs([*pairs, *([("kept in", str(arguments.out))] if arguments.out is not None else [])]))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    """Verify an evidence bundle without the service: signature, every record, the tree, ends, workers, receipts."""
    from sealgate.client.errors import UsageError
    from sealgate.evidence.trust import load_trust
    from sealgate.limits import MAX_NOTE, MAX_RECEIPT
    from sealgate.transparency.verifier import LogTrust, verify_bundle
    from sealgate.transparency.witness_policy import load_witness_policy

    if arguments.cosigned is not None and arguments.witness_policy is None:
        raise UsageError("--cosigned needs --witness-policy: whose cosignatures count?")
    trust = load_trust(arguments.trust)
    kept = None if arguments.kept is None else read_bounded(arguments.kept, MAX_NOTE)
    receipts = [read_bounded(path, MAX_RECEIPT) for path in arguments.receipt]
    log_trust = LogTrust(
        verifiers=trust.log_keys,
        mldsa_keys=trust.log_mldsa_keys,
        kept_checkpoint=kept,
        witnesses=None if arguments.witness_policy is None else load_witness_policy(arguments.witness_policy),
        cosigned_checkpoint=None if arguments.cosigned is None else read_bounded(arguments.cosigned, MAX_NOTE),
    )
    report = verify_bundle(arguments.bundle, log_trust, arguments.strict, receipts)
    skipped = [step for step in report.steps if step.status == "skipped"]
    if arguments.json:
        steps = [
            {"number": step.number, "name": step.name, "status": step.status, "detail": step.detail}
            for step in report.steps
        ]
        document = {"ok": report.ok, "strict": report.strict, "records": _covered(report), "steps": steps}
        print(format_json(document | {"limits": report.limits}))
    else:
        _print_report(report, skipped)
    return 0 if report.ok else 1


def _print_report(report: Any, skipped: list[Any]) -> None:
    from sealgate.terminal import printable

    for line in report.lines():
        print(printable(line))
    if not report.ok:
        failed = len(report.failures) - (len(skipped) if report.strict else 0)
        more = f"{len(skipped)} were skipped, which --strict does not accept" if report.strict and skipped else ""
        held = f"{failed} of {len(report.steps)} steps do not hold" if failed else ""
        print(f"\nREFUSED: {', '.join(filter(None, (held, more)))}")
    elif skipped:
        names = ", ".join(str(step.number) for step in skipped)
        print(f"\nNothing that was checked is wrong, but steps were skipped ({names}): not fully verified")
    else:
        checkpoint = report.require()
        held = f"records {report.first} to {report.last} of the {checkpoint.size} of {checkpoint.origin}"
        print()
        print(printable(f"VERIFIED: all {len(report.steps)} steps hold for {held}"))


def _covered(report: Any) -> dict[str, Any] | None:
    """What part of which log a report is about: a bundle of three records proves nothing about the fourth."""
    checkpoint = report.checkpoint
    if checkpoint is None:
        return None
    return {"origin": checkpoint.origin, "first": report.first, "last": report.last, "size": checkpoint.size}
