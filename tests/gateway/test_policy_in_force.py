"""The gateway follows the host from policy to policy: it decides by the one in force, as a whole, or not at all."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable

import pytest

from gateway.app import make_gate
from gateway.errors import Problem
from gateway.policy_in_force import PolicyInForce
from gateway.telemetry import Telemetry
from policy.decide import PolicySet, load_policy
from policy.errors import PolicyFileError
from policy.history import InForce, PolicyHistory
from sealgate.deployment import Deployment
from sealgate.protocol import frames
from tests.gateway.conftest import Running, plain_answer, post_sealed

FORBID = '@id("nobody-at-all") forbid (principal, action, resource);'


def stored(deployment: Deployment, **files: str) -> str:
    """The digest of a version with other files, kept in the history as `sealgate policy apply` keeps it."""
    for name, text in files.items():
        (deployment.policy / name.replace("__", ".")).write_text(text)
    return PolicyHistory(deployment.policy_history).store(deployment.policy)


def test_another_policy_decides_from_the_moment_on_in_which_the_host_says_so(gateway: Running) -> None:
    client = gateway.client(token=gateway.token())
    assert post_sealed(client).status_code == 200
    before = gateway.gate.policy.digest
    digest = stored(gateway.deployment, own__cedar=FORBID)
    assert post_sealed(client).status_code == 200, "nobody applied it"
    gateway.host.push(policy_digest=digest)
    gateway.until(lambda: gateway.gate.policy.digest == digest)
    assert post_sealed(client).status_code == 403
    deny = gateway.host.heard(frames.Deny)[-1]
    assert (deny.decision.policy_digest, deny.decision.policy_ids) == (digest, ("nobody-at-all",))
    (gateway.deployment.policy / "own.cedar").unlink()
    gateway.host.push(policy_digest=stored(gateway.deployment))
    gateway.until(lambda: gateway.gate.policy.digest == before)
    assert post_sealed(client).status_code == 200


def test_a_certificate_stands_for_whom_the_policy_in_force_says(gateway: Running) -> None:
    client = gateway.client(certificate="integration")
    assert post_sealed(client).status_code == 200
    tenants = (gateway.deployment.policy / "tenants.toml").read_text()
    assert '"hospital-integration"' in tenants
    digest = stored(gateway.deployment, tenants__toml=tenants.replace('"hospital-integration"', '"somebody-else"'))
    gateway.host.push(policy_digest=digest)
    gateway.until(lambda: gateway.gate.policy.digest == digest)
    assert post_sealed(client).status_code == 200, "the connection is still the same"
    told = [frame.caller.subject for frame in gateway.host.heard(frames.Submit, 2)]
    assert told == ["hospital-integration", "somebody-else"]


def test_what_the_host_sends_back_is_decided_anew_under_the_new_policy(gateway: Running) -> None:
    """The host changes its policy between our decision and its record; the caller notices nothing of it."""
    tenants = (gateway.deployment.policy / "tenants.toml").read_text()
    digest = stored(gateway.deployment, tenants__toml=tenants.replace('"hospital-integration"', '"somebody-else"'))
    seen: list[tuple[str, str]] = []

    def script(frame: object, body: bytes) -> object:
        if not isinstance(frame, frames.Submit):
            return plain_answer(frame, body)
        seen.append((frame.decision.policy_digest, frame.caller.subject))
        if frame.decision.policy_digest != digest:
            gateway.host.tell(policy_digest=digest)
            return frames.Refused(status=503, code="policy-changed"), b""
        return plain_answer(frame, body)

    gateway.host.script = script
    first = gateway.gate.policy.digest
    assert post_sealed(gateway.client(certificate="integration")).status_code == 200
    assert seen == [(first, "hospital-integration"), (digest, "somebody-else")]


def test_a_host_that_sends_everything_back_is_an_outage(gateway: Running) -> None:
    gateway.host.script = lambda frame, body: (frames.Refused(status=503, code="policy-changed"), b"")
    answer = post_sealed(gateway.client(token=gateway.token()))
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:sealgate:problem:unavailable")
    assert 1 < len(gateway.host.heard(frames.Submit)) < 20
    reader = gateway.client(certificate="auditor")
    assert reader.get("/audit/v1/checkpoint").status_code == 503


@pytest.mark.parametrize("fault", ["missing", "changed", "extra", "unsound"])
def test_a_policy_that_cannot_be_loaded_is_an_outage_and_never_the_old_one(gateway: Running, fault: str) -> None:
    text = "permit (" if fault == "unsound" else '@id("more") ' + FORBID.partition(" ")[2]
    digest = stored(gateway.deployment, own__cedar=text)
    version = PolicyHistory(gateway.deployment.policy_history).path(digest)
    own = version / "own.cedar"
    if fault == "missing":
        version.rename(version.with_name("elsewhere"))
    elif fault == "changed":
        own.chmod(0o644)
        own.write_text('@id("more") permit (principal, action, resource);')
    elif fault == "extra":
        (version / "more.cedar").write_text(FORBID)
    client = gateway.client(token=gateway.token())
    gateway.host.push(policy_digest=digest)
    gateway.until(lambda: gateway.events("policy-not-loaded"))
    for _ in range(2):
        answer = post_sealed(client)
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:sealgate:problem:unavailable")
    assert post_sealed(gateway.client(certificate="integration")).status_code == 503
    assert gateway.client(certificate="auditor").get("/audit/v1/checkpoint").status_code == 503
    ready = gateway.client().get("/health/ready")
    assert (ready.status_code, ready.json()["detail"]) == (503, "The policy in force is not loaded here.")
    assert not [frame for frame, _ in gateway.host.told if isinstance(frame, frames.Submit)]
    if fault == "missing":  # and as soon as it can be loaded, it is
        version.with_name("elsewhere").rename(version)
        gateway.until(lambda: gateway.client().get("/health/ready").status_code == 200)
        assert post_sealed(client).status_code == 403


def test_a_gateway_starts_with_what_is_in_force_not_with_the_working_copy(
    deployment: Deployment, host: object, run_gateway: Callable[..., Running]
) -> None:
    history = PolicyHistory(deployment.policy_history)
    digest = stored(deployment)
    history.replace_current(InForce(digest=digest))
    (deployment.policy / "own.cedar").write_text("not even Cedar")
    running = run_gateway()
    assert running.gate.policy.digest == digest
    assert post_sealed(running.client(token=running.token())).status_code == 200


def test_a_gateway_does_not_start_with_a_version_that_was_changed(deployment: Deployment) -> None:
    history = PolicyHistory(deployment.policy_history)
    digest = stored(deployment)
    history.replace_current(InForce(digest=digest))
    (history.path(digest) / "more.cedar").write_text(FORBID)
    with pytest.raises(PolicyFileError, match="has been changed since it was stored"):
        make_gate(deployment, telemetry=Telemetry())


# The holder alone ----------------------------------------------------------------------------------------------------


@pytest.fixture
def first(deployment: Deployment) -> PolicySet:
    return load_policy(deployment.policy)


class Loader:
    """Loads when it is let; fails for the digests in `missing`."""

    def __init__(self, first: PolicySet) -> None:
        self.first = first
        self.let = threading.Event()
        self.missing: set[str] = set()
        self.asked: list[str] = []

    def __call__(self, digest: str) -> PolicySet:
        self.asked.append(digest)
        assert self.let.wait(60)
        if digest in self.missing:
            raise PolicyFileError("not there")
        return PolicySet(digest=digest, rules={}, tenants=self.first.tenants, budgets=(), engine=self.first._engine)


def test_who_asks_while_it_is_loaded_waits_and_gets_the_newest(first: PolicySet) -> None:
    async def play() -> None:
        load = Loader(first)
        policies = PolicyInForce(first, load=load, telemetry=Telemetry(stream=io.StringIO()))
        assert await policies.now() is first
        assert policies.still(first)
        policies.follow("a")
        assert not policies.still(first), "at once, before anything is loaded"
        waiting = [asyncio.ensure_future(policies.now()) for _ in range(3)]
        await asyncio.sleep(0)
        policies.follow("b")
        policies.follow("c")
        load.let.set()
        assert {policy.digest for policy in await asyncio.gather(*waiting)} == {"c"}
        assert load.asked == ["a", "c"]
        await policies.close()

    asyncio.run(play())


def test_the_wait_for_a_policy_ends(first: PolicySet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.policy_in_force.POLICY_WAIT_S", 0.05)

    async def play() -> None:
        load = Loader(first)
        policies = PolicyInForce(first, load=load, telemetry=Telemetry(stream=io.StringIO()))
        policies.follow("a")
        with pytest.raises(Problem) as caught:
            await policies.now()
        assert caught.value.code == "unavailable"
        load.let.set()
        await policies.close()

    asyncio.run(play())


def test_a_failed_load_lets_go_of_who_waits_and_another_version_is_tried_at_once(
    first: PolicySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.policy_in_force.POLICY_RETRY_S", 3600)

    async def play() -> None:
        load = Loader(first)
        load.missing = {"a"}
        load.let.set()
        policies = PolicyInForce(first, load=load, telemetry=Telemetry(stream=io.StringIO()))
        policies.follow("a")
        for _ in range(2):
            with pytest.raises(Problem):
                await policies.now()
        policies.follow("b")
        assert (await policies.now()).digest == "b"
        await policies.close()

    asyncio.run(play())


def test_nothing_is_loaded_after_the_end(first: PolicySet) -> None:
    async def play() -> None:
        load = Loader(first)
        load.missing = {"a"}
        load.let.set()
        policies = PolicyInForce(first, load=load, telemetry=Telemetry(stream=io.StringIO()))
        policies.follow("a")
        with pytest.raises(Problem):
            await policies.now()
        await policies.close()
        assert load.asked == ["a"]

    asyncio.run(play())
