"""The load generator against servers whose answers are known: what it counts, keeps, refuses, and how it ends."""

from __future__ import annotations

import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.bench.load import Load, LoadFailed, http_request, percentile

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextmanager
def server(answer: Callable[[int, bytes], bytes], *, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Answers each request with `answer(number of the request on its connection, body)`; "" closes the connection."""
    listening = socket.create_server(("127.0.0.1", 0))

    def one(sock: socket.socket) -> None:
        with sock:
            connection = tls.wrap_socket(sock, server_side=True) if tls else sock
            data, number = b"", 0
            while True:
                while b"\r\n\r\n" not in data:
                    more = connection.recv(65536)
                    if not more:
                        return
                    data += more
                head, _, data = data.partition(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r")[0])
                while len(data) < length:
                    data += connection.recv(65536)
                said = answer(number, data[:length])
                if not said:
                    return
                connection.sendall(said)
                data, number = data[length:], number + 1

    def accept() -> None:
        while True:
            try:
                sock, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(sock,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(60)


def some(count: int, body: bytes = b"x") -> Iterator[bytes]:
    return itertools.repeat(http_request("POST", "/", {"a": "b"}, body), count)


@pytest.mark.parametrize("connections", [1, 3, 8])
def test_every_request_is_answered_once_and_the_kept_ones_are_their_own(connections: int) -> None:
    def echo(_number: int, body: bytes) -> bytes:
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body

    requests = (http_request("POST", "/", {}, str(number).encode()) for number in range(40))
    with server(echo) as port, Load(port=port, connections=connections) as load:
        run = load.run(requests, seconds=60, keep_every=5)
    assert (run.answered, run.refused, run.first_refusal) == (40, 0, None)
    assert sorted(answer.number for answer in run.kept) == list(range(0, 40, 5))
    assert all(answer.body == str(answer.number).encode() for answer in run.kept)
    assert 0 < run.counted <= 40
    assert run.counted == len(run.latencies_us)
    assert run.window_s > 0
    assert run.rate == pytest.approx(run.counted / run.window_s)


def test_the_window_ends_the_run_though_there_are_more_requests() -> None:
    with server(lambda *_: OK) as port, Load(port=port, connections=2) as load:
        run = load.run(some(10_000_000), seconds=1.0)
    assert 0 < run.counted <= run.answered < 10_000_000
    assert run.window_s == pytest.approx(1.0)


def test_fewer_requests_than_connections() -> None:
    with server(lambda *_: OK) as port, Load(port=port, connections=5) as load:
        assert load.run(some(2), seconds=60).answered == 2
        assert load.run(iter(()), seconds=60).answered == 0


def test_refusals_are_counted_and_the_first_is_kept() -> None:
    def refuse(number: int, _body: bytes) -> bytes:
        return OK if number < 3 else b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\nRetry-After: 1\r\n\r\nbusy"

    with server(refuse) as port, Load(port=port, connections=1) as load:
        run = load.run(some(5), seconds=60)
    assert (run.answered, run.refused) == (5, 2)
    assert run.first_refusal is not None
    assert (run.first_refusal.number, run.first_refusal.status, run.first_refusal.body) == (3, 503, b"busy")
    assert run.first_refusal.fields() == {"content-length": "4", "retry-after": "1"}


def test_answers_in_chunks_and_connections_that_end_in_order() -> None:
    def chunked(number: int, _body: bytes) -> bytes:
        closing = b"connection: close\r\n" if number == 1 else b""
        return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n" + closing + b"\r\n2\r\nok\r\n0\r\n\r\n"

    with server(chunked) as port, Load(port=port, connections=1) as load:
        run = load.run(some(6), seconds=60, keep_every=1)
    assert run.answered == 6
    assert {answer.body for answer in run.kept} == {b"2\r\nok\r\n0\r\n\r\n"}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "closed a connection"),
        (b"HTTP/1.1 200 OK\r\n\r\nwithout a length", "not an HTTP/1.1 answer"),
        (b"SSH-2.0-nothing of the kind\r\n\r\n", "not an HTTP/1.1 answer"),
    ],
)
def test_what_is_no_answer_ends_the_run_with_one_line(said: bytes, why: str) -> None:
    with (
        server(lambda *_: said) as port,
        Load(port=port, connections=1) as load,
        pytest.raises(LoadFailed, match=why),
    ):
        load.run(some(3), seconds=60)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(LoadFailed, match="cannot be reached"):
        Load(port=port, connections=2)


def test_a_large_request_over_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    body = bytes(4 << 20)
    seen: list[int] = []
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()

    def one() -> None:
        sock, _ = listening.accept()
        with sock:
            want = len(http_request("POST", "/", {"a": "b"}, body))
            got = 0
            while got < want:
                got += len(sock.recv(1 << 16))
            seen.append(got)
            sock.sendall(OK)

    thread = threading.Thread(target=one)
    thread.start()
    try:
        with Load(path=path, connections=1) as load:
            assert load.run(some(1, body), seconds=60).answered == 1
    finally:
        thread.join(60)
        listening.close()
    assert seen == [len(http_request("POST", "/", {"a": "b"}, body))]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 1))
@settings(max_examples=50)
def test_a_percentile_is_one_of_the_values_and_grows_with_the_share(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert percentile(values, 0) == min(values)
    assert percentile(values, 1) == max(values)
    assert min(values) <= found <= max(values)
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9


def test_no_values_have_no_percentile() -> None:
    assert percentile([], 0.5) == 0.0
