"""Keys come, are renewed ahead of their end, outlive an outage for a while, and end when their issuer says so."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.authentication.discovery import FetchedKeys, FetchFailed
from gateway.authentication.issuers import Issuer, RemoteKeys
from gateway.authentication.key_sets import FetchedKeySet
from gateway.errors import Unauthenticated
from gateway.limits import MAX_KEY_WAITERS, REFRESH_RETRY_MAX_S
from tests.gateway.issuer_server import Signer

NAME = "https://issuer.example"
OLD, NEW = Signer("old"), Signer("new")
HOUR = 3600


class Clock:
    seconds = 1_800_000_000.0

    def __call__(self):
        return int(self.seconds * 1e6)


class Provider:
    """A fetcher that a test scripts: what it serves, whether it fails, when it answers."""

    def __init__(self, *signers, fresh_s=HOUR):
        self.signers = signers
        self.fresh_s = fresh_s
        self.fault = None
        self.fetches = 0
        self.open = asyncio.Event()
        self.open.set()
        self.closed = False

    async def fetch(self):
        self.fetches += 1
        await self.open.wait()
        if self.fault is not None:
            raise self.fault
        data = json.dumps({"keys": [signer.public for signer in self.signers]}).encode()
        return FetchedKeys(data=data, fresh_s=self.fresh_s)

    async def close(self):
        self.closed = True


class Pauses:
    """Waits of the background loop: each is noted, and ends when the test says so."""

    def __init__(self):
        self.asked = asyncio.Queue()
        self.go = asyncio.Queue()

    async def __call__(self, seconds):
        self.asked.put_nowait(seconds)
        await self.go.get()

    async def next(self):
        return await asyncio.wait_for(self.asked.get(), 60)


def made(provider, clock, *, said=None, pause=asyncio.sleep, stale_s=2 * HOUR, cooldown_s=30):
    remote = RemoteKeys(jwks_uri="https://x/", ca=None, proxy=None, stale_s=stale_s, cooldown_s=cooldown_s)
    issuer = Issuer(name=NAME, remote=remote, algorithms=("ES256",))
    report = (said if said is not None else []).append
    return FetchedKeySet(issuer, provider, report=report, clock=clock, pause=pause, entropy=bytes)


async def refused(keys, kid):
    with pytest.raises(Unauthenticated) as caught:
        await keys.find(kid)
    return caught.value.code


def story(coroutine_function):
    """Runs an async test."""

    def run():
        asyncio.run(asyncio.wait_for(coroutine_function(), 120))

    run.__name__ = coroutine_function.__name__
    run.__doc__ = coroutine_function.__doc__
    return run


@story
async def test_a_key_is_found_and_then_known():
    clock, provider = Clock(), Provider(OLD)
    keys = made(provider, clock)
    assert keys.usable(clock()) == {}
    key = await keys.find("old")
    assert keys.usable(clock())["old"] is key
    assert await keys.find("old") is key
    assert provider.fetches == 1
    await keys.close()
    assert provider.closed


@story
async def test_the_set_is_renewed_ahead_of_its_end_and_the_next_wait_follows_the_new_answer():
    clock, provider, pauses = Clock(), Provider(OLD, fresh_s=1000), Pauses()
    keys = made(provider, clock, pause=pauses)
    keys.start()
    assert await pauses.next() == 800
    provider.fresh_s = 60
    pauses.go.put_nowait(None)
    assert await pauses.next() == 48
    assert provider.fetches == 2
    await keys.close()


@story
async def test_failures_are_retried_ever_more_slowly_and_said():
    clock, provider, pauses, said = Clock(), Provider(OLD), Pauses(), []
    keys = made(provider, clock, pause=pauses, said=said)
    provider.fault = FetchFailed("the connection failed (ConnectError)")
    keys.start()
    waits = []
    for _ in range(8):
        waits.append(await pauses.next())
        pauses.go.put_nowait(None)
    assert waits == [2, 4, 8, 16, 32, 60, 60, REFRESH_RETRY_MAX_S]
    assert set(said) == {f"issuer {NAME}: the connection failed (ConnectError)"}
    await pauses.next()
    provider.fault = None
    pauses.go.put_nowait(None)
    assert await pauses.next() == HOUR * 0.8
    assert await keys.find("old")
    await keys.close()


@story
async def test_a_fault_of_ours_does_not_end_the_refreshing():
    clock, provider, pauses, said = Clock(), Provider(OLD), Pauses(), []
    keys = made(provider, clock, pause=pauses, said=said)
    provider.fault = ZeroDivisionError("with a secret")
    keys.start()
    await pauses.next()
    assert said == [f"issuer {NAME}: ZeroDivisionError"]
    provider.fault = None
    pauses.go.put_nowait(None)
    await pauses.next()
    assert keys.detail() == ""
    await keys.close()


@story
async def test_old_keys_serve_for_a_bounded_time_when_the_provider_is_away_then_none():
    clock, provider = Clock(), Provider(OLD, fresh_s=HOUR)
    keys = made(provider, clock, stale_s=2 * HOUR)
    assert keys.detail() == f"issuer {NAME}: no keys yet"
    await keys.find("old")
    assert keys.detail() == ""
    provider.fault = FetchFailed("away")
    clock.seconds += HOUR
    assert keys.detail() == f"issuer {NAME}: keys could not be renewed"
    clock.seconds += 2 * HOUR - 1
    assert await keys.find("old")
    clock.seconds += 1
    assert keys.usable(clock()) == {}
    assert await refused(keys, "old") == "keys-unavailable"
    assert keys.detail() == f"issuer {NAME}: keys could not be renewed, too long"
    provider.fault = None
    clock.seconds += 30
    assert await keys.find("old")
    await keys.close()


@story
async def test_without_a_stale_time_keys_end_when_they_are_no_longer_fresh():
    clock, provider = Clock(), Provider(OLD, fresh_s=HOUR)
    keys = made(provider, clock, stale_s=0)
    await keys.find("old")
    provider.fault = FetchFailed("away")
    clock.seconds += HOUR
    assert await refused(keys, "old") == "keys-unavailable"
    await keys.close()


@story
async def test_a_new_key_is_fetched_when_it_is_first_seen_and_old_ones_stay_usable_meanwhile():
    clock, provider = Clock(), Provider(OLD)
    keys = made(provider, clock)
    old = await keys.find("old")
    provider.signers = (OLD, NEW)
    provider.open.clear()
    clock.seconds += 30
    waiting = [asyncio.create_task(keys.find("new")) for _ in range(50)]
    await asyncio.sleep(0)
    assert await keys.find("old") is old, "a known key does not wait for the refresh"
    assert not any(task.done() for task in waiting)
    provider.open.set()
    assert len(set(map(id, await asyncio.gather(*waiting)))) == 1
    assert provider.fetches == 2
    assert await keys.find("old") is old, "a key that stays is the same object"
    await keys.close()


@story
async def test_a_flight_that_began_before_the_key_was_published_is_not_the_last_word():
    clock, provider, pauses = Clock(), Provider(OLD), Pauses()
    keys = made(provider, clock, pause=pauses)
    serve = provider.fetch

    async def late():
        old = provider.signers
        await provider.open.wait()
        answer, provider.signers = provider.signers, old  # what was read before the key was there
        try:
            return await serve()
        finally:
            provider.signers = answer

    provider.open.clear()
    provider.fetch = late
    keys.start()
    await asyncio.sleep(0)
    waiting = asyncio.create_task(keys.find("new"))
    await asyncio.sleep(0)
    provider.signers = (OLD, NEW)
    provider.open.set()
    assert await waiting
    assert provider.fetches == 2
    await keys.close()


@story
async def test_a_withdrawn_key_ends_with_the_refresh():
    clock, provider = Clock(), Provider(OLD, NEW)
    keys = made(provider, clock)
    await keys.find("old")
    provider.signers = (NEW,)
    clock.seconds += 30
    assert await refused(keys, "other") == "key-unknown"
    assert set(keys.usable(clock())) == {"new"}
    await keys.close()


@story
async def test_another_key_under_the_same_name_is_another_key():
    clock, provider = Clock(), Provider(OLD)
    keys = made(provider, clock)
    before = await keys.find("old")
    provider.signers = (Signer("old"),)
    clock.seconds += 30
    await refused(keys, "other")
    assert (await keys.find("old")) is not before
    await keys.close()


@story
async def test_a_flood_of_invented_ids_costs_one_fetch_in_a_cooldown():
    clock, provider = Clock(), Provider(OLD)
    keys = made(provider, clock, cooldown_s=30)
    await keys.find("old")
    start = provider.fetches
    for second in range(90):
        clock.seconds += 1
        for number in range(20):
            assert await refused(keys, f"{second}-{number}") == "key-unknown"
    assert provider.fetches - start == 3
    await keys.close()


@story
async def test_a_flood_in_one_moment_is_one_flight_and_no_more_wait_than_may():
    clock, provider = Clock(), Provider(OLD)
    keys = made(provider, clock)
    provider.open.clear()
    tasks = [asyncio.create_task(refused(keys, str(number))) for number in range(MAX_KEY_WAITERS + 10)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sum(task.done() for task in tasks) == 10
    provider.open.set()
    assert set(await asyncio.gather(*tasks)) == {"key-unknown", "keys-unavailable"}
    assert provider.fetches == 1
    await keys.close()


@story
async def test_a_caller_that_goes_away_does_not_end_the_flight_of_the_others():
    clock, provider = Clock(), Provider(OLD)
    keys = made(provider, clock)
    provider.open.clear()
    first, second = asyncio.create_task(keys.find("old")), asyncio.create_task(keys.find("old"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    provider.open.set()
    assert await second
    assert provider.fetches == 1
    await keys.close()


@pytest.mark.parametrize(
    "served",
    [
        {"keys": []},
        {"keys": "x"},
        {"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "old"}]},
        {"keys": [OLD.public | {"d": "AAAA"}]},
        {"keys": [OLD.public, OLD.public]},
        {"keys": [{name: value for name, value in OLD.public.items() if name != "kid"}]},
    ],
)
def test_a_set_that_is_not_for_verifying_changes_nothing(served):
    async def run():
        clock, provider, said = Clock(), Provider(OLD), []
        keys = made(provider, clock, said=said)
        await keys.find("old")
        clock.seconds += 30

        async def serve():
            return FetchedKeys(data=json.dumps(served).encode(), fresh_s=HOUR)

        provider.fetch = serve
        assert await refused(keys, "new") == "key-unknown"
        assert set(keys.usable(clock())) == {"old"}
        assert len(said) == 1
        assert "AAAA" not in said[0]
        await keys.close()

    asyncio.run(run())


@story
async def test_closing_ends_a_flight_that_hangs():
    clock, provider = Clock(), Provider(OLD)
    keys = made(provider, clock)
    provider.open.clear()
    keys.start()
    await asyncio.sleep(0)
    await asyncio.wait_for(keys.close(), 60)
    assert provider.closed
