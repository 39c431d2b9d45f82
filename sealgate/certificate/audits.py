"""What a certificate may say of the attack on its training: known methods, all their probes held, nothing contradicted.

The attack itself needs the trainer and runs where the model is made. A verifier cannot repeat it; it can see whether
everything that belongs to the method was asked, and whether the answers fit the claim. Trusts: nothing beyond the
types. Never: takes an audit for more than the publisher's word about it, which it is.
"""

from __future__ import annotations

import re

from sealgate.certificate.decimals import MICRO, micro_text
from sealgate.certificate.refusals import refusal
from sealgate.certificate.schema import Audit
from sealgate.limits import MAX_AUDIT_PROBES, MAX_AUDIT_WORDS, MIN_AUDIT_CANARIES, MIN_AUDIT_CONFIDENCE_PPM

HELD = "held"
LANES_AND_REPLAY = "lanes-and-replay"
REPEATED_RUNS = "repeated-runs"
PROBES: dict[str, tuple[str, ...]] = {
    # The trainer is run on made-up canaries, under fresh and under repeated randomness: DP-SGD.
    LANES_AND_REPLAY: (
        "freshness",
        "clipping",
        "sampling",
        "constants",
        "neighbours",
        "noise",
        "contributions",
        "lanes",
    ),
    # The mechanism is run many times on each of two neighbouring data sets: mechanisms that release once.
    REPEATED_RUNS: ("freshness", "neighbours", "outliers"),
}
"""Every method of audit, and the probes that belong to it, in the order in which they are run."""

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def method_for(mechanism: str) -> str:
    """The method of audit that suits a mechanism: steps can be watched one by one, a single release only repeated."""
    return LANES_AND_REPLAY if mechanism == "dp-sgd" else REPEATED_RUNS


def check_audit(audit: Audit, *, mechanism: str, epsilon_micro: int) -> None:
    """Raise CertificateError unless this audit is whole, of the mechanism's method, and contradicts no claim."""
    names = tuple(probe.name for probe in audit.probes)
    if not (
        audit.epsilon_lower_micro >= 0
        and MIN_AUDIT_CONFIDENCE_PPM <= audit.confidence_ppm < MICRO
        and audit.canaries >= MIN_AUDIT_CANARIES
        and audit.steps > 0
        and _SHA256.match(audit.code_digest)
        and len(names) <= MAX_AUDIT_PROBES
        and len(set(names)) == len(names)
        and all(len(probe.found) <= MAX_AUDIT_WORDS for probe in audit.probes)
    ):
        raise refusal("certificate-malformed", "the audit's figures are out of range")
    if audit.method != method_for(mechanism) or set(PROBES[audit.method]) - set(names):
        raise refusal("certificate-malformed", "the audit is not of the method for this mechanism, or lacks a part")
    if any(probe.verdict != HELD for probe in audit.probes):
        raise refusal(
            "audit-contradicts", "a probe of the empirical audit found another mechanism than the claimed one"
        )
    if audit.epsilon_lower_micro > epsilon_micro:
        raise refusal("audit-contradicts", "the empirical audit found more leakage than the certificate claims")


def demand_audit(audit: Audit | None) -> Audit:
    """The audit, where a deployment demands one; raises CertificateError `audit-missing` if there is none."""
    if audit is None:
        raise refusal("audit-missing", "the certificate states no audit of the training, and one is demanded here")
    return audit


def audit_words(audit: Audit | None) -> str:
    """The audit for people, in one line."""
    if audit is None:
        return "none: nobody attacked this training before it was signed"
    return (
        f"{len(audit.probes)} probes held ({audit.method}); {audit.canaries} canaries over {audit.steps} steps show, "
        f"with confidence {micro_text(audit.confidence_ppm)}, an epsilon of {micro_text(audit.epsilon_lower_micro)} or "
        "more"
    )
