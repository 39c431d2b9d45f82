"""Strangers who keep connections to a witness open: they take its time, and nobody else's, for a bounded while."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sealgate.witness.folder import add_log, make_folder, open_folder
from sealgate.witness.server import WitnessServer
from tests.sealgate.witness.trees import LOG, TREE


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WitnessServer]:
    make_folder(tmp_path / "w", name="witness.example/w")
    add_log(tmp_path / "w", LOG.vkey)
    with WitnessServer(("127.0.0.1", 0), open_folder(tmp_path / "w").witness(), tls=None, tell=print) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.mark.parametrize("begun", [b"", b"POST /add-checkpoint HTTP/1.1\r\nx: ", b"POST /add-checkpoint HTTP/1.1\r\n"])
def test_a_stranger_who_sends_a_byte_at_a_time_is_cut_off(
    server: WitnessServer, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    """Each byte came before any timeout, so sixty-four strangers kept the witness busy for as long as they liked."""
    monkeypatch.setattr("sealgate.witness.server._LIFE_S", 0.5)
    if begun.endswith(b"\n"):
        begun += b"content-length: 9000\r\n\r\n"
    waiting = threading.Event()
    with socket.create_connection(("127.0.0.1", server.server_port)) as peer:
        peer.sendall(begun)
        peer.settimeout(0.05)
        for _ in range(200):
            waiting.wait(0.01)
            try:
                peer.sendall(b"x")
                if not peer.recv(1000):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            pytest.fail("still connected")


def test_only_so_many_are_connected_at_once(server: WitnessServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealgate.witness.server._CONNECTIONS", 3)
    address = ("127.0.0.1", server.server_port)
    peers = [socket.create_connection(address) for _ in range(3)]
    for _ in range(1000):
        if len(server._open) == 3:
            break
        threading.Event().wait(0.005)
    with socket.create_connection(address) as one_more:
        one_more.settimeout(60)
        assert one_more.recv(1) == b""
    for peer in peers:
        peer.close()
    for _ in range(1000):
        if not server._open:
            break
        threading.Event().wait(0.005)
    with httpx.Client(trust_env=False) as client:
        assert (
            client.post(f"http://127.0.0.1:{server.server_port}/add-checkpoint", content=TREE.body(0, 7)).status_code
            == 200
        )
