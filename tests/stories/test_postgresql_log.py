"""A whole deployment whose log stands in PostgreSQL: each process with its own role, its server lost in the middle."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable, Iterator

import pytest

from sealgate.client.errors import ServiceRefused
from sealgate.deployment import open_deployment
from secure_runtime.log_commands import LOG
from tests.audit.postgres_server import PostgresServer, missing
from tests.live import MODEL, Live, wait_until


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    why = missing()
    if why:
        pytest.skip(why)
    made = PostgresServer()
    yield made
    made.remove()


def prepare(live: Live) -> None:
    parser = argparse.ArgumentParser()
    LOG.configure(parser)
    assert LOG.run(parser.parse_args(["prepare", str(live.root)])) == 0


def move_log(live: Live, server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name a database in the settings, and prepare it as its owner."""
    name = server.create()
    settings = live.root / "deployment.toml"
    settings.write_text(
        settings.read_text() + f'\n[log]\ndatabase = "postgresql+psycopg:///{name}?host={server.folder}"\n'
    )
    assert tomllib.loads(settings.read_text())["log"]
    live.deployment = open_deployment(live.root)
    monkeypatch.setenv("PGUSER", "postgres")
    prepare(live)
    for kind in ("writer", "reader"):
        server.admin(f"CREATE ROLE {name}_the_{kind} LOGIN IN ROLE {name}_{kind}")
    return name


def start(live: Live, name: str) -> None:
    live.start("runtime", env={"PGUSER": f"{name}_the_writer"})
    live.start("gateway", env={"PGUSER": f"{name}_the_reader"})
    live.ready()


def test_a_deployment_serves_from_it_and_stops_when_it_is_lost(
    fresh: Callable[[], Live],
    server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    live = fresh()
    name = move_log(live, server, monkeypatch)
    assert f"{name}_writer, {name}_reader, {name}_auditor, {name}_pruner" in capsys.readouterr().out
    start(live, name)
    with live.session() as session:
        given = [session.infer(MODEL, live.rows[:1]).receipt.index for _ in range(3)]
    assert not live.deployment.database.exists()
    server.stop("immediate")
    with live.http() as client:
        wait_until(lambda: client.get("/health/ready").status_code == 503, within_s=20, what="not ready")
        with live.session() as session, pytest.raises(ServiceRefused) as refused:
            session.infer(MODEL, live.rows[:1])
        assert refused.value.status == 503
        server.start()
        assert client.get("/health/ready").status_code == 503, "a failed log stays failed until a person restarts it"
    live.stop()
    prepare(live)
    start(live, name)
    with live.session() as session:
        given.append(session.infer(MODEL, live.rows[:1]).receipt.index)
    records = live.records()
    live.stop()
    assert all(records[index].kind == "inference.completed" for index in given)
    begun = {record.id for record in records if record.kind == "inference.authorized"}
    ends = [record.grant for record in records if record.intent_seq >= 0]
    assert sorted(ends) == sorted(begun)
