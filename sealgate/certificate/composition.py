"""What a pipeline costs the people in its members' training data, composed from the members' own certificates.

Let member i be (e_i, d_i) for adding or removing a unit, and r_i for replacing one. The whole is a function of all
members' weights, so basic composition (Dwork and Roth 2014, theorem 3.16) bounds it by sums, whoever learnt from whom.
Members of the pipeline's own publisher may be declared to be trained on different people (parallel composition,
McSherry 2009): then one unit is in the data of one group at most.

    add or remove   e = S + max_g E_g                       S, E_g: sums over the shared members, and over group g
    replace         r = S_r + max(max_g R_g, E_g + E_h)     a unit may leave one group and enter another
    delta           d = sum of all d_i                      more than is needed, and never less

A member of another publisher is always shared: nobody declares whom somebody else's data is about.

Trusts: verified members. Never: rounds down, or computes with less than a member states.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from sealgate.certificate.bundle import VerifiedBundle
from sealgate.certificate.decimals import decimal_text
from sealgate.certificate.mechanisms import Part
from sealgate.certificate.refusals import refusal
from sealgate.limits import MAX_EPSILON_MICRO


class Cost(Part, frozen=True):
    """Of the whole, at `delta`."""

    unit: str
    epsilon_micro: int
    epsilon_replace_one_micro: int
    delta: str


def compose(members: Mapping[str, VerifiedBundle], people: Mapping[str, str], *, publisher: str) -> Cost:
    """The cost of the whole; raises CertificateError for members that cannot be counted together.

    `people` has each member's word; `publisher` is the pipeline's.
    """
    units = {bundle.certificate.unit for bundle in members.values()}
    if len(units) != 1:
        raise refusal("composition", "its members protect different units, whose epsilons do not add up")
    if len({bundle.certificate_digest for bundle in members.values()}) != len(members):
        raise refusal("composition", "a member stands twice; what it gives can be read twice instead")
    groups = {name: people[name] if one.publisher == publisher else "" for name, one in members.items()}
    _check_disjoint(members, groups)
    sums: dict[str, tuple[int, int]] = {}
    delta = Decimal(0)
    for name, bundle in members.items():
        certificate = bundle.certificate
        added, replaced = sums.get(groups[name], (0, 0))
        sums[groups[name]] = (
            added + certificate.epsilon_micro,
            replaced + certificate.epsilon_replace_one_micro,
        )
        delta += Decimal(certificate.delta)
    shared, shared_replaced = sums.pop("", (0, 0))
    alone = sorted((added for added, _ in sums.values()), reverse=True)
    moved = max([sum(alone[:2]), *(replaced for _, replaced in sums.values())])
    epsilon, replace_one = shared + max(alone, default=0), shared_replaced + moved
    if max(epsilon, replace_one) > MAX_EPSILON_MICRO:
        raise refusal("epsilon-out-of-range", "its members together protect nothing")
    if delta * max(bundle.certificate.dataset.public_population for bundle in members.values()) >= 1:
        raise refusal("delta", "its members' deltas together are not below one over the public population")
    return Cost(
        unit=units.pop(), epsilon_micro=epsilon, epsilon_replace_one_micro=replace_one, delta=decimal_text(delta)
    )


def _check_disjoint(members: Mapping[str, VerifiedBundle], groups: Mapping[str, str]) -> None:
    """Data that is committed to alike is the same data, whatever is declared of it."""
    found: dict[str, str] = {}
    for name, bundle in members.items():
        commitment = bundle.certificate.dataset.commitment
        if groups[name] and found.setdefault(commitment, groups[name]) != groups[name]:
            raise refusal("composition", "members that are declared to be of different people have the same data")
