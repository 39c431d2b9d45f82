"""Which policy is in force in the host: at its start, at an apply, and when an apply cannot be kept or recorded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from audit.errors import LogUnavailable
from audit.log import AuditLog
from audit.query import AuditReader, RecordFilter
from gateway.provisioning import provision
from policy.budgets import PrivacyBudget, Window
from policy.errors import PolicyFileError
from policy.history import InForce, PolicyHistory
from sealgate.deployment import Deployment
from sealgate.protocol.administration import ApplyPolicy
from sealgate.protocol.frames import Recorded, Refused
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.record import Record
from secure_runtime.host.policies import HostPolicy, PolicyKeeper, grants_of, open_policy

ORIGIN = "host.test/log"
FORBID = '@id("nobody") forbid (principal, action, resource);'


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return provision(tmp_path / "d", audience="localhost:8443", origin=ORIGIN, profile="dev")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    opened = AuditLog.open(
        f"sqlite:///{tmp_path}/audit.sqlite",
        signer=NoteSigner.from_seed(ORIGIN, b"s" * 32),
        subjects_key=b"k" * 32,
        origin=ORIGIN,
        disk_reserve_bytes=0,
    )
    yield opened
    opened.close()


def records(log: AuditLog, folder: Path, *, without: tuple[str, ...] = ("log.", "budget.")) -> list[Record]:
    log.close()
    with closing(AuditReader(f"sqlite:///{folder}/audit.sqlite", origin=ORIGIN)) as reader:
        page = reader.records(RecordFilter(oldest_first=True), limit=1000)
    return [entry.record for entry in page.records if not entry.record.kind.startswith(without)]


def stored(deployment: Deployment, own: str = FORBID) -> str:
    (deployment.policy / "own.cedar").write_text(own)
    return PolicyHistory(deployment.policy_history).store(deployment.policy)


class Desk:
    """A keeper over a real log and a real history; `in_force` is what it was told to let decide."""

    def __init__(self, deployment: Deployment, log: AuditLog) -> None:
        self.deployment, self.log = deployment, log
        self.told: list[str] = []
        self.in_force: list[str] = []
        self.opened = open_policy(deployment, tell=self.told.append)
        self.history = PolicyHistory(deployment.policy_history)

    def keeper(self) -> PolicyKeeper:
        def put_in_force(policy: HostPolicy) -> None:
            self.in_force.append(policy.digest)

        return PolicyKeeper(self.deployment, self.log, self.opened, put_in_force=put_in_force)

    def apply(self, *digests: str) -> list[Any]:
        async def play() -> list[Any]:
            keeper = self.keeper()
            return await asyncio.gather(
                *(keeper.apply(ApplyPolicy(id=9, digest=digest, note="why"), by="uid:7") for digest in digests)
            )

        return asyncio.run(play())


@pytest.fixture
def desk(deployment: Deployment, log: AuditLog) -> Callable[[], Desk]:
    return lambda: Desk(deployment, log)


def test_the_first_start_adopts_the_working_copy_and_later_ones_do_not(
    desk: Callable[[], Desk], deployment: Deployment
) -> None:
    first = desk()
    assert first.told == []
    assert first.history.current() == InForce(digest=first.opened.policy.digest)
    (deployment.policy / "own.cedar").write_text(FORBID)
    second = desk()
    assert second.opened.policy.digest == first.opened.policy.digest
    assert "differs and is not in force" in second.told[0]
    assert "sealgate policy apply" in second.told[0]
    (deployment.policy / "own.ceder").write_text(FORBID)
    assert "cannot be read" in desk().told[0]


def test_a_working_copy_that_does_not_validate_is_not_adopted(desk: Callable[[], Desk], deployment: Deployment) -> None:
    (deployment.policy / "own.cedar").write_text("permit (")
    with pytest.raises(PolicyFileError, match=r"own\.cedar"):
        desk()
    assert PolicyHistory(deployment.policy_history).current() is None


def test_a_policy_decides_in_the_moment_in_which_its_record_is_queued(
    desk: Callable[[], Desk], deployment: Deployment, log: AuditLog, tmp_path: Path
) -> None:
    one = desk()
    digest = stored(deployment)
    let = threading.Event()

    def hold_up(_: Any, draft: Record) -> Record:
        assert let.wait(60)
        return draft

    async def play() -> tuple[Any, list[str]]:
        log.append(Record(kind="audit.query"), hold_up)
        applying = asyncio.ensure_future(one.keeper().apply(ApplyPolicy(digest=digest), by="uid:7"))
        async with asyncio.timeout(60):
            while not one.in_force:  # noqa: ASYNC110 - the loading thread has no event
                await asyncio.sleep(0.001)
        before, answered = list(one.in_force), applying.done()
        log.append(Record(kind="audit.export", policy_digest=digest))  # decided by the new policy
        assert not answered, "it decides, but nobody hears of it before it is on disk"
        let.set()
        return await applying, before

    reply, before = asyncio.run(play())
    assert isinstance(reply, Recorded)
    assert before == [digest]
    assert [record.kind for record in records(log, tmp_path)] == ["audit.query", "policy.change", "audit.export"]


def test_an_apply_names_what_was_in_force_before(desk: Callable[[], Desk], log: AuditLog, tmp_path: Path) -> None:
    one = desk()
    first = one.opened.policy.digest
    second = stored(one.deployment)
    replies = one.apply(second, first, first)
    assert [type(reply) for reply in replies] == [Recorded] * 3
    assert {reply.id for reply in replies} == {9}
    found = records(log, tmp_path)
    assert [(record.policy_digest, record.detail["previous"]) for record in found] == [
        (second, first),
        (first, second),
        (first, first),
    ]
    assert {(record.reason, record.detail["by"], record.detail["note"]) for record in found} == {
        ("applied", "uid:7", "why")
    }
    assert one.history.current().digest == first  # type: ignore[union-attr]


def renamed(deployment: Deployment, *changes: tuple[str, str]) -> str:
    path = deployment.policy / "budgets.toml"
    for old, new in changes:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    return PolicyHistory(deployment.policy_history).store(deployment.policy)


def test_budgets_that_begin_anew_under_another_name_are_on_record(
    desk: Callable[[], Desk], log: AuditLog, tmp_path: Path
) -> None:
    """Who renames a budget has it unspent again. The log shows it, also where it was done while no host ran."""
    one = desk()
    first = one.opened.policy.digest
    limits = renamed(one.deployment, ("requests = 60_000", "requests = 70_000"))
    name = renamed(one.deployment, ('"clinic-day"', '"clinic-today"'), ('"trial-app-day"', '"again"'))
    window = renamed(one.deployment, ('window = "minute"', 'window = "hour"'))
    many = "".join(
        f'[[budget]]\nname = "b{at:02}"\ntenant = "clinic"\nrequests = 1\nwindow = "day"\n' for at in range(20)
    )
    plenty = renamed(one.deployment, ("# How much", f"{many}\n# How much"))
    one.apply(limits, name, window, plenty, first)
    one.history.replace_current(InForce(digest=name))

    async def start() -> None:
        await desk().keeper().record_start(first)
        await desk().keeper().record_start("f" * 64)

    asyncio.run(start())
    told = [record.detail.get("budgets_new", "") for record in records(log, tmp_path)]
    assert told[:3] == ["", "again clinic-today", "clinic-minute"]
    assert told[3] == " ".join(f"b{at:02}" for at in range(16)) + " and 4 more"
    assert told[4:] == ["clinic-day clinic-minute trial-app-day", "again clinic-today", ""]


@pytest.mark.parametrize("fault", ["missing", "changed", "unsound"])
def test_what_cannot_be_loaded_is_refused_and_nothing_changes(
    desk: Callable[[], Desk], log: AuditLog, tmp_path: Path, fault: str
) -> None:
    one = desk()
    before = one.history.current()
    digest = stored(one.deployment, "permit (" if fault == "unsound" else FORBID)
    if fault == "missing":
        one.history.path(digest).rename(tmp_path / "elsewhere")
    elif fault == "changed":
        (one.history.path(digest) / "more.cedar").write_text(FORBID)
    (reply,) = one.apply(digest)
    assert isinstance(reply, Refused)
    assert reply.code == ("policy-missing" if fault == "missing" else "policy-unsound")
    assert (one.in_force, one.history.current()) == ([], before)
    assert records(log, tmp_path) == []


def test_what_cannot_be_recorded_is_taken_back(desk: Callable[[], Desk], log: AuditLog) -> None:
    one = desk()
    before = one.history.current()
    digest = stored(one.deployment)
    log.close()
    (reply,) = one.apply(digest)
    assert isinstance(reply, Refused)
    assert reply.code == "unavailable"
    assert (one.in_force, one.history.current()) == ([], before)


def test_a_log_that_fails_under_an_apply_answers_nobody_that_it_was_done(
    desk: Callable[[], Desk], log: AuditLog
) -> None:
    one = desk()
    digest = stored(one.deployment)
    let = threading.Event()

    def fail(_: Any, draft: Record) -> Record:
        assert let.wait(60)
        raise KeyboardInterrupt  # what ends the writer

    async def play() -> None:
        log.append(Record(kind="audit.query"), fail)
        applying = asyncio.ensure_future(one.keeper().apply(ApplyPolicy(digest=digest), by="uid:7"))
        async with asyncio.timeout(60):
            while not one.in_force:  # noqa: ASYNC110 - the loading thread has no event
                await asyncio.sleep(0.001)
        let.set()
        with pytest.raises(LogUnavailable):
            await applying

    asyncio.run(play())
    assert not log.state.ok, "and so nothing is served either"
    assert one.history.current().digest == digest, "the next start puts it in force and on record"  # type: ignore[union-attr]


def test_what_cannot_be_kept_is_refused(
    desk: Callable[[], Desk], log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = desk()
    digest = stored(one.deployment)

    def full(self: PolicyHistory, value: InForce) -> None:
        raise PolicyFileError("no space left")

    monkeypatch.setattr(PolicyHistory, "replace_current", full)
    (reply,) = one.apply(digest)
    assert isinstance(reply, Refused)
    assert reply.code == "policy-not-kept"
    assert one.in_force == []
    assert records(log, tmp_path) == []


@pytest.mark.parametrize(("previous", "reason"), [("", "start"), ("same", "start"), ("other", "applied-while-stopped")])
def test_a_start_says_whether_it_brought_another_policy(
    desk: Callable[[], Desk], log: AuditLog, tmp_path: Path, previous: str, reason: str
) -> None:
    one = desk()
    before = {"same": one.opened.policy.digest, "other": "f" * 64}.get(previous, "")

    async def play() -> None:
        await one.keeper().record_start(before)

    asyncio.run(play())
    (record,) = records(log, tmp_path)
    assert (record.kind, record.reason, record.policy_digest) == ("policy.change", reason, one.opened.policy.digest)
    assert record.detail.get("previous", "") == before
    assert ("by" in record.detail) == (reason != "start")
    assert (record.detail["name"], record.detail["profile"]) == ("shipped", "dev")


BUDGETS = """
[[budget]]
name = "day"
tenant = "clinic"
window = "day"
requests = {requests}
[[budget]]
name = "one"
tenant = "clinic"
subject = "alice"
window = "hour"
units = 7
units_per_request = 7
"""


def test_what_a_policy_grants_is_on_record_when_it_begins_or_changes(
    desk: Callable[[], Desk], deployment: Deployment, log: AuditLog, tmp_path: Path
) -> None:
    (deployment.policy / "budgets.toml").write_text(BUDGETS.format(requests=10))
    one = desk()

    async def start() -> None:
        await one.keeper().record_start("")

    asyncio.run(start())
    (deployment.policy / "budgets.toml").write_text(BUDGETS.format(requests=20))
    more = stored(deployment)
    assert isinstance(one.apply(more)[0], Recorded)
    found = [record for record in records(log, tmp_path, without=("log.",)) if record.kind == "budget.grant"]
    day = {"budget": "day", "window": "day"}
    assert [(record.tenant, record.detail) for record in found] == [
        ("clinic", day | {"requests": "10"}),
        ("clinic", {"budget": "one", "window": "hour", "units": "7", "caller": "one"}),
        ("clinic", day | {"requests": "20", "by": "uid:7"}),
    ]
    assert [record.policy_digest for record in found] == [one.opened.policy.digest] * 2 + [more]
    assert not any("alice" in str(record) for record in found)


def test_what_a_privacy_budget_grants() -> None:
    share = PrivacyBudget(
        name="p", population="patients", models=("m" * 120, "n" * 120), epsilon="1.5", window=Window.YEAR
    )
    ((tenant, detail),) = grants_of((), (share,))
    assert (tenant, dict(detail)) == (
        "",
        {"budget": "p", "window": "year", "epsilon": "1.5", "population": "patients", "models": "2"},
    )
