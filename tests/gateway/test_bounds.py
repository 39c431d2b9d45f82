"""What strangers and slow peers can cost: little, and never at the others' expense. Raw sockets over real TLS."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import threading

import pytest

from gateway import serve, tls_identity
from gateway.limits import MAX_HEAD, MAX_PIPELINED
from sealgate.limits import DEFAULT_MESSAGE
from sealgate.protocol import frames
from sealgate.protocol.dpop import to_base64url
from sealgate.protocol.sizes import sealed_size
from tests.gateway.conftest import DIE, HANG, plain_answer, post_sealed, sealed_request

LARGEST = sealed_size(DEFAULT_MESSAGE)


class Peer:
    """A TLS connection that sends exactly what a test says."""

    def __init__(self, gateway, certificate=None):
        raw = socket.create_connection(("127.0.0.1", gateway.port), timeout=60)
        self.tls = gateway.tls(certificate).wrap_socket(raw, server_hostname="localhost")

    def send(self, data):
        self.tls.sendall(data)

    def rest(self):
        """Everything until the server closes."""
        parts = []
        try:
            while part := self.tls.recv(65536):
                parts.append(part)
        except (ConnectionResetError, ssl.SSLEOFError):
            pass
        return b"".join(parts)

    def head(self):
        """One response: status, fields, body."""
        data = b""
        while b"\r\n\r\n" not in data:
            part = self.tls.recv(65536)
            assert part, data
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:])
        while len(body) < int(fields.get("content-length", 0)):
            body += self.tls.recv(65536)
        return int(lines[0].split()[1]), fields, body

    def close(self):
        self.tls.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def taken_up(gateway):
    """A peer whose time for its first head runs already: a shorter limit that is set now counts from its next byte on,
    however long this thread then takes to send it."""
    before = set(gateway.server.server_state.connections)
    peer = Peer(gateway)
    gateway.until(lambda: any(one._deadline for one in gateway.server.server_state.connections - before))
    return peer


def sealed_head(gateway, **fields):
    """The head of a sealed request with a good token."""
    lines = {
        "Host": "localhost",
        "Authorization": f"Bearer {gateway.token()}",
        "Content-Type": "message/ohttp-req",
        "Purpose": "treatment",
    }
    lines |= {name.replace("_", "-"): value for name, value in fields.items()}
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST /sealed/wine HTTP/1.1\r\n{text}\r\n".encode()


def code_of(body):
    return json.loads(body)["type"].rsplit(":", 1)[-1]


# Bodies --------------------------------------------------------------------------------------------------------------


def test_a_declared_size_over_the_limit_is_refused_before_any_byte_of_it(shared):
    with Peer(shared) as peer:
        peer.send(sealed_head(shared, Content_Length=str(LARGEST + 1)))
        status, fields, body = peer.head()
    assert (status, code_of(body), fields["content-type"]) == (413, "too-large", "application/problem+json")
    assert shared.gate.sealed.bytes == 0


def test_a_body_that_grows_over_the_limit_is_refused_and_its_memory_freed(gateway):
    chunk = b"10000\r\n" + b"\x01" * 65536 + b"\r\n"
    with Peer(gateway) as peer:
        peer.send(sealed_head(gateway, Transfer_Encoding="chunked"))
        most = 0
        # One thread only: an SSL connection may not be read and written at the same time.
        for _ in range(LARGEST // 65536 + 64):
            peer.send(chunk)
            most = max(most, gateway.gate.sealed.bytes)
            if select.select([peer.tls], [], [], 0)[0]:
                break
        status, _, body = peer.head()
        assert (status, code_of(body)) == (413, "too-large")
    assert 0 < most <= LARGEST
    gateway.until(lambda: gateway.gate.sealed.bytes == 0)
    assert gateway.host.bodies() == []


def test_a_refused_body_is_not_read_for_ever(gateway, monkeypatch):
    monkeypatch.setattr(tls_identity, "LINGER_S", 0.05)
    with Peer(gateway) as peer:
        peer.send(sealed_head(gateway, Content_Length=str(LARGEST + 1)))
        assert peer.head()[0] == 413
        assert peer.rest() == b""  # and then the connection ends although the body never came


def test_the_body_of_a_stranger_is_not_awaited(shared):
    with Peer(shared) as peer:
        peer.send(b"POST /sealed/wine HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        assert peer.head()[0] == 401
    assert shared.gate.sealed.requests == 0


def test_what_follows_an_answer_that_ends_the_connection_is_not_served(run_gateway):
    """A proxy in between takes the connection for ended: what is still on its way must not become a request."""
    gateway = run_gateway(body_timeout_s=0.2)
    with Peer(gateway) as peer:
        peer.send(sealed_head(gateway, Content_Length="10") + b"\x01")
        status, fields, _ = peer.head()
        assert (status, fields["connection"]) == (408, "close")
        with contextlib.suppress(OSError):
            peer.send(b"\x01" * 9 + b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert peer.rest() == b""


def test_a_slow_sender_is_dropped_while_others_are_served(run_gateway):
    gateway = run_gateway(body_timeout_s=1.0)
    with Peer(gateway) as slow:
        slow.send(sealed_head(gateway, Content_Length="1000") + b"\x01")
        gateway.until(lambda: gateway.gate.sealed.requests == 1)
        assert post_sealed(gateway.client(token=gateway.token())).status_code == 200
        status, _fields, body = slow.head()
        assert (status, code_of(body)) == (408, "too-slow")
        assert slow.rest() == b""
    assert gateway.gate.sealed.requests == 0


@pytest.mark.parametrize("length", ["-1", "1e3", "９", "1" * 30])
def test_an_odd_content_length_is_a_bad_request(shared, length):
    with Peer(shared) as peer:
        peer.send(sealed_head(shared, Content_Length="@").replace(b"@", length.encode()))
        status, fields, _body = peer.head()
    assert status in (400, 413)
    assert fields["content-type"] == "application/problem+json"


def test_more_at_once_than_fit_are_told_to_come_back(run_gateway):
    gateway = run_gateway(max_concurrent=1)
    with Peer(gateway) as first:
        first.send(sealed_head(gateway, Content_Length="1000"))
        gateway.until(lambda: gateway.gate.sealed.requests == 1)
        answer = post_sealed(gateway.client(token=gateway.token()))
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:sealgate:problem:busy"
    assert int(answer.headers["retry-after"]) >= 1
    gateway.until(lambda: gateway.gate.sealed.requests == 0)
    assert post_sealed(gateway.client(token=gateway.token())).status_code == 200


def test_one_caller_cannot_hold_every_place(run_gateway):
    gateway = run_gateway(max_concurrent=4)
    greedy, other = gateway.token(), gateway.token(subject="bob")
    with Peer(gateway) as one, Peer(gateway) as two, Peer(gateway) as three:
        for peer in (one, two, three):
            peer.send(sealed_head(gateway, Content_Length="1000", Authorization=f"Bearer {greedy}"))
        gateway.until(lambda: gateway.gate.sealed.requests == 3)
        refused = post_sealed(gateway.client(token=greedy))
        assert (refused.status_code, refused.json()["type"]) == (429, "urn:sealgate:problem:too-many-requests")
        assert int(refused.headers["retry-after"]) >= 1
        assert post_sealed(gateway.client(token=other)).status_code == 200
    gateway.until(lambda: gateway.gate.sealed.requests == 0)
    assert post_sealed(gateway.client(token=greedy)).status_code == 200
    assert not gateway.gate.sealed._shares


def test_one_caller_cannot_take_all_of_the_link_by_hanging_up(gateway):
    """The runtime works on what was given up until it says that it does not: it stays its caller's."""
    link = gateway.gate.link
    link._outstanding_max, link._share_max = 4, 3
    gateway.host.script = lambda frame, body: HANG
    raw, _ = sealed_request()
    request = sealed_head(gateway, Content_Length=str(len(raw))) + raw
    for number in range(3):
        with Peer(gateway) as peer:
            peer.send(request)
            gateway.host.heard(frames.Submit, number + 1)
        gateway.host.heard(frames.Cancel, number + 1)
    gateway.host.script = plain_answer
    assert post_sealed(gateway.client(token=gateway.token())).status_code == 503
    assert post_sealed(gateway.client(token=gateway.token(subject="bob"))).status_code == 200
    gateway.host.stop()
    gateway.until(lambda: link._state is None)
    gateway.host.start()
    gateway.until(lambda: link._state is not None)
    assert post_sealed(gateway.client(token=gateway.token())).status_code == 200
    assert not link._shares


def test_all_bodies_together_are_bounded(gateway):
    gateway.gate.sealed._bytes_max = 1000
    answer = post_sealed(gateway.client(token=gateway.token()), size=5000)
    assert (answer.status_code, answer.json()["title"]) == (503, "Busy")
    assert gateway.gate.sealed.bytes == 0
    assert post_sealed(gateway.client(token=gateway.token())).status_code == 200


@pytest.mark.parametrize("way", ["/sealed/wine", "/.well-known/ohttp-gateway"])
def test_one_caller_cannot_hold_all_bytes_with_answers_that_it_does_not_read(gateway, way):
    """They count as its own, whichever way they go out; what else it asks is refused, and nobody else is."""
    sealed, held = gateway.gate.sealed, []
    sealed._bytes_max, sealed._bytes_share = 40 << 20, 30 << 20
    gateway.host.script = lambda frame, body: held.append(frame) or HANG
    raw, _ = sealed_request()
    head = sealed_head(gateway, Content_Length=str(len(raw)), Sealed_Model="wine")
    request = head.replace(b"/sealed/wine", way.encode()) + raw

    async def release():
        (writer,) = gateway.host._writers
        for frame in held:
            answer = frames.Answer(id=frame.id, media_type="message/ohttp-res", log="l", record=1, receipt=b"")
            gateway.host._send(writer, answer, bytes(32 << 20))

    with Peer(gateway) as one, Peer(gateway) as two:
        for peer in (one, two):
            peer.send(request)
        gateway.host.heard(frames.Submit, 2)
        gateway.host.script = plain_answer
        gateway.host._call(release())
        gateway.until(lambda: sealed.bytes == 64 << 20)
        refused = post_sealed(gateway.client(token=gateway.token()))
        assert (refused.status_code, refused.json()["type"]) == (429, "urn:sealgate:problem:too-many-requests")
        assert post_sealed(gateway.client(token=gateway.token(subject="bob"))).status_code == 200
    gateway.until(lambda: sealed.bytes == 0)
    assert post_sealed(gateway.client(token=gateway.token())).status_code == 200
    assert not sealed._held


def test_answers_that_a_caller_does_not_read_are_bounded_and_others_get_theirs(gateway):
    """Asked for while there was room, and come when there is none: the record stands, the answer is not given out."""
    sealed, held = gateway.gate.sealed, []
    sealed._bytes_max, sealed._bytes_share = 40 << 20, 30 << 20
    gateway.host.script = lambda frame, body: held.append(frame) or HANG
    raw, _ = sealed_request()
    request = sealed_head(gateway, Content_Length=str(len(raw))) + raw

    async def release():
        (writer,) = gateway.host._writers
        frame = held.pop(0)
        answer = frames.Answer(id=frame.id, media_type="message/ohttp-res", log="l", record=7, receipt=b"receipt")
        gateway.host._send(writer, answer, bytes(32 << 20))

    with Peer(gateway) as one, Peer(gateway) as two, Peer(gateway) as three:
        for count, peer in enumerate((one, two, three), start=1):
            peer.send(request)
            gateway.host.heard(frames.Submit, count)
        for total in (32 << 20, 64 << 20):
            gateway.host._call(release())
            gateway.until(lambda total=total: sealed.bytes >= total)
        gateway.host._call(release())
        status, said, body = three.head()
        assert (status, code_of(body)) == (503, "busy")
        assert said["audit-record"] == "l 7"
        assert said["audit-receipt"] == to_base64url(b"receipt").lower()
        assert sealed.bytes == 64 << 20
        gateway.host.script = lambda frame, body: (plain_answer(frame, body)[0], bytes(1 << 20))
        assert post_sealed(gateway.client(token=gateway.token(subject="bob"))).status_code == 200
    gateway.until(lambda: sealed.bytes == 0)


def test_one_caller_cannot_hold_all_bytes_with_bodies_that_do_not_end(gateway):
    sealed = gateway.gate.sealed
    sealed._bytes_max, sealed._bytes_share = 40_000, 30_000
    with Peer(gateway) as one, Peer(gateway) as two:
        for peer in (one, two):
            peer.send(sealed_head(gateway, Content_Length="20000") + bytes(19_999))
            gateway.until(lambda: sealed.bytes >= 19_999)
        status, _, body = two.head()
        assert (status, code_of(body)) == (429, "too-many-requests")
        assert post_sealed(gateway.client(token=gateway.token(subject="bob")), size=5_000).status_code == 200


def test_requests_that_wait_on_one_connection_are_few(gateway, monkeypatch):
    """Ten thousand of eighteen bytes came in one piece, and each was kilobytes until its turn came."""
    made = []

    class Counted(tls_identity.Exchange):
        def __init__(self, *arguments):
            made.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(tls_identity, "Exchange", Counted)
    with Peer(gateway) as peer:
        peer.send(b"GET /health/live HTTP/1.1\r\n\r\n" * 20)
        data = b""
        while data.count(b"HTTP/1.1 200") < 20:
            part = peer.tls.recv(65536)
            assert part, data
            data += part
    assert len(made) == 20
    with Peer(gateway) as peer:
        with contextlib.suppress(OSError):
            peer.send(b"GET / HTTP/1.1\r\n\r\n" * 10_000)
        peer.rest()
    gateway.until(lambda: not gateway.server.server_state.connections)
    assert len(made) <= 20 + 2 * (1 + MAX_PIPELINED)
    assert post_sealed(gateway.client(token=gateway.token())).status_code == 200


# Heads ---------------------------------------------------------------------------------------------------------------


def test_a_head_that_never_ends_is_cut_off(shared):
    with Peer(shared) as peer:
        peer.send(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX: ")
        for _ in range(MAX_HEAD // 4096 + 1):
            peer.send(b"a" * 4096)
        peer.send(b"a")
        status, _, body = peer.head()
        assert (status, code_of(body)) == (431, "header-too-large")
        assert peer.rest() == b""


@pytest.mark.parametrize("sent", [b"", b"GET /health/live HT"])
def test_a_head_that_does_not_come_is_not_waited_for(shared, monkeypatch, sent):
    if not sent:  # then the time runs from the connection's start
        monkeypatch.setattr(tls_identity, "HEAD_TIMEOUT_S", 0.1)
    with taken_up(shared) if sent else Peer(shared) as peer:
        if sent:
            monkeypatch.setattr(tls_identity, "HEAD_TIMEOUT_S", 0.1)
            peer.send(sent)
        said = peer.rest()
    assert (b" 408 " in said) == bool(sent)


@pytest.mark.parametrize("together", [True, False])
def test_a_second_head_that_does_not_come_is_not_waited_for_either(shared, monkeypatch, together):
    first, second = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /health/live HT"
    with taken_up(shared) as peer:
        monkeypatch.setattr(tls_identity, "HEAD_TIMEOUT_S", 0.1)
        peer.send(first + second if together else first)
        assert peer.head()[0] == 200
        if not together:
            peer.send(second)
            status, _, body = peer.head()
            assert (status, code_of(body)) == (408, "too-slow")
        assert peer.rest() == b""


def test_an_idle_connection_is_closed_and_one_that_works_is_not(gateway, monkeypatch):
    """The timer of a connection was set before its last request: it does not close it then."""
    moments = []
    handler = tls_identity.SealedHttpProtocol.timeout_keep_alive_handler

    def looked(self):
        handler(self)
        moments.append((self._idle_since, self.transport.is_closing()))

    monkeypatch.setattr(tls_identity.SealedHttpProtocol, "timeout_keep_alive_handler", looked)
    held = threading.Event()
    gateway.host.script = lambda frame, body: held.wait(60) and plain_answer(frame, body)
    raw, _ = sealed_request()

    def due(connection):
        """What the loop does when the timer ends, at the moment that the test is about and no sooner."""
        connection.timeout_keep_alive_task.cancel()
        connection.timeout_keep_alive = 0.2
        connection.timeout_keep_alive_handler()

    with Peer(gateway) as peer:
        peer.send(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert peer.head()[0] == 200
        peer.send(sealed_head(gateway, Content_Length=str(len(raw))) + raw)
        gateway.host.heard(frames.Submit)
        (connection,) = gateway.server.server_state.connections
        connection.loop.call_soon_threadsafe(due, connection)
        gateway.until(lambda: moments)
        assert moments == [(None, False)]  # it is being answered
        held.set()
        assert peer.head()[0] == 200
        assert peer.rest() == b""
    assert moments[-1][1]


@pytest.mark.parametrize("sent", [b"\r\n", b"\n", b"\r\n\r\n"])
def test_empty_lines_do_not_keep_an_idle_connection(gateway, sent):
    """Between requests they are no head, which has a timer of its own: the connection is as idle as without them."""
    gateway.server.config.timeout_keep_alive = 0.2
    with Peer(gateway) as peer:
        peer.send(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert peer.head()[0] == 200
        peer.send(sent)
        assert peer.rest() == b""


def test_requests_sent_together_are_answered_in_their_order(gateway):
    replies = iter(range(10, 14))

    def numbered(frame, body):
        answer = frames.Answer(media_type="message/ohttp-res", log="l", record=next(replies), receipt=b"r")
        return answer, b"sealed"

    gateway.host.script = numbered
    raw, _ = sealed_request()
    one = sealed_head(gateway, Content_Length=str(len(raw))) + raw
    with Peer(gateway) as peer:
        peer.send(one * 3 + one.replace(b"Host:", b"Connection: close\r\nHost:"))
        said = peer.rest().split(b"HTTP/1.1 ")[1:]
    assert [b"audit-record: l %d\r\n" % number in part for number, part in zip(range(10, 14), said, strict=True)]
    assert all(part.startswith(b"200 OK") and part.endswith(b"sealed") for part in said)
    assert [b"connection: close" in part for part in said] == [False, False, False, True]


def test_a_peer_that_does_not_shake_hands_is_not_waited_for(run_gateway, monkeypatch):
    monkeypatch.setattr(serve, "HANDSHAKE_TIMEOUT_S", 0.2)
    gateway = run_gateway()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as raw:
        raw.sendall(b"\x16\x03\x01")
        assert raw.recv(100) == b""


def test_a_trailer_does_not_become_a_header(shared):
    raw, _ = sealed_request()
    head = sealed_head(shared, Transfer_Encoding="chunked").replace(b"Authorization", b"X-Was")
    with Peer(shared) as peer:
        body = f"{len(raw):x}\r\n".encode() + raw + b"\r\n0\r\n"
        peer.send(head + body + f"Authorization: Bearer {shared.token()}\r\n\r\n".encode())
        assert peer.head()[0] == 401


def test_trailers_without_end_are_cut_off(shared):
    with Peer(shared) as peer:
        peer.send(sealed_head(shared, Transfer_Encoding="chunked") + b"1\r\na\r\n0\r\n")
        said = b""
        try:
            for _ in range(64):
                peer.send(b"X: " + b"a" * 4096 + b"\r\n")
            said = peer.rest()
        except OSError:
            pass
    assert b"200 OK" not in said
    shared.until(lambda: shared.gate.sealed.requests == 0)


@pytest.mark.parametrize("sent", [b"\x16\x03\x01garbage\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"NONSENSE\r\n\r\n"])
def test_malformed_http_is_a_problem_too(shared, sent):
    with Peer(shared) as peer:
        peer.send(sent)
        status, fields, body = peer.head()
    assert (status, code_of(body)) == (400, "malformed-request")
    assert fields["content-type"] == "application/problem+json"


def test_connections_over_the_most_are_closed_at_once(gateway, monkeypatch):
    monkeypatch.setattr(tls_identity, "MAX_CONNECTIONS", 2)
    with Peer(gateway) as one, Peer(gateway) as two:
        gateway.until(lambda: len(gateway.server.server_state.connections) == 2)
        with Peer(gateway) as three:
            assert three.rest() == b""
        for peer in (one, two):
            peer.send(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert peer.head()[0] == 200


def test_an_answer_that_nobody_reads_is_dropped(gateway, monkeypatch):
    monkeypatch.setattr(tls_identity, "WRITE_STALL_S", 0.1)
    big = b"\x00" * (32 * 1024 * 1024)
    answer = frames.Answer(media_type="message/ohttp-res", log="l", record=1, receipt=b"")
    gateway.host.script = lambda frame, body: (answer, big)
    raw, _ = sealed_request()
    with Peer(gateway) as peer:
        peer.send(sealed_head(gateway, Content_Length=str(len(raw))) + raw)
        gateway.host.heard(frames.Submit)
        gateway.until(lambda: gateway.server.server_state.connections == set())


# The other side ------------------------------------------------------------------------------------------------------


def test_a_caller_that_goes_away_cancels_its_request(gateway):
    gateway.host.script = lambda frame, body: HANG
    raw, _ = sealed_request()
    with Peer(gateway) as peer:
        peer.send(sealed_head(gateway, Content_Length=str(len(raw))) + raw)
        (submitted,) = gateway.host.heard(frames.Submit)
    (cancelled,) = gateway.host.heard(frames.Cancel)
    assert cancelled.id == submitted.id
    gateway.until(lambda: gateway.gate.sealed.requests == 0)
    gateway.until(lambda: any(line["status"] in (400, 499) for line in gateway.events("request")))


def test_an_answer_that_takes_too_long_is_a_504_and_a_cancel(run_gateway):
    gateway = run_gateway(request_timeout_s=0.2)
    gateway.host.script = lambda frame, body: HANG
    answer = post_sealed(gateway.client(token=gateway.token()))
    assert (answer.status_code, answer.json()["type"]) == (504, "urn:sealgate:problem:timed-out")
    assert gateway.host.heard(frames.Cancel)[0].id == gateway.host.heard(frames.Submit)[0].id


def test_a_runtime_that_is_away_is_said_plainly_and_found_again(gateway):
    client = gateway.client(token=gateway.token())
    gateway.host.stop()
    gateway.until(lambda: gateway.gate.link._state is None)
    for answer in (
        post_sealed(client),
        client.get("/.well-known/ohttp-gateway"),
        client.get("/.well-known/attestation"),
    ):
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:sealgate:problem:unavailable")
        assert int(answer.headers["retry-after"]) >= 1
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()["runtime"]) == (503, "away")
    assert client.get("/health/live").json() == {"live": True}
    gateway.host.start()
    gateway.until(lambda: client.get("/health/ready").status_code == 200)
    assert post_sealed(client).status_code == 200


def test_a_runtime_that_dies_in_the_middle_gives_a_clear_503(gateway):
    client = gateway.client(token=gateway.token())
    gateway.host.script = lambda frame, body: DIE
    answer = post_sealed(client)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:sealgate:problem:unavailable")
    gateway.host.script = plain_answer
    gateway.until(lambda: gateway.gate.link._state is not None)
    assert post_sealed(client).status_code == 200


def test_requests_are_told_apart_on_one_link(gateway):
    """Answers come in reverse order; each caller gets its own."""
    held = []
    gateway.host.script = lambda frame, body: held.append((frame, body)) or HANG
    answers = {}

    def ask(number):
        raw, media_type = sealed_request(100 + number)
        headers = {"Content-Type": media_type, "Purpose": "treatment"}
        with gateway.client(token=gateway.token()) as client:
            answers[number] = (raw, client.post("/sealed/wine", content=raw, headers=headers).content)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    gateway.host.heard(frames.Submit, 6)

    async def release():
        (writer,) = gateway.host._writers
        for frame, body in reversed(held):
            answer = frames.Answer(id=frame.id, media_type="message/ohttp-res", log="l", record=1, receipt=b"")
            gateway.host._send(writer, answer, body[::-1])

    gateway.host._call(release())
    for thread in threads:
        thread.join(60)
    assert len(answers) == 6
    assert all(got == raw[::-1] for raw, got in answers.values())


def answer(host, frame, body):
    """Let the fake host answer what its script left hanging."""

    async def send():
        (writer,) = host._writers
        reply = frames.Answer(id=frame.id, media_type="message/ohttp-res", log="l", record=1, receipt=b"")
        host._send(writer, reply, body)

    host._call(send())


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "half a ClientHello"])
def test_a_connection_that_never_shakes_hands_does_not_put_off_the_end(run_gateway, monkeypatch, sent):
    """A loop that closed over its socket would warn, and warnings are errors here."""
    monkeypatch.setattr(serve, "HANDSHAKE_TIMEOUT_S", 3600.0)
    running = run_gateway()
    with socket.create_connection(("127.0.0.1", running.port)) as silent:
        silent.sendall(sent)
        running.client().get("/health/live")  # the one before was accepted, too
        running.close()
        silent.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            assert silent.recv(100) == b""


def test_a_connection_that_shakes_hands_when_the_gateway_stops_is_not_served(run_gateway, monkeypatch):
    """uvicorn waits for what is in flight, and would wait for this one, too: it does not know that it is idle."""
    monkeypatch.setattr(serve, "HANDSHAKE_TIMEOUT_S", 3600.0)
    running = run_gateway()
    held = []
    running.host.script = lambda frame, body: held.append((frame, body)) or HANG
    raw, _ = sealed_request()
    with Peer(running) as asking, socket.create_connection(("127.0.0.1", running.port), timeout=60) as late:
        asking.send(sealed_head(running, Content_Length=str(len(raw))) + raw)
        running.host.heard(frames.Submit)
        running.client().get("/health/live")  # the late one was accepted, too
        running.server.should_exit = True
        running.until(lambda: not running.server.servers[0].is_serving())
        with contextlib.suppress(ConnectionError), running.tls().wrap_socket(late, server_hostname="localhost") as tls:
            tls.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with contextlib.suppress(ssl.SSLEOFError):
                assert tls.recv(100) == b""
        assert running.server.server_state.connections, "what is in flight is waited for"
        ((frame, body),) = held
        answer(running.host, frame, body)
        assert asking.head()[0] == 200
        assert asking.rest() == b""
        running.close()


@pytest.mark.parametrize("way", ["TLS", "UNIX socket"])
def test_what_is_in_flight_for_too_long_is_cut_off_when_the_gateway_stops(run_gateway, monkeypatch, way):
    """The loop then closes over no open socket: that would warn, and never end."""
    monkeypatch.setattr(serve, "SHUTDOWN_S", 0)
    running = run_gateway(unix_socket="run/gateway.sock")
    running.host.script = lambda frame, body: HANG
    raw, _ = sealed_request()
    asked = sealed_head(running, Content_Length=str(len(raw))) + raw
    if way == "TLS":
        peer = Peer(running).tls
    else:
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(running.deployment.gateway_socket))
    with peer:
        peer.sendall(asked)
        running.host.heard(frames.Submit)
        running.close()
        peer.settimeout(60)
        with contextlib.suppress(ConnectionResetError, ssl.SSLEOFError):
            said = peer.recv(65536)
            assert said == b"" or said.startswith(b"HTTP/1.1 5")
