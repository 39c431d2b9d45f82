"""`sealgate attest`: look at a runtime's evidence, judge it, keep it, and judge what was kept, also offline.

Trusts: the trust file, the clock. Never: calls something verified that was only read; sends a credential, for evidence
is open to all.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealgate.command import Command

if TYPE_CHECKING:
    from sealgate.evidence.kept import KeptEvidence
    from sealgate.evidence.transcript import Check
    from sealgate.evidence.verify import VerifiedEvidence


def _configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="attest", metavar="ACTION", required=True)

    show = commands.add_parser("show", help="what the evidence says, without judging it", description=_show.__doc__)
    _common(show, trust_required=False)
    show.set_defaults(_attest_action=_show)

    verify = commands.add_parser("verify", help="judge the evidence under a trust file", description=_verify.__doc__)
    _common(verify, trust_required=True)
    verify.add_argument(
        "--out", type=Path, metavar="FILE", help="keep what came, judged well or not, to judge it again"
    )
    verify.add_argument("--as-of", metavar="TIME", help="judge as of this time instead of now; 'kept': when it came")
    verify.add_argument("--strict", action="store_true", help="treat every skipped check as a failure")
    verify.set_defaults(_attest_action=_verify)

    measure = commands.add_parser(
        "measure", help="measure the code that is installed here", description=_measure.__doc__
    )
    measure.set_defaults(_attest_action=_measure)


def _common(parser: argparse.ArgumentParser, *, trust_required: bool) -> None:
    parser.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="kept evidence; without it the service is asked"
    )
    parser.add_argument(
        "--trust", type=Path, required=trust_required, metavar="PATH", help="trust file, or its directory"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--proxy", metavar="URL", help="HTTP proxy; HTTPS_PROXY and NO_PROXY are respected anyway")
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="longest silence of the service (default 60)"
    )


def _run(arguments: argparse.Namespace) -> int:
    code: int = arguments._attest_action(arguments)
    return code


def _show(arguments: argparse.Namespace) -> int:
    """Print what the evidence says of the runtime: keys, models, measurements, sandbox, and who endorses it. Nothing of
    it is judged: for that there is `sealgate attest verify`."""
    from sealgate.client.evidence_text import describe_evidence, evidence_document
    from sealgate.evidence.claims import decode_claims
    from sealgate.evidence.token import parse_token

    kept = _obtain(arguments)
    token = parse_token(kept.asked.data)
    claims = decode_claims(token.payload)
    if arguments.json:
        _print_json({"verified": False, **evidence_document(claims, token)})
        return 0
    print("NOT JUDGED: this is what the evidence says; `sealgate attest verify` judges it.\n")
    print(describe_evidence(claims, token))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    """Judge the evidence: of the service, asked with a fresh nonce, or a kept FILE, without any network. Prints every
    check with what was seen and which anchor decided. Exit code 1 if it is refused."""
    from sealgate.ambient import now_us
    from sealgate.client.errors import EvidenceRefused
    from sealgate.client.explain import explain_checks
    from sealgate.client.times import rfc3339
    from sealgate.durable_files import replace_file
    from sealgate.evidence.trust import load_trust
    from sealgate.terminal import printable, render_pairs

    trust = load_trust(arguments.trust)
    trust = trust.strictly() if arguments.strict else trust
    kept = _obtain(arguments)
    if arguments.out is not None:
        replace_file(arguments.out, kept.encode(), new_mode=0o644)
    moment = _moment(arguments.as_of, kept, now_us())
    try:
        verified = kept.asked.verify(trust, now_us=moment)
    except EvidenceRefused as refused:
        if arguments.json:
            _print_json({"accepted": False, "code": refused.code, "checks": refused.transcript})
        else:
            print(explain_checks(refused.transcript))
            print("\n" + printable(f"REFUSED ({refused.code}): {refused}"))
        return 1
    if arguments.json:
        _print_json(_document(verified))
        return 0
    print(explain_checks(verified.transcript))
    print("\nWho vouches for what\n" + render_pairs(sorted(verified.grades.items())))
    if arguments.as_of is not None:
        print(f"\nJudged as of {rfc3339(moment)}, not of now.")
    print("\n" + printable(_verdict(verified)))
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    """Print the digest of Sealgate's code as it is installed on this machine: what [measurements] of a trust
    file can pin. Make it from a copy that you trust, of the version that the service runs."""
    from sealgate.evidence.measure import HOST_PACKAGES, measure_code

    print(f'[measurements]\ncode = ["{measure_code()}"]\nhost-code = ["{measure_code(HOST_PACKAGES)}"]')
    return 0


def _obtain(arguments: argparse.Namespace) -> KeptEvidence:
    """Kept evidence, or what the service says now."""
    from sealgate.ambient import now_us
    from sealgate.client.errors import UsageError
    from sealgate.client.results import reaching
    from sealgate.client.transport import SealedTransport
    from sealgate.errors import DecodeError
    from sealgate.evidence.kept import KeptEvidence, parse_kept
    from sealgate.evidence.trust import load_trust
    from sealgate.limits import MAX_KEPT_EVIDENCE

    if arguments.file is not None:
        try:
            with arguments.file.open("rb") as file:
                return parse_kept(file.read(MAX_KEPT_EVIDENCE + 1))
        except (OSError, DecodeError) as error:
            said = (
                f"cannot be read: {error.strerror}" if isinstance(error, OSError) else f"is no kept evidence: {error}"
            )
            hint = "FILE is what `sealgate attest verify --out FILE` kept; to ask a service, give --trust alone"
            raise UsageError(f"{arguments.file} {said}; {hint}") from error
    if arguments.trust is None:
        raise UsageError("whose evidence? Give --trust for a service, or the FILE of kept evidence")
    if not 0 < arguments.timeout <= 3600:
        raise UsageError("--timeout must be between 0 and 3600 seconds")
    trust = load_trust(arguments.trust)
    transport = SealedTransport(trust, proxy=arguments.proxy, timeout=arguments.timeout)
    try:
        with reaching(trust.url):
            return KeptEvidence(asked=transport.ask_evidence(), received_us=now_us())
    finally:
        transport.close()


def _moment(text: str | None, kept: KeptEvidence, now: int) -> int:
    from sealgate.client.times import parse_moment

    if text is None:
        return now
    return kept.received_us if text == "kept" else parse_moment(text, now_us=now)


def _skipped(checks: tuple[Check, ...]) -> int:
    return sum(check.outcome == "skipped" for check in checks)


def _verdict(verified: VerifiedEvidence) -> str:
    """One line that claims no more than was checked."""
    count = _skipped(verified.transcript)
    unchecked = f"; {count} {'check' if count == 1 else 'checks'} had nothing to compare with" if count else ""
    word = " (the operator's word, no hardware)" if verified.grade == "software" else ""
    return f"ACCEPTED under the trust file, grade {verified.grade}{word}{unchecked}"


def _document(verified: VerifiedEvidence) -> dict[str, object]:
    return {
        "accepted": True,
        "grade": verified.grade,
        "grades": dict(verified.grades),
        "skipped": _skipped(verified.transcript),
        "checks": verified.transcript,
        "expires_us": verified.expires_us,
        "digest": verified.digest,
        "state_digest": verified.state_digest,
    }


def _print_json(document: dict[str, Any]) -> None:
    import msgspec

    from sealgate.terminal import printable_json

    sys.stdout.write(printable_json(msgspec.json.format(msgspec.json.encode(document), indent=2).decode()) + "\n")


ATTEST = Command(
    summary="look at and judge a runtime's evidence, online or kept",
    description="Evidence is what a runtime says of itself and who vouches for it (docs/attestation.md). Every client "
    "judges it by itself before it seals anything; these commands show how.",
    configure=_configure,
    run=_run,
)
