"""A gateway as it runs: real TLS with a provisioned deployment's certificates, a real UNIX socket to a fake host.

The fake host speaks the real frames. It keeps what it was told and answers as a test scripts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import shutil
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn

from gateway.app import build_server
from gateway.provisioning import issue_token, provision
from gateway.serve import listen, listen_for_proxy, server_config
from gateway.telemetry import Telemetry
from gateway.tls_identity import make_tls_context
from policy.decide import load_policy
from sealgate.ambient import now_us
from sealgate.deployment import Deployment, open_deployment
from sealgate.protocol import frames
from sealgate.protocol.hpke import Kem, KemPrivateKey
from sealgate.protocol.ohttp import KeyConfig, encode_key_configs, seal_request

HANG = "hang"  # the fake host's script: never answer
DIE = "die"  # close the connection instead of answering
LOG = "test/log"

MODEL = frames.ModelFacts(
    name="wine",
    version="1",
    model_digest="0" * 64,
    certificate_digest="1" * 64,
    epsilon_micro=3_000_000,
    delta="0.00001",
    privacy_unit="example",
    sensitivity="personal",
    purposes=("treatment",),
)


def key_config(key_id: int, kem: Kem) -> KeyConfig:
    return KeyConfig(key_id, kem, KemPrivateKey.generate(kem).public_bytes(), ((1, 1), (1, 2), (1, 3)))


KEYS = (key_config(2, Kem.MLKEM768_X25519), key_config(1, Kem.X25519))


def plain_answer(frame: Any, body: bytes) -> tuple[Any, bytes]:
    """What a healthy host says."""
    if isinstance(frame, frames.Submit):
        answer = frames.Answer(media_type="message/ohttp-res", log=LOG, record=7, receipt=b"receipt of 7")
        return answer, b"sealed answer to " + bytes(body[:4])
    if isinstance(frame, frames.EvidenceWanted):
        return frames.EvidenceGiven(), b"evidence over " + frame.nonce
    return frames.Recorded(log=LOG, record=8, receipt=b"receipt of 8"), b""


class FakeHost:
    """Listens on the deployment's socket, in a thread of its own."""

    def __init__(self, path: Path, *, policy_digest: str) -> None:
        self.path = path
        self.told: list[tuple[Any, bytes]] = []
        self.changed = threading.Condition()
        self.script: Callable[[Any, bytes], Any] = plain_answer
        self.state = frames.RuntimeState(
            ready=True,
            detail="serving",
            log_state="ok",
            log=LOG,
            key_configs=encode_key_configs(KEYS),
            models=(MODEL,),
            policy_digest=policy_digest,
            assurance="software",
            profile="dev",
            degraded=True,
        )
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None

    def start(self) -> FakeHost:
        if not self._thread.is_alive():
            self._thread.start()
        self._call(self._listen())
        return self

    async def _listen(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    def stop(self) -> None:
        """The host goes away, with its connections."""
        self._call(self._stop())

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        self.stop()
        self._call(self._settle())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _settle(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 60)

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        cutter = frames.FrameReader(frames.GatewayToHost)
        self._send(writer, self.state, b"")
        try:
            while data := await reader.read(1 << 20):
                for frame, body in cutter.feed(data):
                    self._take(writer, frame, body)
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def _take(self, writer: asyncio.StreamWriter, frame: Any, body: bytes) -> None:
        with self.changed:
            self.told.append((frame, body))
            self.changed.notify_all()
        if isinstance(frame, frames.AuthFailed | frames.Cancel):
            return
        reply = self.script(frame, body)
        if reply == DIE:
            writer.transport.abort()
        elif reply != HANG:
            self._send(writer, msgspec.structs.replace(reply[0], id=frame.id), reply[1])

    @staticmethod
    def _send(writer: asyncio.StreamWriter, frame: Any, body: bytes) -> None:
        for part in frames.encode_frame(frame, body):
            writer.write(part)

    def push(self, **changes: Any) -> None:
        """A new state, told to every gateway."""

        async def tell() -> None:
            self.tell(**changes)

        self._call(tell())

    def tell(self, **changes: Any) -> None:
        """The same, from within a script."""
        self.state = msgspec.structs.replace(self.state, **changes)
        for writer in self._writers:
            self._send(writer, self.state, b"")

    def heard(self, kind: type, count: int = 1) -> list[Any]:
        """Waits until `count` frames of a kind came; gives them."""
        with self.changed:
            done = self.changed.wait_for(lambda: len(self._of(kind)) >= count, timeout=60)
            assert done, f"heard only {self.told}"
            return self._of(kind)

    def _of(self, kind: type) -> list[Any]:
        return [frame for frame, _ in self.told if isinstance(frame, kind)]

    def bodies(self) -> list[bytes]:
        return [body for frame, body in self.told if isinstance(frame, frames.Submit)]


class Clock:
    """Now, and as much later as a test wants."""

    def __init__(self) -> None:
        self.later_s = 0.0

    def __call__(self) -> int:
        return now_us() + int(self.later_s * 1e6)


class Running:
    """A gateway that serves, with its host, its log and clients for it."""

    def __init__(self, deployment: Deployment, host: FakeHost, *, port: int = 0) -> None:
        self.deployment = deployment
        self.host = host
        self.clock = Clock()
        self.log = io.StringIO()
        self.sock = listen("127.0.0.1", port)
        self.port = self.sock.getsockname()[1]
        self._clients: list[httpx.Client] = []
        self.asgi = build_server(deployment, telemetry=Telemetry(stream=self.log, clock=self.clock), clock=self.clock)
        self.gate = self.asgi._app._gate
        config = server_config(lambda: self.asgi, lambda *_: make_tls_context(deployment))
        self.server = uvicorn.Server(config)
        sockets = [self.sock, *filter(None, [listen_for_proxy(deployment)])]
        self._thread = threading.Thread(target=self.server.run, args=(sockets,), daemon=True)
        self._thread.start()
        self.until(lambda: self.server.started)
        if host.path.exists():
            self.until(lambda: self.gate.link._state is not None)

    @staticmethod
    def until(condition: Callable[[], bool]) -> None:
        """Waits for something that another thread is about to do."""
        end = time.monotonic() + 60  # ends as soon as it comes true: long enough for a machine with much to do
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.002)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def tls(self, certificate: str | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.deployment.pki / "ca.pem")
        if certificate is not None:
            clients = self.deployment.pki / "clients"
            context.load_cert_chain(clients / f"{certificate}.pem", clients / f"{certificate}.key")
        return context

    def client(self, *, token: str | None = None, certificate: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        client = httpx.Client(
            verify=self.tls(certificate), base_url=f"https://localhost:{self.port}", headers=headers, timeout=60
        )
        self._clients.append(client)
        return client

    def token(self, **changes: Any) -> str:
        claims: dict[str, Any] = {
            "subject": "alice",
            "tenant": "clinic",
            "roles": ["client"],
            "purposes": ["treatment"],
            "lifetime_s": 600,
            "now": now_us(),
        }
        return issue_token(self.deployment, **(claims | changes))

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [line for line in lines if line["event"] == name]


def sealed_request(size: int = 200, *, chunked: bool = False) -> tuple[bytes, str]:
    """An encapsulated request (nobody opens it here) and its media type."""
    raw, media_type, _ = seal_request(KEYS[1], b"\x00" * size, chunked=chunked)
    return raw, media_type


def post_sealed(client: httpx.Client, *, model: str = "wine", size: int = 200, **headers: str) -> httpx.Response:
    raw, media_type = sealed_request(size)
    fields = {"Content-Type": media_type, "Purpose": "treatment"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(f"/sealed/{model}", content=raw, headers=fields)


@pytest.fixture(scope="session")
def provisioned() -> Iterator[Path]:
    """One deployment, made once; tests get copies."""
    root = Path(tempfile.mkdtemp(prefix="sg-"))
    provision(root / "state", audience="localhost:8443", origin=LOG, profile="dev")
    yield root / "state"
    shutil.rmtree(root)


@contextlib.contextmanager
def copied(provisioned: Path) -> Iterator[Deployment]:
    """A deployment of one's own. Its path is short, because the path of a UNIX socket must be."""
    root = Path(tempfile.mkdtemp(prefix="sg-"))
    shutil.copytree(provisioned, root / "state")
    yield open_deployment(root / "state")
    shutil.rmtree(root)


@contextlib.contextmanager
def hosted(deployment: Deployment) -> Iterator[FakeHost]:
    """A host that listens on the deployment's socket."""
    fake = FakeHost(deployment.socket, policy_digest=load_policy(deployment.policy).digest)
    fake.path.parent.mkdir(exist_ok=True)
    yield fake.start()
    fake.close()


@pytest.fixture
def deployment(provisioned: Path) -> Iterator[Deployment]:
    with copied(provisioned) as made:
        yield made


@pytest.fixture
def host(deployment: Deployment) -> Iterator[FakeHost]:
    with hosted(deployment) as fake:
        yield fake


@pytest.fixture
def run_gateway(deployment: Deployment, host: FakeHost) -> Iterator[Callable[..., Running]]:
    """Starts a gateway with changed `[gateway]` settings."""
    started: list[Running] = []

    def start(**settings: Any) -> Running:
        section = msgspec.structs.replace(deployment.settings.gateway, **settings)
        changed = Deployment(deployment.root, msgspec.structs.replace(deployment.settings, gateway=section))
        started.append(Running(changed, host))
        return started[-1]

    yield start
    for running in started:
        running.close()


@pytest.fixture
def gateway(run_gateway: Callable[..., Running]) -> Running:
    """A gateway of one's own."""
    return run_gateway()


@pytest.fixture(scope="module")
def _shared(provisioned: Path) -> Iterator[Running]:
    with copied(provisioned) as deployment, hosted(deployment) as host:
        running = Running(deployment, host)
        yield running
        running.close()


@pytest.fixture
def shared(_shared: Running) -> Running:
    """A gateway for tests that change nothing about it but the host's script: many of them take one."""
    _shared.host.script = plain_answer
    _shared.host.told.clear()
    return _shared
