"""The checks on a certificate that need no accountant: what it says must be something that epsilon can stand on.

    1  the sampler is the one that the accounting assumes
    2  rate, steps and divisor are public constants and fit each other; no more steps were executed than declared
    3  noise and sampling come from fresh randomness, never from a seed, and the noise is of a known kind
    4  preprocessing used public constants, or statistics whose cost is counted
    5  hyper-parameters cost nothing private, or the cost is counted
    6  delta is below one over the public population
    7  mechanism, unit and adjacency are ones that can be recomputed
    8  the accountant is the one for this mechanism, and the second one agrees
    9  the empirical audit, if any, does not contradict the claim
   10  the measured quality fits its own interval

Trusts: nothing beyond the types. Never: judges whether the publisher told the truth about what it ran; see the audit.
"""

from __future__ import annotations

import datetime
import re

from sealgate.certificate.accounting.account import AGREE_ABSOLUTE_MICRO, AGREE_RELATIVE, Account, require_delta
from sealgate.certificate.accounting.described import account_of
from sealgate.certificate.accounting.statistics import check_masked, check_statistics
from sealgate.certificate.audits import check_audit
from sealgate.certificate.decimals import MICRO, parse_decimal
from sealgate.certificate.measured import check_measured
from sealgate.certificate.mechanisms import DpSgd, GapAggregation, Noise, name_of, noises_of
from sealgate.certificate.refusals import refusal
from sealgate.certificate.schema import Certificate, Search
from sealgate.errors import DecodeError
from sealgate.limits import MAX_GRID_BITS, MAX_ROUNDED_BITS, MAX_SELECTION_CHOICES, MIN_GRID_BITS

SCHEMA = 2
NOISE_SOURCE = "os-csprng/aes-256-ctr"
FRESH = "fresh"
CONTINUOUS = "float64-continuous"
ROUNDED = "grid-rounded"
DISCRETE = "grid-discrete"
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def check_claims(certificate: Certificate) -> Account:
    """Run the checks in order; returns the account to recompute, or raises CertificateError."""
    _check_shape(certificate)
    for part in _sampled_parts(certificate):
        _check_sampling(part, population=certificate.dataset.public_population)  # 1, 2
    for noise in (*noises_of(certificate.mechanism), *_search_noise(certificate.selection.search)):
        check_noise(noise)  # 3
    if certificate.dataset.public_population <= 0:
        raise refusal("sampler-constants", "the public population is not a number of units")
    _check_preprocessing(certificate)  # 4
    _check_selection(certificate)  # 5
    delta = require_delta(certificate.delta)
    if delta * certificate.dataset.public_population >= 1:  # 6
        raise refusal("delta", "delta must be below one over the public population")
    account = account_of(certificate)  # 7
    _check_accounting(certificate, account)  # 8
    if certificate.audit is not None:
        name = name_of(certificate.mechanism)
        check_audit(certificate.audit, mechanism=name, epsilon_micro=certificate.epsilon_micro)  # 9
        if certificate.audit.code_digest != certificate.environment.code_digest:
            raise refusal("audit-contradicts", "the audit was one of other training code than the model's")
    check_measured(certificate.measured, epsilon_micro=certificate.epsilon_micro)  # 10
    return account


def _sampled_parts(certificate: Certificate) -> tuple[DpSgd, ...]:
    mechanism = certificate.mechanism
    match mechanism:
        case DpSgd():
            return (mechanism,)
        case GapAggregation(encoder=encoder, classifier=classifier):
            return tuple(part for part in (encoder, classifier) if part is not None)
    return ()


def _search_noise(search: Search | None) -> tuple[Noise, ...]:
    return () if search is None else (search.noise,)


def check_noise(noise: Noise) -> None:
    """Raise CertificateError unless this noise was fresh and is of a kind whose epsilon is known."""
    if noise.seed != FRESH or noise.source != NOISE_SOURCE:
        raise refusal("fixed-seed", "noise did not come from fresh operating-system randomness")
    bits = noise.grid_bits
    if noise.arithmetic == CONTINUOUS:
        known = noise.transform == "box-muller-4" and bits == 0
    elif noise.arithmetic == ROUNDED:
        known = noise.transform == "box-muller" and 0 < bits <= MAX_ROUNDED_BITS
    else:
        fine = MIN_GRID_BITS <= bits <= MAX_GRID_BITS
        known = (noise.arithmetic, noise.transform) == (DISCRETE, "exact-discrete-gaussian") and fine
    if not known:
        raise refusal("mechanism", "the noise is not of a kind that is known here")


def _check_preprocessing(certificate: Certificate) -> None:
    preprocessing = certificate.preprocessing
    check_masked(preprocessing)
    if preprocessing.statistics == "dp":
        check_statistics(preprocessing)
        if parse_decimal(preprocessing.delta) >= require_delta(certificate.delta):
            raise refusal("delta", "preprocessing leaves nothing of delta")
        return
    nothing = (0, 0, "0", ())
    found = (preprocessing.epsilon_micro, preprocessing.epsilon_replace_one_micro, preprocessing.delta)
    if preprocessing.statistics != "public-constants" or (*found, preprocessing.parts) != nothing:
        raise refusal("private-statistics", "preprocessing used statistics of the private data")


def _check_selection(certificate: Certificate) -> None:
    selection = certificate.selection
    search = selection.search
    if selection.how == "dp-selected" and search is not None:
        if not (1 < search.choices <= MAX_SELECTION_CHOICES and search.score):
            raise refusal("selection-unaccounted", "the search for hyper-parameters names no choices or no score")
        if not 0 < selection.epsilon_micro < certificate.epsilon_micro:
            raise refusal("selection-unaccounted", "the search's share of epsilon is out of range")
        if search.noise.arithmetic != CONTINUOUS:
            raise refusal("selection-unaccounted", "the score's noise is not of the kind that is accounted")
    elif selection.how not in ("fixed", "public-data") or selection.epsilon_micro != 0 or search is not None:
        raise refusal("selection-unaccounted", "hyper-parameters were chosen in a way that epsilon does not cover")


def is_date(text: str) -> bool:
    """Whether it is a day in the one spelling that is accepted, YYYY-MM-DD."""
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _check_shape(certificate: Certificate) -> None:
    digests = [certificate.weights_digest, certificate.manifest_digest, certificate.dataset.commitment]
    digests.append(certificate.environment.code_digest)
    try:
        if not is_date(certificate.issued):
            raise DecodeError("no date, or in another spelling")
        if certificate.schema != SCHEMA or not all(map(_SHA256.match, digests)) or not certificate.not_protected:
            raise DecodeError("missing parts")
        if min(certificate.epsilon_micro, certificate.epsilon_replace_one_micro) <= 0:
            raise DecodeError("epsilon is not positive")
    except DecodeError as error:
        raise refusal("certificate-malformed", "the certificate lacks a part or has one of another form") from error


def _check_sampling(mechanism: DpSgd, *, population: int) -> None:
    sampling = mechanism.sampling
    rate = sampling.rate
    if sampling.sampler != "poisson" and (sampling.sampler, rate.numerator) != ("full-batch", rate.denominator):
        raise refusal("sampler", f"the accounting assumes Poisson sampling, not '{sampling.sampler[:40]}'")
    if sampling.constants != "public" or population <= 0:
        raise refusal("sampler-constants", "rate, steps or divisor depend on the private data")
    if rate.denominator <= 0:
        raise refusal("parameters-out-of-range", "the sampling rate is not a fraction")
    expected = population * MICRO * rate.numerator // rate.denominator
    if sampling.divisor_micro != expected or expected <= 0:
        raise refusal("sampler-constants", "the divisor is not the rate times the public population")
    if not 0 < sampling.steps_executed <= sampling.steps_declared:
        raise refusal("steps", "the steps executed are not among those declared")


def _check_accounting(certificate: Certificate, account: Account) -> None:
    accounting = certificate.accounting
    if accounting.accountant != account.accountant or accounting.second_accountant in ("", account.accountant):
        raise refusal("accountant", "epsilon does not come from the accepted accountant with a second one beside it")
    allowed = AGREE_ABSOLUTE_MICRO + AGREE_RELATIVE * certificate.epsilon_micro
    if abs(accounting.second_epsilon_micro - certificate.epsilon_micro) > allowed:
        raise refusal("accountants-disagree", "the second accountant's figure does not fit the stated epsilon")
