"""Models change while callers ask without pause: none of them is refused or left without an answer, whatever happens to
the workers that are being made ready; and the log says which version answered whom, and why."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save

from gateway.provisioning import provision
from sealgate.administration import ask_host
from sealgate.certificate.audits import PROBES
from sealgate.certificate.schema import Audit, AuditProbe
from sealgate.demo.stage import free_port
from sealgate.errors import EvidenceError
from sealgate.evidence.trust import load_trust
from sealgate.protocol.administration import AskModels, ChangeModels, ModelsTold
from sealgate.transparency.record import ENDS, Record
from sealgate.transparency.verifier import LogTrust, verify_bundle
from secure_runtime.doctor import best_profile
from secure_runtime.host.choice import is_canary
from tests.live import Live, reader, wait_until
from tests.sealgate.certificate.conftest import Forge, a_manifest
from tests.secure_runtime.models.conftest import weights_for, write_publishers

ROWS = [[0.1, -0.2, 0.3], [0.5, 0.5, -0.5]]


def forged(key: Ed25519PrivateKey, *, name: str = "toy", version: str, **changes: Any) -> Forge:
    """A bundle whose weights, and so its answers, are its version's own."""
    manifest = msgspec.structs.replace(
        a_manifest(), name=name, version=version, purposes=("treatment", "research"), **changes
    )
    weights = bytes(save(weights_for(manifest.architecture, seed=sum(map(ord, version)))))
    made = Forge(key=key, manifest=manifest, bundle_name=name, weights=weights)
    probes = tuple(AuditProbe(name=one, verdict="held", found="0 of 1") for one in PROBES["lanes-and-replay"])
    audit = Audit(
        method="lanes-and-replay",
        epsilon_lower_micro=1000,
        confidence_ppm=999_000,
        canaries=20_000,
        steps=60,
        probes=probes,
        code_digest=made.certificate.environment.code_digest,
    )
    return made.claim(model=name, version=version, audit=audit)


class Repository:
    """A deployment whose folder of models the test fills."""

    def __init__(self, folder: Path, **runtime: Any) -> None:
        self.root = folder / "d"
        self.key = Ed25519PrivateKey.generate()
        provision(self.root, audience=f"localhost:{free_port()}", origin="localhost/test", profile=best_profile())
        write_publishers(self.root / "publishers.toml", Forge(key=self.key))
        self.settings = (self.root / "deployment.toml").read_text()
        self.runtime = {"drain_s": 1.0, **runtime}
        self.configure("")
        self.live = Live(self.root, ROWS)

    def configure(self, models: str) -> None:
        """`deployment.toml`, with settings of single models."""
        lines = "".join(f"{name} = {msgspec.json.encode(value).decode()}\n" for name, value in self.runtime.items())
        text = self.settings.replace("[runtime]\n", f"[runtime]\n{lines}")
        (self.root / "deployment.toml").write_text(f"{text}\n{models}")

    def put(self, place: str, **changes: Any) -> None:
        name, _, version = place.partition("/")
        forged(self.key, name=name, version=version or "1", **changes).write(self.root / "models" / place)

    def ask(self, what: str, *places: str, note: str = "") -> ModelsTold:
        frame = ChangeModels(what=what, places=places, note=note)  # type: ignore[arg-type]
        return ask_host(self.live.deployment, frame, ModelsTold, timeout_s=120)

    def told(self) -> dict[str, str]:
        """How each bundle stands."""
        told = ask_host(self.live.deployment, AskModels(), ModelsTold)
        return {one.place: f"{one.state} {one.answers}{one.reason}".strip() for one in told.models}


@pytest.fixture
def repository() -> Iterator[Callable[..., Repository]]:
    made: list[Repository] = []

    def make(**runtime: Any) -> Repository:
        made.append(Repository(Path(tempfile.mkdtemp(prefix="sg-")), **runtime))
        return made[-1]

    yield make
    for one in made:
        one.live.stop()
        shutil.rmtree(one.root.parent, ignore_errors=True)


class Callers:
    """Threads that ask one question after the other; what any of them is told but an answer is kept as a failure."""

    def __init__(self, live: Live, models: list[str]) -> None:
        self._live = live
        self._stop = threading.Event()
        self.answers: list[tuple[str, str, Record]] = []  # model, version, record
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(model,), daemon=True) for model in models]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        self.more(2)
        return self

    def _ask(self, model: str) -> None:
        with self._live.session() as session:
            while not self._stop.is_set():
                try:
                    result = session.infer(model, ROWS)
                except Exception as error:
                    self.failures.append(f"{model}: {error!r}")
                else:
                    self.answers.append((model, result.model_version, result.receipt.record))

    def more(self, count: int, holds: Callable[[str, str], bool] = lambda _model, _version: True) -> None:
        """Wait for that many further answers of which `holds`."""
        seen = len(self.answers)

        def enough() -> bool:
            assert not self.failures, self.failures
            return sum(holds(model, version) for model, version, _ in self.answers[seen:]) >= count

        wait_until(enough, within_s=120, what=f"{count} more answers")

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def workers_of(live: Live) -> set[int]:
    """The worker processes that the host itself started."""
    return {process.pid for process in psutil.Process(live.processes["runtime"].pid).children()}


def kill_the_next_worker(live: Live) -> threading.Thread:
    """SIGKILL whatever worker the host starts next, as soon as it is there."""
    before = workers_of(live)

    def kill() -> None:
        fresh = wait_until(lambda: workers_of(live) - before, within_s=60, what="a new worker")
        for pid in fresh:
            psutil.Process(pid).send_signal(signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def judge(live: Live, callers: Callers, folder: Path) -> list[Record]:
    """Nobody was refused; each answer has its record, each grant one end; and the log verifies."""
    assert callers.failures == []
    records = live.records()
    ends = Counter(record.grant for record in records if record.kind in ENDS)
    authorized = [record.id for record in records if record.kind == "inference.authorized"]
    assert all(ends[grant] == 1 for grant in authorized)
    assert set(ends) == set(authorized)
    loaded = {
        (record.model, record.detail["version"]): (record.model_digest, record.certificate_digest)
        for record in records
        if record.kind == "model.load"
    }
    for model, version, record in callers.answers:
        assert (record.model_digest, record.certificate_digest) == loaded[model, version]
    with reader(live.deployment) as found, (folder / "evidence.zip").open("w+b") as out:
        found.export(0, len(records) - 1, out)
    verify_bundle(folder / "evidence.zip", LogTrust(verifiers=load_trust(live.trust).log_keys)).require()
    return records


def test_versions_come_and_go_under_load_and_nobody_notices(
    repository: Callable[..., Repository], tmp_path: Path
) -> None:
    place = repository()
    live = place.live
    place.put("toy/1")
    live.start()
    live.ready()
    with Callers(live, ["toy", "toy"]) as callers:
        place.put("toy/2")
        killing = kill_the_next_worker(live)
        told = place.ask("load", "toy/2")
        killing.join()
        assert (told.code, told.why) == ("switch-failed", "the new worker ended (worker-died)")
        assert place.told() == {"toy/1": "loaded default", "toy/2": "new"}
        callers.more(2, lambda _model, version: version == "1")

        told = place.ask("load", "toy/2", note="two is better")
        assert not told.code, told.why
        assert place.told() == {"toy/1": "loaded", "toy/2": "loaded default"}
        callers.more(4, lambda _model, version: version == "2")

        place.configure('[models.toy]\ndefault = "1"\ncanary = {version = "2", percent = 50}\n')
        routed = place.ask("route")
        assert not routed.code, routed.why
        for version in ("1", "2"):
            callers.more(3, lambda _model, found, wanted=version: found == wanted)
        refused = place.ask("unload", "toy/1")
        assert refused.code == "version-not-loaded"
    live.stop()
    records = judge(live, callers, tmp_path)
    start, *changes = [record for record in records if record.kind == "model.change"]
    assert (start.reason, start.detail["places"]) == ("start", "toy/1")
    assert [(one.outcome, one.reason) for one in changes] == [
        ("failed", "switch-failed"),
        ("done", "load"),
        ("done", "route"),
        ("failed", "version-not-loaded"),
    ]
    assert changes[1].detail["note"] == "two is better"
    assert changes[1].detail["before"] != changes[1].detail["after"]
    after = next(index for index, record in enumerate(records) if record.reason == "route")
    due = [(is_canary(r.grant, 50), v) for _, v, r in callers.answers if r.intent_seq > after]
    assert {version for canary, version in due if canary} == {"2"}
    assert {version for canary, version in due if not canary} == {"1"}
    stops = [record.reason for record in records if record.kind == "worker.stop"]
    assert stops[:1] == ["replaced"], "the worker before the load drained and left"

    place.configure('[models.toy]\ndefault = "1"\ncanary = {version = "7", percent = 50}\n')
    live.start("runtime")
    words = "deployment.toml lets version 7 of toy answer, which is not loaded"
    wait_until(lambda: words in live.said("runtime"), within_s=120, what="word of a canary that is not there")


@pytest.mark.slow
def test_exactly_the_version_that_is_asked_for_answers_and_what_was_unloaded_stays_so(
    repository: Callable[..., Repository], tmp_path: Path
) -> None:
    place = repository()
    live = place.live
    for version in ("1", "2", "10"):
        place.put(f"toy/{version}")
    live.start()
    live.ready()
    with Callers(live, ["toy"]) as callers, live.session() as session:
        assert {version for _, version, _ in callers.answers} == {"10"}, "the newest, by numbers"
        found = [session.infer("toy", ROWS, version=version) for version in ("1", "2", "10")]
        assert [answer.model_version for answer in found] == ["1", "2", "10"]
        assert len({str(answer.outputs) for answer in found}) == 3
        assert not place.ask("unload", "toy/10").code
        callers.more(3, lambda _model, version: version == "2")
        with pytest.raises(EvidenceError, match="'10'"):
            session.infer("toy", ROWS, version="10")
        shutil.rmtree(place.root / "models" / "toy" / "2")
        (place.root / "models" / "toy" / "1" / "manifest.json").write_text("{}")
        told = place.ask("reload")
        assert told.code == "bundle-refused", told
        callers.more(2, lambda _model, version: version == "2")
    live.stop()
    judge(live, callers, tmp_path)
    place.put("toy/3")
    live.start()
    live.ready()
    assert place.told() == {
        "toy/1": "refused manifest-digest",
        "toy/3": "loaded default",
        "toy/10": "unloaded",
    }
    assert not place.ask("load", "toy/10").code
    assert place.told()["toy/10"] == "loaded default"


@pytest.mark.slow
def test_a_model_with_a_worker_of_its_own_dies_alone_and_another_comes_beside_it(
    repository: Callable[..., Repository], tmp_path: Path
) -> None:
    place = repository(placement="per-model")
    live = place.live
    place.put("oak/1")
    live.start()
    live.ready()
    (oak,) = workers_of(live)
    place.put("toy/1")
    assert not place.ask("load", "toy").code
    with Callers(live, ["toy", "toy"]) as callers, live.session() as session, live.http() as plain:
        assert session.infer("oak", ROWS).model_name == "oak"
        told = {worker.models: worker for worker in ask_models(place).workers}
        assert set(told) == {("oak",), ("toy",)}
        keys = plain.get("/.well-known/ohttp-gateway", params={"model": "oak"}).content
        assert keys == told["oak",].key_configs
        assert session.evidence().claims.instance in {worker.instance for worker in told.values()}
        psutil.Process(oak).send_signal(signal.SIGKILL)
        wait_until(lambda: told["oak",].instance not in instances(place), within_s=60, what="the end of oak's worker")
        callers.more(3)
        wait_until(lambda: len(instances(place)) == 2, within_s=120, what="oak's next worker")
        assert session.infer("oak", ROWS).model_name == "oak", "with new evidence, of the new worker"
        place.put("elm/1")
        assert not place.ask("load", "elm").code
        assert session.infer("elm", ROWS).model_name == "elm"
        assert not place.ask("unload", "oak").code
        callers.more(3)
    live.stop()
    records = judge(live, callers, tmp_path)
    toys = {record.runtime_instance for model, _, record in callers.answers if model == "toy"}
    assert toys == {told["toy",].instance}, "nobody touched the worker of toy"
    assert sum(record.kind == "worker.start" for record in records) == 4


@pytest.mark.slow
def test_two_workers_share_the_callers_and_one_that_is_killed_takes_only_what_it_had(
    repository: Callable[..., Repository], tmp_path: Path
) -> None:
    place = repository(workers=2)
    live = place.live
    place.put("toy/1")
    live.start()
    live.ready()
    wait_until(lambda: len(instances(place)) == 2, within_s=120, what="two workers")
    with live.session() as one, live.session() as other:
        first, second = (session.infer("toy", ROWS).receipt.record.runtime_instance for session in (one, other))
        assert {first, second} == instances(place), "clients are given evidence in turn"
        psutil.Process(min(workers_of(live))).send_signal(signal.SIGKILL)
        wait_until(lambda: len(instances(place)) == 1, within_s=60, what="the end of a worker")
        left = next(iter(instances(place)))
        for session in (one, other):  # the one that lost its worker takes new evidence by itself
            assert session.infer("toy", ROWS).receipt.record.runtime_instance == left
        wait_until(lambda: len(instances(place)) == 2, within_s=120, what="another worker")
        assert not place.ask("reload").code
        assert left not in instances(place)
        for session in (one, other):
            assert session.infer("toy", ROWS).receipt.record.runtime_instance in {left, *instances(place)}
    live.stop()
    records = live.records()
    assert sum(record.kind == "worker.start" for record in records) == 5
    assert {record.reason for record in records if record.kind == "inference.failed"} <= {"key-unknown"}


def ask_models(place: Repository) -> ModelsTold:
    return ask_host(place.live.deployment, AskModels(), ModelsTold)


def instances(place: Repository) -> set[str]:
    """Of the workers whose keys are published."""
    return {worker.instance for worker in ask_models(place).workers}
