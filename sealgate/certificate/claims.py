"""The checks on a certificate that need no accountant: what it says must be something that epsilon can stand on.

    1  mechanism, unit and adjacency are ones that can be recomputed
    2  the sampler is the one that the accounting assumes
    3  rate, steps and divisor are public constants and fit each other
    4  noise and sampling come from fresh randomness, never from a seed
    5  preprocessing used public constants only
    6  hyper-parameters cost nothing private, or the cost is counted
    7  no more steps were executed than declared
    8  delta is below one over the public population
    9  the accountant is accepted, and the second one agrees
    10 the empirical audit, if any, does not contradict the claim

Trusts: nothing beyond the types. Never: judges whether the publisher told the truth about what it ran; see the audit.
"""

from __future__ import annotations

import datetime
import math
import re
from fractions import Fraction

from sealgate.certificate.audits import check_audit
from sealgate.certificate.decimals import MICRO, parse_decimal
from sealgate.certificate.recompute import ACCOUNTANT, GaussianSteps
from sealgate.certificate.refusals import refusal
from sealgate.certificate.schema import Certificate
from sealgate.errors import DecodeError

NOISE_SOURCE = "os-csprng/aes-256-ctr"
FRESH = "fresh"
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
# Privacy-loss accountants of different construction agree to about one per cent; more means that one of them
# was given other parameters.
_AGREE_RELATIVE = Fraction(3, 100)
_AGREE_ABSOLUTE_MICRO = 50_000


def mechanism_of(certificate: Certificate) -> GaussianSteps:
    """The mechanism that the certificate describes; raises CertificateError if its fractions are malformed."""
    rate = certificate.sampling.rate
    if not 0 < rate.numerator <= rate.denominator or math.gcd(rate.numerator, rate.denominator) != 1:
        raise refusal("parameters-out-of-range", "the sampling rate is not a reduced fraction in (0, 1]")
    steps = GaussianSteps(
        sigma_micro=certificate.noise.sigma_micro,
        rate=Fraction(rate.numerator, rate.denominator),
        steps=certificate.sampling.steps_declared,
        delta=certificate.delta,
    )
    steps.require_computable()
    return steps


def check_claims(certificate: Certificate) -> GaussianSteps:
    """Run the ten checks in order; returns the mechanism to recompute, or raises CertificateError."""
    _check_shape(certificate)
    if (certificate.mechanism, certificate.unit, certificate.adjacency) != ("dp-sgd", "example", "add-remove"):  # 1
        raise refusal("mechanism", "only DP-SGD over examples with add-remove adjacency can be recomputed")
    if certificate.clipping.kind != "per-example-flat" or certificate.clipping.norm_micro <= 0:
        raise refusal("mechanism", "the gradients are not clipped per example")
    _check_sampling(certificate)  # 2, 3
    noise = certificate.noise
    if noise.seed != FRESH or noise.source != NOISE_SOURCE:  # 4
        raise refusal("fixed-seed", "noise did not come from fresh operating-system randomness")
    if (noise.transform, noise.arithmetic) != ("box-muller-4", "float64-continuous"):
        raise refusal("mechanism", "the noise is not of a kind that is known here")
    if certificate.preprocessing.statistics != "public-constants" or certificate.preprocessing.epsilon_micro != 0:  # 5
        raise refusal("private-statistics", "preprocessing used statistics of the private data")
    if certificate.selection.how not in ("fixed", "public-data") or certificate.selection.epsilon_micro != 0:  # 6
        raise refusal("selection-unaccounted", "hyper-parameters were chosen in a way that epsilon does not cover")
    if not 0 < certificate.sampling.steps_executed <= certificate.sampling.steps_declared:  # 7
        raise refusal("steps", "more steps were executed than declared")
    mechanism = mechanism_of(certificate)
    if Fraction(parse_decimal(certificate.delta)) * certificate.dataset.public_population >= 1:  # 8
        raise refusal("delta", "delta must be below one over the public population")
    _check_accounting(certificate)  # 9
    _check_audit(certificate)  # 10
    return mechanism


def _check_shape(certificate: Certificate) -> None:
    digests = [certificate.weights_digest, certificate.manifest_digest, certificate.dataset.commitment]
    digests.append(certificate.environment.code_digest)
    try:
        if datetime.date.fromisoformat(certificate.issued).isoformat() != certificate.issued:
            raise DecodeError("another spelling")
        if certificate.schema != 1 or not all(map(_SHA256.match, digests)) or not certificate.not_protected:
            raise DecodeError("missing parts")
        if min(certificate.epsilon_micro, certificate.epsilon_replace_one_micro) <= 0:
            raise DecodeError("epsilon is not positive")
    except (ValueError, DecodeError) as error:
        raise refusal("certificate-malformed", "the certificate lacks a part or has one of another form") from error


def _check_sampling(certificate: Certificate) -> None:
    sampling, population = certificate.sampling, certificate.dataset.public_population
    if sampling.sampler != "poisson":
        raise refusal("sampler", f"the accounting assumes Poisson sampling, not '{sampling.sampler[:40]}'")
    if sampling.constants != "public" or population <= 0:
        raise refusal("sampler-constants", "rate, steps or divisor depend on the private data")
    if sampling.rate.denominator <= 0:
        raise refusal("parameters-out-of-range", "the sampling rate is not a fraction")
    expected = population * MICRO * sampling.rate.numerator // sampling.rate.denominator
    if sampling.divisor_micro != expected or expected <= 0:
        raise refusal("sampler-constants", "the divisor is not the rate times the public population")


def _check_accounting(certificate: Certificate) -> None:
    accounting = certificate.accounting
    if accounting.accountant != ACCOUNTANT or accounting.second_accountant in ("", ACCOUNTANT):
        raise refusal("accountant", "epsilon does not come from the accepted accountant with a second one beside it")
    allowed = _AGREE_ABSOLUTE_MICRO + _AGREE_RELATIVE * certificate.epsilon_micro
    if abs(accounting.second_epsilon_micro - certificate.epsilon_micro) > allowed:
        raise refusal("accountants-disagree", "the second accountant's figure does not fit the stated epsilon")


def _check_audit(certificate: Certificate) -> None:
    if certificate.audit is not None:
        check_audit(certificate.audit, epsilon_micro=certificate.epsilon_micro)
