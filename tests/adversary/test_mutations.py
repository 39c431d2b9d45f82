"""A good token, changed at random in every way that a wire or a forger can: it never passes, and never breaks anything.

The same changes at every run (a fixed seed), and others found by hypothesis.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import AUTHENTICATION_FAILURES
from sealgate.protocol import frames
from tests.adversary.conftest import MATRIX, Target
from tests.adversary.forge import b64, decoded, part, unb64
from tests.adversary.test_dpop import Prover

SEED = 9449
MUTATIONS = 1000
# What a field's value may hold on the wire; anything else is refused as a malformed request, before us.
LEGAL = [*map(chr, range(0x21, 0x7F)), *map(chr, range(0xA1, 0x100))]
BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


# Ways to change a token ----------------------------------------------------------------------------------------------


def another_character(dice: random.Random, token: str) -> str:
    place = dice.randrange(len(token))
    return token[:place] + dice.choice(BASE64 + ".") + token[place + 1 :]


def any_characters(dice: random.Random, token: str) -> str:
    place = dice.randrange(len(token))
    return token[:place] + "".join(dice.choices(LEGAL, k=dice.randrange(1, 6))) + token[place + dice.randrange(3) :]


def cut(dice: random.Random, token: str) -> str:
    start = dice.randrange(len(token))
    return token[:start] + token[start + dice.randrange(1, 40) :]


def doubled(dice: random.Random, token: str) -> str:
    start = dice.randrange(len(token))
    return token[:start] + token[start : start + dice.randrange(1, 40)] + token[start:]


def swapped(dice: random.Random, token: str) -> str:
    one, other = sorted(dice.sample(range(len(token)), 2))
    return token[:one] + token[other] + token[one + 1 : other] + token[one] + token[other + 1 :]


def reordered(dice: random.Random, token: str) -> str:
    return ".".join(dice.choices(token.split("."), k=dice.choice((2, 3, 3, 3, 4))))


def recased(dice: random.Random, token: str) -> str:
    return "".join(char.swapcase() if dice.random() < 0.02 else char for char in token)


def one_bit(dice: random.Random, token: str) -> str:
    """Of what one part decodes to."""
    parts = token.split(".")
    which = dice.randrange(3)
    raw = bytearray(unb64(parts[which]))
    raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
    parts[which] = b64(bytes(raw))
    return ".".join(parts)


def last_bits(dice: random.Random, token: str) -> str:
    """Bits that a lenient decoder drops: another text for the very same bytes."""
    parts = token.split(".")
    which = dice.randrange(3)
    place = BASE64.index(parts[which][-1])
    parts[which] = parts[which][:-1] + BASE64[place ^ dice.choice((1, 2, 3, 4, 8, 15))]
    return ".".join(parts)


def another_member(dice: random.Random, token: str) -> str:
    """A header or claim changed, dropped or added, under the old signature."""
    parts = token.split(".")
    which = dice.randrange(2)
    members = decoded(parts[which])
    name = dice.choice([*members, "admin", "nbf", "cnf", "crit"])
    value = dice.choice([None, True, 0, -1, 2**63, "", "none", "x", [], ["auditor"], {}, {"a": {}}])
    if dice.random() < 0.3:
        members.pop(name, None)
    else:
        members[name] = value
    parts[which] = part(members)
    return ".".join(parts)


def respaced(dice: random.Random, token: str) -> str:
    """The same members in another order or spacing, under the old signature."""
    parts = token.split(".")
    which = dice.randrange(2)
    members = list(decoded(parts[which]).items())
    dice.shuffle(members)
    parts[which] = b64(json.dumps(dict(members), indent=dice.choice((None, 0, 1, 2))))
    return ".".join(parts)


WAYS: tuple[Callable[[random.Random, str], str], ...] = (
    another_character,
    any_characters,
    cut,
    doubled,
    swapped,
    reordered,
    recased,
    one_bit,
    last_bits,
    another_member,
    respaced,
)


# The tests -----------------------------------------------------------------------------------------------------------


def test_a_thousand_random_mutations_of_good_tokens_never_pass(target: Target) -> None:
    dice = random.Random(SEED)
    tokens = [target.forge.token(kid) for kid in ("es", "ed", "rs")]
    for token in tokens:
        target.served(target.bearer(token))
    passed, tried = [], Counter[str]()
    while tried.total() < MUTATIONS:
        way = WAYS[tried.total() % len(WAYS)]
        token = dice.choice(tokens)
        mutant = way(dice, token)
        if mutant == token:
            continue
        tried[way.__name__] += 1
        if target.bearer(mutant).told != target.nobody.told:
            passed.append((way.__name__, mutant))
    assert not passed
    assert not target.running.host._of(frames.Submit)
    reasons = Counter(frame.reason for frame in target.running.host.heard(frames.AuthFailed, MUTATIONS))
    assert reasons.total() == MUTATIONS
    assert reasons.keys() <= AUTHENTICATION_FAILURES.keys()
    assert len(reasons) >= 5, reasons  # they get as far as to fail at different steps
    MATRIX[f"mutations: {MUTATIONS} random changes of good tokens"] = ("401", ", ".join(sorted(reasons)))
    target.running.host.told.clear()
    for token in tokens:  # and none of them spoiled what is remembered of the good ones
        target.served(target.bearer(token))


def test_no_other_text_of_the_same_signature_passes(target: Target) -> None:
    """Base64url leaves four bits of a 64-byte signature unused: 15 other texts decode to the same bytes."""
    for kid in ("es", "ed"):
        token = target.forge.token(kid)
        target.served(target.bearer(token))
        place = BASE64.index(token[-1])
        for bits in range(1, 16):
            mutant = token[:-1] + BASE64[place ^ bits]
            target.refused("mutations: unused bits of the signature", target.bearer(mutant), "token-malformed",
                           "signature-invalid")  # fmt: skip


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.lists(st.sampled_from(LEGAL + list(' \t.,="') * 8), max_size=80).map("".join))
def test_no_field_value_breaks_anything(target: Target, value: str) -> None:
    target.running.host.told.clear()
    seen = target.ask([("Authorization", value.encode("latin-1"))])
    assert seen.told == target.nobody.told
    assert target.reason() in AUTHENTICATION_FAILURES


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.dictionaries(
        st.text(max_size=6) | st.sampled_from(["alg", "kid", "typ"]), st.integers() | st.text(), max_size=4
    ),
    claims=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
        max_leaves=12,
    ),
)  # fmt: skip
def test_signed_nonsense_breaks_nothing(target: Target, header: dict[str, object], claims: object) -> None:
    """Even from an issuer that we trust."""
    target.running.host.told.clear()
    good = target.forge.header()
    for made in (
        target.forge.signed(good, json.dumps(claims)),
        target.forge.signed(good | header, target.forge.claims()),
    ):
        seen = target.bearer(made)
        if seen.status == 200:
            assert header.keys().isdisjoint({"alg", "kid", "typ"})  # members that mean nothing do no harm
            target.running.host.told.clear()
        else:
            assert seen.told == target.nobody.told
            assert target.reason() in AUTHENTICATION_FAILURES


# Proofs of possession ----------------------------------------------------------------------------------------


def test_random_mutations_of_good_proofs_never_pass(target: Target) -> None:
    dice = random.Random(SEED)
    prover = Prover(target)
    tried = 0
    while tried < 300:
        proof = prover.proof()
        mutant = WAYS[tried % len(WAYS)](dice, proof)
        if mutant == proof:
            continue
        tried += 1
        seen = prover.send(mutant.encode("latin-1", "replace"))
        assert (seen.status, seen.body) == (401, target.nobody.body), mutant
    assert not target.running.host._of(frames.Submit)
    reasons = Counter(frame.reason for frame in target.running.host.heard(frames.AuthFailed, tried))
    assert reasons.keys() <= AUTHENTICATION_FAILURES.keys()
    MATRIX[f"mutations: {tried} random changes of good proofs"] = ("401", ", ".join(sorted(reasons)))
    target.running.host.told.clear()
    target.served(prover.send(prover.proof()))


# Half characters -----------------------------------------------------------------------------------------------------

HALF = "\ud800"  # JSON can write it, and no text has it: whatever turns it into bytes fails
HALVES: list[object] = [HALF, [HALF], {HALF: HALF}]


@pytest.mark.parametrize(
    "where", ["iss", "aud", "sub", "iat", "jti", "client_id", "tenant", "roles", "purposes", "cnf"]
)
def test_half_a_character_in_a_token_breaks_nothing(target: Target, where: str) -> None:
    for token in [target.forge.token(**{where: half}) for half in HALVES]:
        target.refused(f"mutations: half a character in {where}", target.bearer(token), "token-malformed")


@pytest.mark.parametrize("where", ["typ", "alg", "kid", "other"])
def test_half_a_character_in_a_tokens_header_breaks_nothing(target: Target, where: str) -> None:
    for token in [target.forge.headed(**{where: half}) for half in HALVES]:
        target.refused(f"mutations: half a character in the header's {where}", target.bearer(token), "token-malformed")


@pytest.mark.parametrize("where", ["jti", "htm", "htu", "iat", "ath", "nonce", "other"])
def test_half_a_character_in_a_proof_breaks_nothing(target: Target, where: str) -> None:
    prover = Prover(target)
    for half in HALVES:
        seen = prover.send(prover.proof(**{where: half}))
        target.refused(f"mutations: half a character in a proof's {where}", seen, "proof-malformed")


def test_half_a_character_in_a_proofs_key_breaks_nothing(target: Target) -> None:
    prover = Prover(target)
    for member in ("kty", "crv", "x", "y", "alg", "use"):
        seen = prover.send(prover.headed(jwk=prover.public | {member: HALF}))
        target.refused(f"mutations: half a character in {member} of a proof's key", seen, "proof-malformed")
    target.served(prover.send(prover.proof(other="\N{LINEAR B SYLLABLE B008 A}")))  # in two escapes, and whole
