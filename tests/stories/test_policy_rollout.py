"""Policies are applied to a deployment that serves: no request is dropped, and no record names the wrong policy."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from policy.history import InForce, PolicyHistory
from policy.store import digest_of_scenarios, read_scenarios
from sealgate.administration import HostAway, HostRefused, tell_host
from sealgate.errors import SealgateError
from sealgate.protocol.administration import ApplyPolicy, CredentialRevoked
from sealgate.transparency.record import Record
from tests.live import MODEL, Live, run_sealgate, wait_until

FORBID = '@id("nobody-at-all") @says("closed") forbid (principal, action, resource);'
DECIDED = ("inference.authorized", "inference.denied")


def stored(live: Live, own: str = "") -> str:
    """The digest of a version of the working copy with one more file, kept but not applied."""
    path = live.deployment.policy / "own.cedar"
    path.write_text(own) if own else path.unlink(missing_ok=True)
    return PolicyHistory(live.deployment.policy_history).store(live.deployment.policy)


def changes(live: Live) -> list[Record]:
    return [record for record in live.records() if record.kind == "policy.change"]


def in_force_at_each_record(records: list[Record]) -> None:
    """Every decision stands under the policy that the log says was in force at its place."""
    now = ""
    for record in records:
        if record.kind == "policy.change":
            now = record.policy_digest
        elif record.kind in DECIDED or record.kind.startswith("audit."):
            assert record.policy_digest == now, f"{record.kind} {record.id} was decided by another policy"


def test_a_policy_comes_into_force_while_it_is_served(fresh: Callable[[], Live]) -> None:
    live = fresh()
    live.start()
    live.ready()
    with live.session() as session:
        assert session.infer(MODEL, live.rows[:1]).labels
        (live.deployment.policy / "own.cedar").write_text(FORBID)
        refused = run_sealgate("policy", "apply", live.root, check=False)
        assert refused.returncode == 1
        assert "not applied: the policy does not answer its own scenarios" in refused.stderr
        assert "an application of the clinic asks for a treatment" in refused.stderr
        assert session.infer(MODEL, live.rows[:1]).labels

        for path in (live.deployment.policy / "scenarios").iterdir():
            path.unlink()
        scenario = '[[scenario]]\nname = "closed"\naction = "query-audit"\nexpect = "deny"\nby = ["nobody-at-all"]\n'
        (live.deployment.policy / "scenarios" / "closed.toml").write_text(scenario + 'caller = { tenant = "clinic" }\n')
        told = run_sealgate("policy", "apply", live.root, "--note", "incident 7: closed").stdout
        with pytest.raises(SealgateError):
            session.infer(MODEL, live.rows[:1])
    change = changes(live)[-1]
    assert f"as record {live.records().index(change)} says" in told
    history = PolicyHistory(live.deployment.policy_history)
    assert (change.reason, change.policy_digest) == ("applied", history.current().digest)  # type: ignore[union-attr]
    detail = change.detail
    assert (detail["name"], detail["version"], detail["note"]) == ("shipped", "1", "incident 7: closed")
    assert detail["previous"] == changes(live)[0].policy_digest
    assert detail["by"].startswith("uid:")
    assert (detail["scenarios"], detail["scenarios_digest"]) == (
        "1",
        digest_of_scenarios(read_scenarios(live.deployment.policy)),
    )
    listed = json.loads(run_sealgate("policy", "history", live.root, "--json").stdout)
    assert [version["content"] for version in listed["versions"]] == ["kept", "kept"]
    assert [version["in_force"] for version in listed["versions"]] == [False, True]
    first = listed["versions"][0]
    assert "own.cedar" not in run_sealgate("policy", "show", live.root, "--at", first["time"] + "999").stdout
    before = run_sealgate("policy", "show", live.root, "--at", "2020-01-31", check=False)
    assert f"since {first['time']} UTC" in before.stderr
    assert "own.cedar" in run_sealgate("policy", "show", live.root).stdout
    assert FORBID in run_sealgate("policy", "show", live.root, "own.cedar", "--at", change.policy_digest[:8]).stdout
    assert live.stop() == {"gateway": 0, "runtime": 0}
    in_force_at_each_record(live.records())


def test_what_a_host_puts_on_record_of_credentials_and_refuses_of_policies(fresh: Callable[[], Live]) -> None:
    live = fresh()
    live.start("runtime")
    wait_until(live.deployment.admin_socket.exists, within_s=60, what="the administration socket")
    fingerprint = hashlib.sha256(b"a token's jti").hexdigest()
    told = CredentialRevoked(what="token", fingerprint=fingerprint, tenant="clinic", note="lost")
    index = tell_host(live.deployment, told).record
    tell_host(live.deployment, CredentialRevoked(what="token", fingerprint=fingerprint, restored=True))
    with pytest.raises(HostRefused) as caught:
        tell_host(live.deployment, ApplyPolicy(digest="0" * 64))
    assert caught.value.code == "policy-missing"
    unsound = stored(live, "permit (")
    with pytest.raises(HostRefused) as caught:
        tell_host(live.deployment, ApplyPolicy(digest=unsound))
    assert caught.value.code == "policy-unsound"
    records = live.records()
    assert records[index].detail == {"what": "token", "fingerprint": fingerprint, "note": "lost", "by": _us()}
    assert (records[index].kind, records[index].tenant) == ("credential.revoke", "clinic")
    assert records[index + 1].kind == "credential.restore"
    assert len(changes(live)) == 1, "nothing came into force"
    live.stop()
    with pytest.raises(HostAway):
        tell_host(live.deployment, told)


def _us() -> str:
    return f"uid:{os.getuid()}"


def test_a_policy_applied_while_nobody_serves_is_in_force_and_on_record_from_the_start(
    fresh: Callable[[], Live],
) -> None:
    live = fresh()
    live.start("runtime")
    wait_until(live.deployment.admin_socket.exists, within_s=60, what="the administration socket")
    live.stop()
    before = changes(live)[-1].policy_digest
    manifest = live.deployment.policy / "manifest.toml"
    manifest.write_text(manifest.read_text().replace('version = "1"', 'version = "2"'))
    assert "from the next start on" in run_sealgate("policy", "apply", live.root, "--note", "quiet hours").stdout
    assert json.loads(run_sealgate("policy", "history", live.root, "--json").stdout)["pending"]
    manifest.write_text("this is edited further and not in force")
    live.start("runtime")
    wait_until(lambda: len(changes(live)) == 2, within_s=60, what="the record of the change")
    change = changes(live)[-1]
    assert (change.reason, change.detail["version"], change.detail["previous"], change.detail["note"]) == (
        "applied-while-stopped",
        "2",
        before,
        "quiet hours",
    )
    assert (change.detail["by"], change.detail["scenarios"]) == (_us(), "19")
    assert "the working copy cannot be read" in live.said("runtime") or "differs" in live.said("runtime")
    live.stop()


def test_a_version_that_was_changed_stops_the_start(fresh: Callable[[], Live]) -> None:
    live = fresh()
    live.start("runtime")
    wait_until(live.deployment.admin_socket.exists, within_s=60, what="the administration socket")
    live.stop()
    history = PolicyHistory(live.deployment.policy_history)
    version = history.path(history.current().digest)  # type: ignore[union-attr]
    (version / "more.cedar").write_text('@id("more") permit (principal, action, resource);')
    for name in ("runtime", "gateway"):
        done = run_sealgate(name, live.root, check=False)
        assert done.returncode == 1
        assert "has been changed since it was stored" in done.stderr
        assert done.stderr.count("\n") == 1


def test_no_request_is_dropped_or_decided_by_two_policies_while_fifty_are_applied(fresh: Callable[[], Live]) -> None:
    """Two policies that differ in what they oblige to; every answer is one policy's or the other's, as recorded."""
    live = fresh()
    fewer = '@id("fewer-digits") @round_digits("2") permit (principal is Client, action == Action::"infer", resource);'
    versions = [stored(live, fewer), stored(live)]
    live.start()
    live.ready()
    failures: list[BaseException] = []
    answered: Counter[int] = Counter()
    stop = threading.Event()

    def ask(certificate: str | None) -> None:
        more: dict[str, Any] = {"certificate": live.certificate(certificate)} if certificate else {}
        try:
            with live.session(**more) as session:
                while not stop.is_set():
                    result = session.infer(MODEL, live.rows[:1])
                    answered[result.receipt.index] += 1
        except SealgateError as error:
            failures.append(error)

    callers = [threading.Thread(target=ask, args=(name,)) for name in (None, None, "integration")]
    for caller in callers:
        caller.start()

    def more(count: int) -> None:
        wanted = sum(answered.values()) + count
        wait_until(lambda: sum(answered.values()) >= wanted or failures, within_s=60, what="answers")

    try:
        more(1)
        for number in range(50):
            tell_host(live.deployment, ApplyPolicy(digest=versions[number % 2], note=f"round {number}"))
            if number % 25 == 0:
                more(len(callers) + 1)  # one of them was asked for after the change, so that both policies are met
        more(20)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert failures == []
    records = live.records()
    assert [record.policy_digest for record in records if record.kind == "policy.change"][1:] == versions * 25
    in_force_at_each_record(records)
    asked = [record for record in records if record.operation == "infer"]  # sessions read metadata too
    begun = [record for record in asked if record.kind == "inference.authorized"]
    ended = [record for record in asked if record.kind == "inference.completed"]
    assert len(begun) == len(ended) == sum(answered.values()) > 20
    assert not [record for record in records if record.kind == "inference.denied"]
    assert len({record.policy_digest for record in begun}) == 2, "the load met both policies"
    for record in begun:
        assert ("fewer-digits" in record.policy_ids) == (record.policy_digest == versions[0])


def test_an_apply_that_was_cut_off_leaves_one_policy_or_the_other(fresh: Callable[[], Live]) -> None:
    """SIGKILL of the host in the middle of applies: the next start has a whole policy, and says which."""
    live = fresh()
    versions = [stored(live, FORBID), stored(live)]
    live.start("runtime")
    wait_until(live.deployment.admin_socket.exists, within_s=60, what="the administration socket")

    def apply_for_ever() -> None:
        try:
            for number in range(10_000):
                tell_host(live.deployment, ApplyPolicy(digest=versions[number % 2]))
        except (HostAway, HostRefused):
            return

    applying = threading.Thread(target=apply_for_ever)
    applying.start()
    wait_until(lambda: len(changes(live)) > 5, within_s=60, what="a few applies")
    live.kill("runtime")
    applying.join()
    stated = PolicyHistory(live.deployment.policy_history).current()
    assert isinstance(stated, InForce)
    assert stated.digest in versions
    count = len(changes(live))
    live.start("runtime")
    wait_until(lambda: len(changes(live)) > count, within_s=60, what="the record of the start")
    assert changes(live)[-1].policy_digest == stated.digest
    live.stop()
