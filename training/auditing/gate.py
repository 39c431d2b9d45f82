"""The gate: all probes on one trainer, and a verdict that a bundle cannot be signed without.

    1  freshness       does randomness repeat?
    2  clipping        is every gradient bounded?
    3  sampling        are rows drawn as declared?
    4  constants       does anything depend on the number of rows?
    5  neighbours      does the run's own model obey the bound?
    6  noise           is the noise of the declared size, and independent?
    7  contributions   do included rows count as much as declared?
    8  lanes           can an attacker tell who was in better than the claim allows?

From exact and quick to statistical. Every probe runs even if one before it failed, so that a person sees all that is
wrong. What has chance in it is asked a second time before it accuses, and no more (`probes.asked`).
Trusts: the operating system's randomness. Never: sees private rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from sealgate.ambient import Entropy, random_bytes
from sealgate.certificate.architectures import Spec
from sealgate.certificate.audits import HELD, LANES_AND_REPLAY
from sealgate.certificate.decimals import MICRO
from sealgate.certificate.schema import Audit, AuditProbe
from sealgate.limits import MAX_AUDIT_WORDS
from training.auditing import freshness, membership, neighbours, replay
from training.auditing.claimed import claimed_curve
from training.auditing.probes import BOUND_ALPHA, FIRST_ALARM, Probe, asked
from training.auditing.subject import Subject
from training.errors import TrainingError

OnProbe = Callable[[Probe], None]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an audit found. Holding one proves nothing: ask `require`."""

    method: str
    probes: tuple[Probe, ...]
    epsilon_lower_micro: int
    canaries: int
    steps: int

    def require(self, *, epsilon_micro: int) -> None:
        """Raise TrainingError `audit-contradicts` unless every probe held and the lower bound is below the claim."""
        failed = [probe for probe in self.probes if not probe.held]
        if failed:
            what = "; ".join(f"{probe.name}: {probe.found}" for probe in failed)
            raise TrainingError(
                f"the audit found another mechanism than the certificate would claim, so nothing is signed: {what}",
                code="audit-contradicts",
            )
        if self.epsilon_lower_micro > epsilon_micro:
            raise TrainingError(
                f"the audit found an epsilon of at least {self.epsilon_lower_micro / MICRO:.3f}, more than the "
                f"{epsilon_micro / MICRO:.3f} to be claimed, so nothing is signed",
                code="audit-contradicts",
            )

    def certified(self, *, code_digest: str) -> Audit:
        """The certificate's part."""
        return Audit(
            method=self.method,
            epsilon_lower_micro=self.epsilon_lower_micro,
            confidence_ppm=MICRO - round(BOUND_ALPHA * MICRO),
            canaries=self.canaries,
            steps=self.steps,
            probes=tuple(
                AuditProbe(
                    name=probe.name, verdict=HELD if probe.held else "failed", found=probe.found[:MAX_AUDIT_WORDS]
                )
                for probe in self.probes
            ),
            code_digest=code_digest,
        )


def audit_dp_sgd(
    subject: Subject,
    spec: Spec,
    module: nn.Module,
    *,
    entropy: Entropy = random_bytes,
    on_probe: OnProbe = lambda _probe: None,
) -> Findings:
    """Run all probes. `module` is an initialised one of the architecture `spec`; it is used up.

    Raises CertificateError for constants whose claim cannot be computed.
    """
    module = module.to(subject.dtype)
    found: list[Probe] = []

    def note(probe: Probe) -> None:
        found.append(probe)
        on_probe(probe)

    note(asked(lambda alarm: freshness.randomness_is_fresh(subject, entropy, alarm=alarm)))  # 1
    note(replay.contributions_are_clipped(subject, entropy))  # 2
    note(asked(lambda alarm: replay.sampling_is_poisson(subject, entropy, alarm=alarm)))  # 3
    note(replay.constants_are_public(subject, entropy))  # 4
    note(neighbours.no_example_moves_more(subject, spec, module, entropy))  # 5

    @functools.cache
    def seen(_alarm: float) -> membership.Observed:
        return membership.observe(subject, entropy)  # once at the first look of all three, once at a second one

    observed = seen(FIRST_ALARM)
    curve = claimed_curve(subject, steps=observed.steps)
    note(asked(lambda alarm: membership.noise_as_declared(subject, seen(alarm), entropy, alarm=alarm)))  # 6
    note(asked(lambda alarm: membership.contributions_as_declared(subject, seen(alarm), alarm=alarm)))  # 7
    note(asked(lambda alarm: membership.guesses_within_the_claim(curve, seen(alarm), entropy, alarm=alarm)))  # 8
    return Findings(
        method=LANES_AND_REPLAY,
        probes=tuple(found),
        epsilon_lower_micro=membership.epsilon_lower_micro(observed, delta=subject.delta),
        canaries=len(observed.included),
        steps=observed.steps,
    )
