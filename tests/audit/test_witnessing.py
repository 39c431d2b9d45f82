"""The log asks real witnesses over real sockets; what they cosign is published, and what they refuse is told."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from audit.errors import QueryRefused
from audit.witnessing import WitnessClient, witness_tls
from sealgate.errors import ConfigurationError
from sealgate.transparency.cosignatures import Cosigner, verify_cosignatures
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.published import open_published
from sealgate.transparency.verifier import LogTrust, verify_bundle
from sealgate.transparency.witness_policy import WitnessPolicy, parse_witness_policy
from sealgate.witness.folder import WitnessFolder, add_log, make_folder, open_folder
from sealgate.witness.server import WitnessServer
from tests.audit.conftest import ORIGIN, SIGNER

WAIT_S = 20.0  # whatever a test waits for in the kernel ends by then: a test fails, it does not hang
MLDSA = Cosigner(ORIGIN, MLDSA44PrivateKey.from_seed_bytes(b"\x04" * 32))


class Running:
    """Servers of the test, and the folders of the witnesses behind them."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.servers: list[tuple[Any, threading.Thread]] = []

    def serve(self, server: Any) -> Any:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        self.servers.append((server, thread))
        return server

    def witness(self, name: str, *, knows: str = SIGNER.vkey) -> tuple[WitnessFolder, str]:
        make_folder(self.place / name, name=f"witness.example/{name}")
        add_log(self.place / name, knows)
        folder = open_folder(self.place / name)
        server = self.serve(WitnessServer(("127.0.0.1", 0), folder.witness(), tls=None, tell=print))
        return folder, f"http://127.0.0.1:{server.server_port}"

    def answering(self, status: int, body: bytes, **headers: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            timeout = WAIT_S  # a peer that connects and says nothing must not hold up the end of the test

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        return f"http://127.0.0.1:{self.serve(HTTPServer(('127.0.0.1', 0), Handler)).server_port}"

    def stop(self) -> None:
        for server, thread in self.servers:
            server.shutdown()
            thread.join(WAIT_S)
            server.server_close()
            assert not thread.is_alive()
        self.servers.clear()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    made.stop()


def policy(*witnesses: tuple[WitnessFolder, str], quorum: str = "all", keys: int = 1) -> WitnessPolicy:
    """One of the keys of each witness (or both), and so many of the witnesses."""
    lines, names = [], []
    for number, (folder, url) in enumerate(witnesses):
        for key, cosigner in enumerate(folder.cosigners[:keys]):
            names.append(f"w{number}k{key}")
            lines.append(f"witness {names[-1]} {cosigner.public.vkey} {url}")
    text = "\n".join([*lines, f"group g {quorum} {' '.join(names)}", "quorum g"])
    return parse_witness_policy(text.encode())


class Asking:
    """A log and the client that has it cosigned, gone round by hand."""

    def __init__(self, bench: Any, wanted: WitnessPolicy, **options: Any) -> None:
        self.bench = bench
        self.policy = wanted
        self.log = bench.open(mldsa=MLDSA, **options)
        self.reader = bench.reader()
        self.told: list[str] = []
        self.client = WitnessClient(
            reader=self.reader,
            verifier=SIGNER.verifier,
            policy=wanted,
            publish=self.log.publish_cosigned,
            tell=self.told.append,
            every_s=0.01,
            tls=witness_tls(None),
        )
        self.http = httpx.Client(trust_env=False, timeout=5)

    def grow(self, count: int = 1) -> int:
        """So many records more, published."""
        for _ in range(count):
            size = self.log.append(self.bench.draft()).result().index + 1
        deadline = threading.Event()
        for _ in range(2000):
            if open_published(self.reader.checkpoint(), [SIGNER.verifier]).checkpoint.size >= size:
                return size
            deadline.wait(0.005)
        raise AssertionError("never published")

    def round(self) -> bool:
        return self.client.go_round(self.http)

    def cosigned(self, size: int, until: Callable[[Callable[[], bool]], None]) -> bytes:
        def there() -> bool:
            try:
                note = self.reader.checkpoint(cosigned=True)
            except QueryRefused:
                return False
            return open_published(note, [SIGNER.verifier]).checkpoint.size == size

        until(there)
        return self.reader.checkpoint(cosigned=True)

    def close(self) -> None:
        self.client.close()
        self.http.close()
        self.reader.close()
        self.log.close()


@pytest.fixture
def ask(bench) -> Iterator[Callable[..., Asking]]:
    made: list[Asking] = []

    def make(*arguments: Any, **options: Any) -> Asking:
        made.append(Asking(bench, *arguments, **options))
        return made[-1]

    yield make
    for asking in made:
        asking.close()


def test_what_a_quorum_cosigned_is_published_and_exported(bench, ask, running: Running, until) -> None:
    witnesses = [running.witness(name) for name in ("a", "b")]
    wanted = policy(*witnesses, keys=2)
    asking = ask(wanted)
    with pytest.raises(QueryRefused):
        asking.reader.checkpoint(cosigned=True)
    for count in (1, 3, 300):
        size = asking.grow(count)
        assert asking.round()
        note = asking.cosigned(size, until)
        assert len(verify_cosignatures(note, [one.public for folder, _ in witnesses for one in folder.cosigners])) == 4
        open_published(note, [SIGNER.verifier], [MLDSA.public])
    asking.grow(5)  # newer than what was cosigned: a bundle of what was shows it with its cosignatures
    out = io.BytesIO()
    asking.reader.export(0, size - 1, out)
    report = verify_bundle(out, LogTrust(verifiers=(SIGNER.verifier,), mldsa_keys=(MLDSA.public,), witnesses=wanted))
    assert report.ok, report.lines()
    assert report.steps[-1].status == "ok"
    assert report.steps[-1].detail.startswith("witness.example/a, witness.example/b")
    newest, out = asking.reader.size() - 1, io.BytesIO()
    asking.reader.export(0, newest, out)  # what no witness saw yet is exported all the same
    assert verify_bundle(out, LogTrust(verifiers=(SIGNER.verifier,))).last == newest
    assert asking.told == []


def test_each_witness_is_asked_once_for_a_checkpoint(bench, ask, running: Running) -> None:
    folder, url = running.witness("a")
    asking = ask(policy((folder, url), keys=2))
    asking.grow()
    assert len(asking.client._places) == 1
    assert asking.round()
    running.stop()
    assert asking.round()  # nothing new: nobody is asked


def test_one_of_two_is_enough_where_the_policy_says_so_and_the_other_is_told_of(bench, ask, running, until) -> None:
    one, other = running.witness("a"), running.witness("b")
    gone = (other[0], "http://127.0.0.1:1")
    asking = ask(policy(one, gone, quorum="any"))
    size = asking.grow()
    assert asking.round()
    asking.cosigned(size, until)
    asking.grow()
    asking.round()
    assert asking.told == ["witness witness.example/b: it cannot be reached"]  # once, not every time
    assert asking.client.trouble() == "witness.example/b: it cannot be reached"


def test_without_the_quorum_nothing_is_published_and_the_next_round_completes_it(bench, ask, running, until) -> None:
    one, other = running.witness("a"), running.witness("b")
    asking = ask(policy(one, other))
    asking.client._places[1].url = "http://127.0.0.1:1"
    size = asking.grow()
    assert not asking.round()
    with pytest.raises(QueryRefused):
        asking.reader.checkpoint(cosigned=True)
    asking.client._places[1].url = other[1]
    assert asking.round()
    asking.cosigned(size, until)
    assert asking.told[-1] == "witness witness.example/b: cosigns again"
    assert asking.client.trouble() == ""


def test_a_host_that_starts_anew_learns_what_was_seen(bench, ask, running: Running, until) -> None:
    witness = running.witness("a")
    first = ask(policy(witness))
    first.grow(4)
    assert first.round()
    first.close()
    again = ask(policy(witness))
    size = again.grow(2)
    assert again.round()
    again.cosigned(size, until)
    assert again.told == []


def test_a_log_that_was_rolled_back_is_found_out_by_its_own_host(bench, ask, running: Running) -> None:
    witness = running.witness("a")
    first = ask(policy(witness))
    first.grow(3)
    first.close()
    old = bench.save()
    second = ask(policy(witness))
    second.grow(20)
    assert second.round()
    second.close()
    bench.restore(old)
    third = ask(policy(witness))
    third.grow()
    assert not third.round()
    assert "was rolled back" in third.told[0]


def test_a_rolled_back_log_that_grew_past_it_is_found_out_too(bench, ask, running: Running) -> None:
    witness = running.witness("a")
    first = ask(policy(witness))
    first.grow(3)
    first.close()
    old = bench.save()
    second = ask(policy(witness))
    second.grow(5)
    assert second.round()
    second.close()
    bench.restore(old)
    third = ask(policy(witness))
    third.grow(40)
    assert not third.round()
    assert third.told == ["witness witness.example/a: it says that this log does not extend what it saw before"]


def test_a_split_view_of_one_size_is_found_out(bench, ask, running: Running) -> None:
    folder, url = running.witness("a")
    asking = ask(policy((folder, url)))
    size = asking.grow(3)
    from sealgate.transparency.notes import Checkpoint, sign_checkpoint
    from sealgate.witness.witness import Submission, encode_submission

    other = sign_checkpoint(Checkpoint(ORIGIN, size, b"\x09" * 32), SIGNER)  # what somebody else was shown
    body = encode_submission(Submission(0, (), other))
    assert asking.http.post(f"{url}/add-checkpoint", content=body).status_code == 200
    assert not asking.round()
    assert f"another tree of {size} records" in asking.told[0]
    assert len(list((folder.root / "conflicts").iterdir())) == 1  # the witness keeps both, as the proof


@pytest.mark.parametrize(
    ("status", "body", "headers", "told"),
    [
        (200, b"", {}, "no cosignature that holds"),
        (200, b"nonsense\n", {}, "no cosignature that holds"),
        (200, "\u2014 someone.else/w AAAAAAAAAAA=\n".encode(), {}, "no cosignature under the key"),
        (200, b"x" * 70_000, {}, "larger than cosignatures are"),
        (200, b"\xff\xfe", {}, "no cosignature that holds"),
        (302, b"", {"location": "http://127.0.0.1:1/"}, "status 302"),
        (403, b"", {}, "does not know this log's key"),
        (404, b"", {}, "does not know this log"),
        (409, b"99999999\n", {"content_type": "text/x.tlog.size"}, "rolled back"),
        (409, b"-1\n", {"content_type": "text/x.tlog.size"}, "something else than a size"),
        (409, b"", {"content_type": "text/x.tlog.size"}, "something else than a size"),
        (409, b"1\n", {"content_type": "text/x.tlog.size"}, "cosigned another tree"),
        (500, b"", {}, "status 500"),
    ],
)
def test_whatever_else_is_answered_is_told_and_harms_nothing(
    make_sqlite_bench, tmp_path, running: Running, status: int, body: bytes, headers: dict[str, str], told: str
) -> None:
    bench = make_sqlite_bench(tmp_path)
    folder, _ = running.witness("a")
    asking = Asking(bench, policy((folder, running.answering(status, body, **headers))))
    try:
        asking.grow()
        assert not asking.round()
        assert told in asking.told[0]
        assert len(asking.told) == 1
        assert asking.log.append(bench.draft()).result()
        with pytest.raises(QueryRefused):
            asking.reader.checkpoint(cosigned=True)
    finally:
        asking.close()


def test_a_witness_that_answers_without_end_holds_up_no_other(bench, ask, running: Running, until, monkeypatch) -> None:
    """A byte of a header, and before any timeout the next."""
    monkeypatch.setattr("audit.witnessing.WITNESS_TIMEOUT_S", 0.3)
    stop = threading.Event()
    good, late = running.witness("good"), running.witness("late")
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(WAIT_S)

    def drip() -> None:
        with contextlib.suppress(OSError):  # nobody came, or whoever came has had enough
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
                while not stop.wait(0.02):
                    connection.sendall(b"x")

    dripping = threading.Thread(target=drip, daemon=True)
    slow = (late[0], f"http://127.0.0.1:{listening.getsockname()[1]}")
    asking = ask(policy(slow, good, quorum="any"))
    try:
        size = asking.grow()
        dripping.start()
        rounds = threading.Thread(target=asking.round, daemon=True)
        rounds.start()
        rounds.join(WAIT_S)
        assert not rounds.is_alive()
        assert asking.told == ["witness witness.example/late: it does not answer in time"]
        assert asking.client.trouble() == "witness.example/late: it does not answer in time"
        note = asking.cosigned(size, until)
        assert len(verify_cosignatures(note, [one.public for one in good[0].cosigners])) == 1
    finally:
        stop.set()
        listening.close()
        if dripping.ident is not None:
            dripping.join(WAIT_S + 1)


def test_a_cosignature_of_another_tree_is_not_kept(make_sqlite_bench, tmp_path, running: Running) -> None:
    from sealgate.transparency.notes import Checkpoint

    folder, _ = running.witness("a")
    line = folder.cosigners[0].cosign(Checkpoint(ORIGIN, 5, b"\x01" * 32), timestamp_s=1_790_000_000)
    asking = Asking(make_sqlite_bench(tmp_path), policy((folder, running.answering(200, line))))
    try:
        asking.grow()
        assert not asking.round()
        assert "no cosignature that holds" in asking.told[0]
    finally:
        asking.close()


def test_the_thread_goes_round_by_itself_and_no_append_waits_for_it(bench, ask, running: Running, until) -> None:
    asking = ask(policy(running.witness("a")))
    asking.client.start()
    for _ in range(3):
        asking.cosigned(asking.grow(), until)


def test_a_fault_is_told_and_the_next_round_comes(bench, ask, running: Running, until, monkeypatch) -> None:
    asking = ask(policy(running.witness("a")))
    size, whole = asking.grow(), asking.client.go_round
    calls: list[object] = []

    def fails_once(client: httpx.Client) -> bool:
        calls.append(client)
        if len(calls) == 1:
            raise KeyError("nobody expected this")
        return whole(client)

    monkeypatch.setattr(asking.client, "go_round", fails_once)
    asking.client.start()
    asking.cosigned(size, until)
    assert asking.told == ["witnesses: internal fault: KeyError"]
    until(lambda: asking.client.trouble() == "")


def test_a_proxy_that_cannot_be_used_is_told_and_tried_again(bench, ask, running: Running, until, monkeypatch) -> None:
    """The thread once ended without a word where its HTTP client could not be made."""
    asking = ask(policy(running.witness("a")))
    size, make = asking.grow(), httpx.Client
    calls: list[object] = []

    def fails_once(**options: Any) -> httpx.Client:
        calls.append(options)
        if len(calls) == 1:
            raise ValueError("Unknown scheme for proxy URL")
        return make(**options)

    monkeypatch.setattr("audit.witnessing.httpx.Client", fails_once)
    asking.client.start()
    asking.cosigned(size, until)
    assert asking.told == ["witnesses: internal fault: ValueError"]
    until(lambda: asking.client.trouble() == "")


def test_a_witness_that_hangs_does_not_hold_up_the_end(bench, ask, running: Running, until, monkeypatch) -> None:
    monkeypatch.setattr("audit.witnessing.WITNESS_CLOSE_S", 0.1)
    monkeypatch.setattr("audit.witnessing.WITNESS_TIMEOUT_S", 3600.0)  # nothing but its peer ends the question
    folder, _ = running.witness("a")
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes the connection, and never answers
        deaf.settimeout(WAIT_S)
        asking = ask(policy((folder, f"http://127.0.0.1:{deaf.getsockname()[1]}")))
        asking.grow()
        asking.client.start()
        peer, _ = deaf.accept()
        closing = threading.Thread(target=asking.client.close, daemon=True)
        closing.start()
        closing.join(WAIT_S)
        assert not closing.is_alive()
        assert asking.client._thread.is_alive(), "the witness still hangs: it was not waited for"
        assert asking.log.append(bench.draft()).result()
        peer.close()
    until(lambda: not asking.client._thread.is_alive())


def test_a_stranger_cannot_have_the_log_submit_its_checkpoint(bench, ask, running: Running) -> None:
    """What stands in the database is submitted only under the log's own signature."""
    asking = ask(policy(running.witness("a")))
    asking.grow()
    asking.client.verifier = NoteSigner.from_seed(ORIGIN, b"\x77" * 32).verifier
    assert not asking.round()
    assert asking.client._places[0].seen == 0


@pytest.mark.parametrize(
    "url", ["", "http://witness.example", "ftp://127.0.0.1", "https://user@host", "https://host/?q", "https://", "x"]
)
def test_only_private_places_are_asked(make_sqlite_bench, tmp_path, running: Running, url: str) -> None:
    folder, _ = running.witness("a")
    with pytest.raises(ConfigurationError):
        Asking(make_sqlite_bench(tmp_path), policy((folder, url)))
