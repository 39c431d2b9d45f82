"""Witnesses that know the log's key cosign its shards; what one missed at the turn it cosigns later."""

from __future__ import annotations

import pytest

from audit.errors import QueryRefused
from sealgate.transparency.cosignatures import verify_cosignatures
from sealgate.transparency.notes import open_checkpoint
from tests.audit.conftest import ORIGIN, SIGNER
from tests.audit.test_turning import H2, JULY, Clock
from tests.audit.test_witnessing import ask, policy, running

__all__ = ["ask", "running"]  # fixtures


@pytest.fixture
def bench(sqlite_bench):
    """What a witness is asked does not depend on the database."""
    return sqlite_bench


@pytest.mark.parametrize("before", [True, False], ids=["asked-before", "first-asked-after"])
def test_the_last_checkpoint_of_a_shard_and_the_next_ones_are_cosigned(ask, running, until, before) -> None:
    witness = running.witness("a")
    clock = Clock()
    asking = ask(policy(witness), clock=clock, shard="half-year")
    asking.grow(3)
    if before:
        assert asking.round()
    clock.now = JULY
    asking.grow()
    assert asking.round()
    newest = asking.reader.size()
    note = asking.cosigned(newest, until)
    assert open_checkpoint(note, [SIGNER.verifier]).checkpoint.origin == H2
    keys = [one.public for one in witness[0].cosigners]
    last = asking.reader.checkpoint(cosigned=True, origin=ORIGIN)
    assert open_checkpoint(last, [SIGNER.verifier]).checkpoint.size == asking.reader.size(origin=ORIGIN)
    for one in (note, last):
        assert verify_cosignatures(one, keys)
    assert {seen.checkpoint.origin for seen in witness[0].store.every()} == {ORIGIN, H2}
    assert asking.round()
    assert asking.told == []


def test_a_witness_that_was_away_at_the_turn_cosigns_both_when_it_is_back(ask, running, until) -> None:
    witness = running.witness("a")
    clock = Clock()
    asking = ask(policy(witness), clock=clock, shard="half-year")
    asking.grow()
    assert asking.round()
    for place in asking.client._places:
        there, place.url = place.url, "http://127.0.0.1:9"
    clock.now = JULY
    size = asking.grow()
    assert not asking.round()
    with pytest.raises(QueryRefused):
        asking.reader.checkpoint(cosigned=True, origin=H2)
    for places in (asking.client._places, *asking.client._left.values()):
        for place in places:
            place.url = there
    assert asking.round()
    asking.cosigned(size, until)
    last = open_checkpoint(asking.reader.checkpoint(cosigned=True, origin=ORIGIN), [SIGNER.verifier]).checkpoint
    assert last.size == asking.reader.size(origin=ORIGIN)
