"""A full disk and a broken database: inference stops with 503, health says why, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealgate.client.errors import ServiceRefused
from tests.live import MODEL, Live, wait_until

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="NEEDS ROOT: mounts a small file system for the log")


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "none", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def keep_private_files(live: Live) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (live.root / "log").iterdir()}


def restore(live: Live, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = live.root / "log" / name
        path.write_bytes(data)
        path.chmod(0o600)


def answers(live: Live, count: int) -> list[int]:
    with live.session() as session:
        return [session.infer(MODEL, live.rows[:1]).receipt.index for _ in range(count)]


def refusal(live: Live) -> ServiceRefused:
    with pytest.raises(ServiceRefused) as caught:
        answers(live, 400)  # the disk fills on the way
    return caught.value


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)


@root_only
def test_a_disk_under_its_reserve_stops_inference_but_not_the_record(fresh: Callable[[], Live]) -> None:
    live = fresh()
    settings = live.root / "deployment.toml"
    settings.write_text(settings.read_text() + "disk_reserve_mb = 8\n")
    files = keep_private_files(live)
    with small_disk(live.root / "log", "16m"):
        restore(live, files)
        live.start()
        live.ready()
        given = answers(live, 3)
        (live.root / "log" / "somebody-elses-file").write_bytes(b"\0" * 9 * 1024 * 1024)
        error = refusal(live)
        assert (error.status, error.code) == (503, "unavailable")
        with live.http() as client:

            def health() -> bool:
                answer = client.get("/health/ready")
                return answer.status_code == 503 and "disk-reserve" in answer.text

            wait_until(health, within_s=60, what="readiness that names the disk")
        (live.root / "log" / "somebody-elses-file").unlink()
        live.ready()
        given += answers(live, 2)
        live.stop()
        records = live.records()
        assert all(records[index].kind == "inference.completed" for index in given)
        assert [r.reason for r in records if r.kind == "inference.denied"] == ["disk-reserve"]


@root_only
def test_a_full_disk_fails_the_log_and_loses_nothing(fresh: Callable[[], Live]) -> None:
    live = fresh()
    settings = live.root / "deployment.toml"
    settings.write_text(settings.read_text() + "disk_reserve_mb = 0\n")
    files = keep_private_files(live)
    with small_disk(live.root / "log", "16m"):
        restore(live, files)
        live.start()
        live.ready()
        given = answers(live, 3)
        filler = live.root / "log" / "somebody-elses-file"
        with pytest.raises(OSError, match="No space"):
            fill(filler)
        assert refusal(live).status == 503
        with live.http() as client:

            def health() -> bool:
                answer = client.get("/health/ready")
                return answer.status_code == 503 and "log" in answer.text

            wait_until(health, within_s=60, what="readiness that names the log")
        filler.unlink()
        assert refusal(live).status == 503, "a failed log stays failed until a person restarts the host"
        live.stop()
        live.start()
        live.ready()
        given += answers(live, 2)
        live.stop()
        records = live.records()
        assert all(records[index].kind == "inference.completed" for index in given)


def test_a_database_that_fails_stops_inference(fresh: Callable[[], Live]) -> None:
    live = fresh()
    live.start()
    live.ready()
    given = answers(live, 3)
    intruder = sqlite3.connect(live.deployment.database, isolation_level=None, timeout=30)
    intruder.execute("DROP TABLE leaf")
    intruder.close()
    assert refusal(live).status == 503
    with live.http() as client:
        wait_until(lambda: client.get("/health/ready").status_code == 503, within_s=60, what="not ready")
    live.stop()
    live.start("runtime")
    code = live.processes.pop("runtime").wait(60)
    assert code == 1, "a damaged log must not be opened again"
    assert "sealgate:" in live.said("runtime")
    assert given
