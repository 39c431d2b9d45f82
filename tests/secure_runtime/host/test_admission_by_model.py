"""What admission does for single models: how many requests at once, which version, which worker, and no version that
the policy was not asked about."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from sealgate.deployment import Canary, ModelSection
from sealgate.protocol.frames import Answer, Decision, Submit
from secure_runtime.host.admission import LiveWorker
from secure_runtime.host.choice import ModelRules, is_canary
from tests.secure_runtime.host.test_admission import BODY, CALLER, POLICY, Desk
from tests.secure_runtime.host.test_admission import desk as desk

OWN = ("b" * 64,)  # the certificate of the only version that the desk's worker has


def frame(**changes: Any) -> Submit:
    values: dict[str, Any] = {
        "id": 5,
        "model": "m",
        "operation": "infer",
        "purpose": "treatment",
        "media_type": "message/ohttp-req",
        "caller": CALLER,
        "decision": Decision(policy_digest=POLICY, policy_ids=("clients-infer",)),
        "judged": ("b" * 64, "c" * 64),
        **changes,
    }
    return Submit(**values)


def ask(one: Desk, asked: Submit) -> Any:
    return asyncio.run(one.admission.submit(asked, BODY, asyncio.Event()))[0]


def held_back(one: Desk) -> asyncio.Event:
    """The worker answers nothing until this is set."""
    let_go, honest = asyncio.Event(), one.link.run

    async def held(grant: Any, body: bytes, **more: Any) -> Any:
        await let_go.wait()
        return await honest(grant, body, **more)

    one.link.run = held  # type: ignore[method-assign]
    return let_go


def test_beyond_max_concurrent_a_caller_is_told_to_come_again_on_record(desk: Callable[..., Desk]) -> None:
    one = desk()
    one.admission = one.make(rules=ModelRules({"m": ModelSection(max_concurrent=1)}))
    let_go = held_back(one)

    async def both() -> tuple[Any, Any, Any]:
        first = asyncio.create_task(one.admission.submit(frame(), BODY, asyncio.Event()))
        while not one.admission.in_flight[0]:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)
        (second, _) = await one.admission.submit(frame(), BODY, asyncio.Event())
        let_go.set()
        (answered, _) = await first
        (third, _) = await one.admission.submit(frame(), BODY, asyncio.Event())
        return answered, second, third

    answered, second, third = asyncio.run(both())
    assert isinstance(answered, Answer)
    assert (second.status, second.code, second.retry_after_s) == (503, "busy", 1)
    assert isinstance(third, Answer)
    one.log.close()
    assert [(r.kind, r.reason) for r in one.records()].count(("inference.denied", "model-busy")) == 1


def test_one_caller_cannot_hold_every_place_of_a_model(desk: Callable[..., Desk]) -> None:
    """Seven requests of one caller and one of another one, for four places: one of them is not the first caller's."""
    one = desk()
    one.admission = one.make(rules=ModelRules({"m": ModelSection(max_concurrent=4)}))
    let_go = held_back(one)
    other = msgspec.structs.replace(CALLER, subject="somebody-else")

    async def ask_all() -> list[Any]:
        callers = [*[CALLER] * 7, other, other]
        asked = [
            asyncio.create_task(one.admission.submit(frame(caller=caller), BODY, asyncio.Event())) for caller in callers
        ]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 5:
            more, _ = await asyncio.wait(set(asked) - done, return_when=asyncio.FIRST_COMPLETED)
            done |= more
        let_go.set()
        return [reply for reply, _ in await asyncio.gather(*asked)]

    replies = asyncio.run(ask_all())
    assert [isinstance(reply, Answer) for reply in replies] == [True] * 3 + [False] * 4 + [True, False]
    one.log.close()
    assert [(r.kind, r.reason) for r in one.records()].count(("inference.denied", "model-busy")) == 5


def test_a_version_that_the_policy_was_not_asked_about_is_not_reached(desk: Callable[..., Desk]) -> None:
    one = desk()
    assert isinstance(ask(one, frame(judged=OWN)), Answer)
    assert isinstance(ask(one, frame(judged=("c" * 64, *OWN))), Answer)
    for judged in (("c" * 64,), ()):  # nothing said is nothing judged
        refused = ask(one, frame(judged=judged))
        assert (refused.status, refused.code) == (503, "policy-changed"), "the gateway decides anew"
    one.log.close()
    assert [r.kind for r in one.records()].count("inference.authorized") == 2


@pytest.mark.parametrize("percent", [0, 30, 100])
def test_the_grant_says_which_version_is_due(desk: Callable[..., Desk], percent: int) -> None:
    one = desk()
    section = ModelSection(default="1", canary=Canary(version="2", percent=percent))
    seen: list[tuple[str, str]] = []
    both = {"m": {"1": ("a" * 64, "b" * 64), "2": ("a" * 64, "c" * 64)}}
    one.admission = one.make(
        rules=ModelRules({"m": section}), worker=lambda *_: dataclasses.replace(one.worker(), models=both)
    )

    def answer(grant: Any, body: bytes) -> Any:
        seen.append((grant.id, grant.version))
        digest = {"1": "b", "2": "c"}[grant.version]
        return one.link.honest(grant, body, certificate_digest=digest * 64)

    one.link.script = answer
    for _ in range(12):
        assert isinstance(ask(one, frame()), Answer)
    assert all(version == ("2" if is_canary(grant, percent) else "1") for grant, version in seen)
    one.log.close()
    ends = {r.grant: r.certificate_digest[:1] for r in one.records() if r.kind == "inference.completed"}
    assert ends == {grant: {"1": "b", "2": "c"}[version] for grant, version in seen}


def test_a_worker_is_asked_for_by_model_and_key_and_owes_an_answer_until_its_record(desk: Callable[..., Desk]) -> None:
    one = desk()
    given: list[tuple[str, int]] = []
    owed: list[int] = []
    live = one.worker()

    def choose(model: str, key: int) -> LiveWorker:
        given.append((model, key))
        return live

    def answer(grant: Any, body: bytes) -> Any:
        owed.append(live.footing.expected)
        return one.link.honest(grant, body)

    one.admission, one.link.script = one.make(worker=choose), answer
    assert isinstance(ask(one, frame()), Answer)
    assert (given, owed, live.footing.expected) == ([("m", BODY[0])], [1], 0)
