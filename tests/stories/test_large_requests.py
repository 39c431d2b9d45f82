"""Volumes of pictures in one request, through real processes and real TLS: what fits the deployment's limit is answered
as small requests are, what does not is told before it is sent, and no process holds it more often than it says."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from sealgate.certificate.architectures.cnn import CnnSpec, Stage
from sealgate.certificate.architectures.linear import LogisticRegressionSpec
from sealgate.certificate.inputs import Column, ImageContent, InputTensor, TableContent
from sealgate.certificate.manifest import OutputTensor
from sealgate.client import exchange
from sealgate.client.errors import InferenceFailed, ServiceRefused, UsageError
from sealgate.client.session import AsyncSession, Session
from sealgate.limits import MAX_INNER_MESSAGE
from sealgate.protocol.sizes import sealed_size
from sealgate.protocol.tensors import Tensor
from tests.stories.test_models_change import Repository, forged

SIDE, MI = 512, 1 << 20
SLICE = SIDE * SIDE * 2  # bytes: INT16, as scanners give them
LIMIT_MB = 24


def volume(slices: int, *, seed: int = 0) -> Tensor:
    """[slices, 1, 512, 512] INT16."""
    values = np.random.default_rng(seed).integers(-1000, 1000, (slices, 1, SIDE, SIDE), dtype=np.int16)
    return Tensor("scan", "INT16", values.shape, values.astype("<i2").tobytes())


def part(tensor: Tensor, start: int, end: int) -> Tensor:
    return Tensor("scan", "INT16", (end - start, *tensor.shape[1:]), tensor.data[start * SLICE : end * SLICE])


def put_models(made: Repository) -> None:
    """One that takes large requests, one that gives large answers."""
    content = ImageContent(low="-1000", high="1000", center="0", scale="500")
    stage = Stage(channels=1, kernel=3, stride=3, pool=8)
    cnn = CnnSpec(channels=1, height=SIDE, width=SIDE, stages=(stage,), classes=2)
    scan = InputTensor(name="scan", datatype="INT16", shape=(-1, 1, SIDE, SIDE), content=content)
    forged(made.key, name="scans", version="1", architecture=cnn, inputs=(scan,)).write(made.root / "models" / "scans")
    labels = tuple(f"c{number}" for number in range(1000))
    column = Column(name="a", low="-1", high="1", center="0", scale="1")
    forged(
        made.key,
        name="wide",
        version="1",
        architecture=LogisticRegressionSpec(inputs=1, classes=1000),
        inputs=(InputTensor(name="a", datatype="FP32", shape=(-1, 1), content=TableContent(columns=(column,))),),
        outputs=(
            OutputTensor(name="label", datatype="INT64", shape=(-1,), role="label", labels=labels),
            OutputTensor(name="scores", datatype="FP32", shape=(-1, 1000), role="scores", labels=labels),
        ),
    ).write(made.root / "models" / "wide")


@pytest.fixture(scope="module")
def serving() -> Iterator[Callable[[int], Repository]]:
    """Deployments by their limit; each is started once."""
    made: dict[int, Repository] = {}

    def serve(limit_mb: int) -> Repository:
        if limit_mb not in made:
            one = made[limit_mb] = Repository(Path(tempfile.mkdtemp(prefix="sg-")), memory_limit_mb=4096)
            one.settings = one.settings.replace("[deployment]\n", f"[deployment]\nmax_request_mb = {limit_mb}\n")
            one.configure("")
            put_models(one)
            one.live = type(one.live)(one.root, [])
            one.live.start()
            one.live.ready()
        return made[limit_mb]

    yield serve
    for one in made.values():
        one.live.stop()
        shutil.rmtree(one.root.parent, ignore_errors=True)


def scores(session: Session, tensor: Tensor) -> np.ndarray:
    return np.array(session.infer("scans", (tensor,)).outputs["scores"])


@pytest.mark.parametrize("mb", [17, 23])
def test_a_large_request_is_answered_as_its_parts_are(serving: Callable[[int], Repository], mb: int) -> None:
    live, slices = serving(LIMIT_MB).live, mb * MI // SLICE
    whole = volume(slices)
    with live.session() as session:
        found = scores(session, whole)
        for start in (0, slices - 3):
            alone = scores(session, part(whole, start, start + 3))
            np.testing.assert_allclose(found[start : start + 3], alone, atol=1e-6)
    assert len(found) == slices


def test_coroutines_send_large_requests_too(serving: Callable[[int], Repository]) -> None:
    live, whole = serving(LIMIT_MB).live, volume(4)

    async def ask() -> np.ndarray:
        given = {"purpose": "treatment", "token": live.token(), "trust_env": False}
        async with AsyncSession(live.trust, **given) as session:
            answer = await session.infer("scans", (whole,))
        return np.array(answer.outputs["scores"])

    with live.session() as session:
        np.testing.assert_array_equal(asyncio.run(ask()), scores(session, whole))


def test_what_is_too_large_is_told_before_it_is_sent(serving: Callable[[int], Repository]) -> None:
    live = serving(LIMIT_MB).live
    with live.session() as session:
        scores(session, volume(1))
        before = len(live.records())
        with pytest.raises(UsageError) as refused:
            scores(session, volume(LIMIT_MB * MI // SLICE))
        assert len(live.records()) == before
    assert str(refused.value) == (
        "the request has 24 MiB, and this service takes 24 MiB at most: send fewer rows at once, "
        "or ask its operator to raise max_request_mb"
    )


def test_a_sender_that_does_not_care_is_refused_as_it_arrives(
    serving: Callable[[int], Repository], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = serving(LIMIT_MB).live
    monkeypatch.setattr(exchange, "read_limit", lambda _: sealed_size(MAX_INNER_MESSAGE))
    with live.session() as session, pytest.raises(ServiceRefused) as refused:
        scores(session, volume(LIMIT_MB * MI // SLICE + 4))
    assert (refused.value.status, refused.value.code) == (413, "too-large")
    with live.http() as client:
        keys = client.get("/.well-known/ohttp-gateway")
    assert keys.headers["upload-limit"] == f"max-size={sealed_size(LIMIT_MB * MI)}"
    with live.session() as session:
        assert len(scores(session, volume(1))) == 1


def test_a_large_answer_arrives_whole_and_a_larger_one_is_refused(serving: Callable[[int], Repository]) -> None:
    live = serving(LIMIT_MB).live

    def ask(session: Session, rows: int) -> np.ndarray:
        values = np.linspace(-1, 1, rows, dtype="<f4")
        answer = session.infer("wide", (Tensor("a", "FP32", (rows, 1), values.tobytes()),))
        return np.frombuffer(answer.tensors["scores"].data, "<f4").reshape(rows, 1000)

    fitting = 23 * MI // 4000
    with live.session() as session:
        found = ask(session, fitting)
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-4)
        with pytest.raises(InferenceFailed, match="larger than a message may be") as refused:
            ask(session, 25 * MI // 4000)
    assert refused.value.status == 413


def peak_mib(pid: int) -> float:
    """VmHWM: the most that was ever resident."""
    line = next(one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@pytest.mark.slow
def test_a_hundred_mebibytes_pass_and_each_process_holds_them_a_few_times(
    serving: Callable[[int], Repository],
) -> None:
    live = serving(104).live
    processes = {name: process.pid for name, process in live.processes.items()}
    processes |= {f"worker {one.pid}": one.pid for one in live.worker_processes()}
    whole = volume(100 * MI // SLICE)
    with live.session(timeout=httpx.Timeout(120)) as session:
        small = scores(session, part(whole, 0, 2))
        before = {name: peak_mib(pid) for name, pid in processes.items()}
        found = scores(session, whole)
        grew = {name: peak_mib(pid) - before[name] for name, pid in processes.items()}
    np.testing.assert_allclose(found[:2], small, atol=1e-6)
    assert len(found) == 200
    for name, most in (("gateway", 1.6), ("runtime", 1.6), ("worker", 5)):
        assert max(mib for one, mib in grew.items() if one.startswith(name)) < 100 * most, grew
