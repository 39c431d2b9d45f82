"""The witness over real HTTP and real TLS, and its commands from init to show."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sealgate.cli import main
from sealgate.transparency.cosignatures import verify_cosignatures
from sealgate.transparency.notes import Checkpoint, NoteVerifier
from sealgate.transparency.witness_policy import load_witness_policy
from sealgate.witness.folder import WitnessFolder, add_log, make_folder, open_folder
from sealgate.witness.server import WitnessServer
from tests.sealgate.witness.trees import LOG, TREE


@pytest.fixture
def folder(tmp_path: Path) -> WitnessFolder:
    make_folder(tmp_path / "w", name="witness.example/w")
    add_log(tmp_path / "w", LOG.vkey)
    return open_folder(tmp_path / "w")


@pytest.fixture
def server(folder: WitnessFolder) -> Iterator[WitnessServer]:
    with WitnessServer(("127.0.0.1", 0), folder.witness(), tls=None, tell=print) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def url(server: WitnessServer, scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{server.server_port}/add-checkpoint"


def test_a_log_submits_over_http(server: WitnessServer, folder: WitnessFolder) -> None:
    with httpx.Client(trust_env=False) as client:
        first = client.post(url(server), content=TREE.body(0, 7))
        assert first.status_code == 200
        found = verify_cosignatures(TREE.note(7) + first.content, [one.public for one in folder.cosigners])
        assert len(found) == 2
        stale = client.post(url(server), content=TREE.body(3, 9))
        assert (stale.status_code, stale.text, stale.headers["content-type"]) == (409, "7\n", "text/x.tlog.size")
        assert client.post(url(server), content=TREE.body(7, 9)).status_code == 200


def cosigned_size(folder: WitnessFolder) -> int:
    note = folder.cosigned(LOG.name).read_bytes()
    policy = load_witness_policy(folder.root / "witness.policy")
    return policy.require_witnessed(note, logs=(NoteVerifier.parse(LOG.vkey),)).verified.checkpoint.size


def test_auditors_find_the_newest_that_was_cosigned(server: WitnessServer, folder: WitnessFolder) -> None:
    with httpx.Client(trust_env=False) as client:
        for old, new in ((0, 7), (7, 9)):
            assert client.post(url(server), content=TREE.body(old, new)).status_code == 200
            assert cosigned_size(folder) == new
        padded = TREE.body(9, 9) + "— nobody AAAAAAAA\n".encode() * 15
        assert client.post(url(server), content=padded).status_code == 200
        assert cosigned_size(folder) == 9
    folder.keep_cosigned(Checkpoint(LOG.name, 7, TREE.roots[7]), TREE.note(7))
    assert cosigned_size(folder) == 9, "an older one never replaces it"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/add-checkpoint", b"", 405),
        ("POST", "/", b"x", 404),
        ("POST", "/add-checkpoint?x", b"x", 404),
        ("POST", "/add-checkpoint", b"x", 400),
        ("POST", "/add-checkpoint", b"x" * 200_000, 413),
    ],
)
def test_anything_else_is_refused(server: WitnessServer, method: str, path: str, body: bytes, status: int) -> None:
    with httpx.Client(trust_env=False) as client:
        answer = client.request(method, f"http://127.0.0.1:{server.server_port}{path}", content=body)
    assert answer.status_code == status


@pytest.mark.parametrize("length", ["", "-1", "1e3", "99999999999", "\u0661"])
def test_a_body_without_a_plain_length_is_not_read(server: WitnessServer, length: str) -> None:
    with socket.create_connection(server.server_address[:2], timeout=5) as peer:  # type: ignore[arg-type]
        field = f"Content-Length: {length}\r\n" if length else ""
        peer.sendall(f"POST /add-checkpoint HTTP/1.1\r\nHost: w\r\n{field}\r\n".encode())
        status = peer.recv(4096).split(b" ")[1]
    assert status in (b"411", b"413")


def test_commands_from_init_to_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path / "w")
    assert main(["witness", "init", root, "--name", "compliance.example/w"]) == 0
    assert "witness.policy" in capsys.readouterr().out
    policy = load_witness_policy(tmp_path / "w" / "witness.policy")
    keys = [one.public for one in open_folder(tmp_path / "w").cosigners]
    assert [one.key for one in policy.witnesses.values()] == keys
    assert (tmp_path / "w" / "mldsa.pem").stat().st_mode & 0o777 == 0o600
    assert main(["witness", "init", root, "--name", "again"]) != 0
    assert "already is a witness" in capsys.readouterr().err
    assert main(["witness", "init", str(tmp_path / "x"), "--name", "two words"]) != 0
    assert "--name" in capsys.readouterr().err
    assert main(["witness", "add-log", root, LOG.vkey]) == 0
    capsys.readouterr()
    assert main(["witness", "add-log", root, "nonsense"]) != 0
    assert "NAME+KEYID+BASE64" in capsys.readouterr().err
    open_folder(tmp_path / "w").witness(clock=lambda: 1_700_000_000_000_000).add_checkpoint(TREE.body(0, 7))
    capsys.readouterr()
    assert main(["witness", "show", root]) == 0
    shown = capsys.readouterr().out
    assert "example.com/log" in shown
    assert "2023-11-14T22:13:20+00:00" in shown
    assert main(["witness", "show", root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["logs"]["example.com/log"]["size"] == 7
    assert main(["witness", "show", str(tmp_path / "none")]) != 0
    assert "sealgate witness init" in capsys.readouterr().err
