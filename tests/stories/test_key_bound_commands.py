"""Tokens bound to a key by the commands, over real processes: made, used, stolen without the key, replayed."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from sealgate.client.dpop import DpopKey, Prover
from sealgate.protocol.dpop import SCHEME
from tests.live import MODEL, Live, clone, run_sealgate

AUDIT = "/audit/v1/checkpoint"


@pytest.fixture(scope="module")
def pair(template: Any) -> Iterator[Live]:
    """A deployment whose gateway is two processes on one socket."""
    made = clone(template.folder, template.rows)
    settings = made.root / "deployment.toml"
    settings.write_text(settings.read_text().replace("[gateway]\n", "[gateway]\nworkers = 2\n", 1))
    try:
        made.start()
        made.ready()
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.root.parent, ignore_errors=True)


def bound_token(live: Live, folder: Path, *claims: str) -> tuple[Path, Path]:
    """A token and the key that it is bound to, made by the command."""
    key, token = folder / "dpop.pem", folder / "token"
    run_sealgate("token", live.root, "--subject", "bound", *claims, "--dpop-key", key, "--out", token)
    return token, key


def test_a_token_is_made_used_and_worth_nothing_without_its_key(pair: Live, tmp_path: Path) -> None:
    token, key = bound_token(pair, tmp_path, "--tenant", "clinic", "--purpose", "treatment")
    assert key.stat().st_mode & 0o777 == 0o600
    rows = tmp_path / "rows.csv"
    with rows.open("w") as file:
        csv.writer(file).writerows(pair.rows[:3])
    asked = ("infer", "--trust", pair.trust, "--model", MODEL, "--purpose", "treatment", "--rows", rows)
    served = run_sealgate(*asked, "--token-file", token, "--dpop-key", key)
    assert "verified: record" in served.stdout
    stolen = run_sealgate(*asked, "--token-file", token, check=False)
    assert stolen.returncode != 0
    assert "unauthenticated" in stolen.stderr
    DpopKey.generate().write(tmp_path / "other.pem")
    other = run_sealgate(*asked, "--token-file", token, "--dpop-key", tmp_path / "other.pem", check=False)
    assert "unauthenticated" in other.stderr


def test_a_key_without_a_token_is_one_line(pair: Live, tmp_path: Path) -> None:
    DpopKey.generate().write(tmp_path / "dpop.pem")
    certificate, key = pair.certificate("auditor")
    said = run_sealgate(
        *("audit", "query", "--trust", pair.trust, "--dpop-key", tmp_path / "dpop.pem"),
        *("--client-cert", certificate, "--client-key", key),
        check=False,
    )
    assert "--dpop-key goes with a token" in said.stderr


def test_an_auditor_with_a_bound_token_reads(pair: Live, tmp_path: Path) -> None:
    token, key = bound_token(pair, tmp_path, "--tenant", "oversight", "--role", "auditor")
    said = run_sealgate("audit", "query", "--trust", pair.trust, "--token-file", token, "--dpop-key", key)
    assert "audit.query" in said.stdout


def test_a_proof_counts_once_in_two_processes(pair: Live, tmp_path: Path) -> None:
    """Each attempt is a connection of its own, so that both processes get some."""
    token, key = bound_token(pair, tmp_path, "--tenant", "oversight", "--role", "auditor")
    text, prover, url = token.read_text().strip(), Prover(DpopKey.load(key)), pair.url + AUDIT

    def ask(proof: str) -> httpx.Response:
        with pair.http() as client:
            return client.get(AUDIT, headers={"Authorization": f"{SCHEME} {text}", "DPoP": proof})

    told = ask(prover.proof("GET", url, token=text))
    assert told.status_code == 401
    prover.learn(told.headers)
    for _ in range(5):
        proof = prover.proof("GET", url, token=text)
        with ThreadPoolExecutor(8) as threads:
            answers = [answer.status_code for answer in threads.map(ask, [proof] * 16)]
        assert sorted(answers) == [200] + [401] * 15


def test_after_a_restart_clients_go_on_by_themselves(pair: Live, tmp_path: Path) -> None:
    token, key = bound_token(pair, tmp_path, "--tenant", "clinic", "--purpose", "treatment")
    with pair.session(token=token.read_text(), dpop_key=DpopKey.load(key)) as session:
        assert session.infer(MODEL, pair.rows[:1]).labels
        before = session._transport._setting.prover._nonce  # type: ignore[union-attr]
        gateway = pair.processes.pop("gateway")
        gateway.terminate()
        gateway.wait(40)
        pair.start("gateway")
        pair.ready()
        assert session.infer(MODEL, pair.rows[:1]).labels
        assert before not in (None, session._transport._setting.prover._nonce)  # type: ignore[union-attr]
