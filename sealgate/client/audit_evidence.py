"""`sealgate audit checkpoint` and `verify`: keep what the log signed, and verify evidence offline.

`verify` needs no network and no credential: the trust file's log keys decide. Never: prints "verified" for what was
skipped, or writes over a kept checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealgate.client.audit_logs import add_log, add_shard, asked_log
from sealgate.client.audit_output import JSON_HELP, finish, format_json, open_client, read_bounded, replace_file

if TYPE_CHECKING:
    from sealgate.transparency.several import SeveralReport
    from sealgate.transparency.verifier import Report


def configure(commands: Any) -> None:
    """Add them."""
    checkpoint = commands.add_parser("checkpoint", help="the newest signed checkpoint", description=_checkpoint.__doc__)
    checkpoint.add_argument("--out", type=Path, metavar="FILE", help="keep it, for the next audit")
    checkpoint.add_argument("--kept", type=Path, metavar="FILE", help="prove that the log only grew since this one")
    checkpoint.add_argument("--cosigned", action="store_true", help="the newest one that the log's witnesses cosigned")
    checkpoint.add_argument("--json", action="store_true", help=JSON_HELP)
    add_log(checkpoint, every=False)
    add_shard(checkpoint)
    finish(checkpoint, _checkpoint, online=True)

    verify = commands.add_parser("verify", help="verify bundles, offline", description=_verify.__doc__)
    verify.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="what `sealgate audit export` wrote")
    verify.add_argument("--strict", action="store_true", help="a skipped step is a failure")
    verify.add_argument("--receipt", type=Path, action="append", default=[], metavar="FILE", help="must be in the log")
    verify.add_argument(
        "--kept", type=Path, action="append", default=[], metavar="FILE", help="checkpoint kept from an earlier audit"
    )
    verify.add_argument("--witness-policy", type=Path, metavar="FILE", help="whose cosignatures count (tlog-policy)")
    verify.add_argument(
        "--cosigned", type=Path, action="append", default=[], metavar="FILE", help="what witnesses cosigned of it"
    )
    verify.add_argument(
        "--log",
        action="append",
        default=[],
        metavar="NAME",
        help="a log of which there must be a bundle (default: each of the trust file)",
    )
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
        asked = asked_log(client, arguments)
        if arguments.kept is None:
            verified = asked.checkpoint(cosigned=arguments.cosigned)
        else:
            old, verified = asked.prove_growth(read_bounded(arguments.kept, MAX_NOTE))
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
    """Verify evidence bundles without the service: signature, every record, the tree, ends, workers, receipts. Bundles
    of several logs are verified each by itself, and a log of the trust file of which there is none is named."""
    from sealgate.client.errors import UsageError
    from sealgate.evidence.trust import load_trust
    from sealgate.limits import MAX_NOTE, MAX_RECEIPT
    from sealgate.transparency.several import Given, verify_bundles
    from sealgate.transparency.verifier import LogTrust
    from sealgate.transparency.witness_policy import load_witness_policy

    if arguments.cosigned and arguments.witness_policy is None:
        raise UsageError("--cosigned needs --witness-policy: whose cosignatures count?")
    trust = load_trust(arguments.trust)
    log_trust = LogTrust(
        verifiers=trust.log_keys,
        mldsa_keys=trust.log_mldsa_keys,
        witnesses=None if arguments.witness_policy is None else load_witness_policy(arguments.witness_policy),
    )
    given = Given(
        receipts=tuple(read_bounded(path, MAX_RECEIPT) for path in arguments.receipt),
        kept=tuple(read_bounded(path, MAX_NOTE) for path in arguments.kept),
        cosigned=tuple(read_bounded(path, MAX_NOTE) for path in arguments.cosigned),
    )
    several = verify_bundles(arguments.bundles, log_trust, strict=arguments.strict, given=given, logs=arguments.log)
    if arguments.json:
        print(format_json(_document(several)))
    else:
        _print_several(several)
    return 0 if several.ok else 1


def _document(several: SeveralReport) -> dict[str, Any]:
    """As JSON: of one bundle its report, of several a list of them."""
    reports = []
    for bundle in several.bundles:
        report = bundle.report
        steps = [
            {"number": step.number, "name": step.name, "status": step.status, "detail": step.detail}
            for step in report.steps
        ]
        document = {"ok": report.ok, "strict": report.strict, "records": _covered(report), "steps": steps}
        reports.append(document | {"limits": report.limits})
    links = [
        {"name": link.name, "status": link.verdict.status, "detail": link.verdict.detail} for link in several.links
    ]
    together = {"missing": several.missing, "unused": several.unused, "shards": links}
    if len(reports) == 1:
        return reports[0] | together | {"ok": several.ok}
    named = [{"bundle": str(bundle.path)} | report for bundle, report in zip(several.bundles, reports, strict=True)]
    return {"ok": several.ok, "strict": several.strict, "bundles": named} | together


def _print_several(several: SeveralReport) -> None:
    from sealgate.terminal import printable

    for bundle in several.bundles:
        if len(several.bundles) > 1:
            print(printable(f"--- {bundle.path}: {bundle.origin or 'of no log that is trusted'}"))
        _print_report(bundle.report)
        if len(several.bundles) > 1:
            print()
    for link in several.links:
        print(printable(f"{link.verdict.status:<7} {link.name}: {link.verdict.detail}"))
    for name in several.missing:
        print(
            printable(
                f"MISSING: the trust file knows the log {name}, and no bundle that was given is proven to be of it"
            )
        )
    for text in several.unused:
        print(printable(f"UNUSED: {text}"))
    if len(several.bundles) > 1 or (several.strict and not several.ok and several.bundles[0].report.ok):
        print(_verdict(several))


def _verdict(several: SeveralReport) -> str:
    """Of all bundles together."""
    refused = sum(not bundle.report.ok for bundle in several.bundles)
    linked = [link.verdict.status for link in several.links]
    if several.ok and not (several.missing or several.unused or "skipped" in linked):
        skipped = any(step.status == "skipped" for bundle in several.bundles for step in bundle.report.steps)
        return f"Nothing is wrong in {len(several.bundles)} bundles" + ("" if skipped else ": all steps of all hold")
    if several.ok:
        return "Nothing that was checked is wrong, but not everything was there: not fully verified"
    apart = "what is missing or unused is not accepted by --strict" if several.strict else ""
    counted = f"{refused} of {len(several.bundles)} bundles" if refused else ""
    broken = "shards do not follow each other" if "failed" in linked else ""
    apart = apart if several.missing or several.unused or "skipped" in linked else ""
    return f"REFUSED: {'; '.join(filter(None, (counted, broken, apart)))}"


def _print_report(report: Report) -> None:
    from sealgate.terminal import printable

    skipped = [step for step in report.steps if step.status == "skipped"]
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


def _covered(report: Report) -> dict[str, Any] | None:
    """What part of which log a report is about: a bundle of three records proves nothing about the fourth."""
    checkpoint = report.checkpoint
    if checkpoint is None:
        return None
    return {"origin": checkpoint.origin, "first": report.first, "last": report.last, "size": checkpoint.size}
