"""A real TLS server, a real forward proxy, real certificates: what the in-memory transport cannot show."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import httpx
import pytest

from sealgate.client.audit import AuditClient
from sealgate.client.credentials import ClientCertificate
from sealgate.client.errors import ServiceUnreachable
from sealgate.client.session import AsyncSession, Session
from sealgate.client.transport import SealedTransport
from sealgate.errors import ConfigurationError
from sealgate.evidence.trust import load_trust
from sealgate.protocol.binding import bind_certificate

TOKEN = "header.payload.signature"
ROWS = [[1, 2, 3], [10, 20, 30]]


def test_over_real_tls_with_the_authority_of_the_trust_directory(site: Any) -> None:
    with site.session() as session:
        assert session.infer("toy", ROWS).labels == ("benign", "malignant")


def test_an_authority_that_the_trust_directory_does_not_name_is_refused(site: Any) -> None:
    (site.trust / "ca.pem").write_bytes(type(site.authority)("another").pem())
    with site.session() as session, pytest.raises(ServiceUnreachable, match="certificate"):
        session.infer("toy", ROWS)
    (site.trust / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigurationError, match=r"ca\.pem"):
        site.session()


def test_a_client_certificate_is_presented_and_bound_inside_the_seal(site: Any) -> None:
    certificate = ClientCertificate(*site.authority.issue(site.folder, "integration"))
    site.service.credential_binding = bind_certificate(certificate.leaf())
    with site.session(token=None, certificate=certificate) as session:
        assert session.infer("toy", ROWS).labels == ("benign", "malignant")
    assert site.peers[-1] == certificate.leaf()
    paths = (str(certificate.certificate), certificate.key)
    with site.session(token=None, certificate=paths) as session:
        assert session.ready("toy")
    texts = (str(certificate.certificate), str(certificate.key))
    for given in (texts, ClientCertificate(*texts)):  # what docs/identity.md writes, and what a session takes
        transport = SealedTransport(site.trust, purpose="diagnosis", certificate=given, trust_env=False)
        with httpx.Client(transport=transport, base_url=transport.trust.url) as client:
            assert client.get("/v2/models/toy/ready").status_code == 200


def test_a_certificate_that_cannot_be_used_says_so(site: Any) -> None:
    certificate, _ = site.authority.issue(site.folder, "integration")
    _, other_key = site.authority.issue(site.folder, "other")
    for pair in ((certificate, other_key), (certificate, site.folder / "missing"), (site.folder / "none", other_key)):
        with pytest.raises(ConfigurationError):
            site.session(certificate=pair)


@pytest.mark.parametrize("address", ["nonsense", "ftp://user:secret@proxy:1"])
def test_a_proxy_that_cannot_be_used_is_said_without_its_address(
    site: Any, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    trust = load_trust(site.trust)
    makers = (
        lambda **proxy: Session(trust, purpose="diagnosis", token=TOKEN, **proxy),
        lambda **proxy: AsyncSession(trust, purpose="diagnosis", token=TOKEN, **proxy),
        lambda **proxy: AuditClient(trust, token=TOKEN, **proxy),
    )
    for make in makers:
        with pytest.raises(ConfigurationError, match="HTTPS_PROXY") as failure:
            make(proxy=address)
        assert address not in str(failure.value)


def test_through_a_corporate_proxy_by_argument_and_by_environment(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with _proxy() as (address, tunnels):
        with site.session(proxy=address) as session:
            assert session.infer("toy", ROWS).labels == ("benign", "malignant")
        assert tunnels == [f"localhost:{site.port}"]
        for name in ("ALL_PROXY", "HTTP_PROXY", "NO_PROXY", "all_proxy", "http_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTPS_PROXY", address)
        with site.session(trust_env=True) as session:
            assert session.ready("toy")
        assert len(tunnels) == 2
        with site.session(trust_env=False) as session:
            assert session.ready("toy")
        assert len(tunnels) == 2


class _proxy:  # noqa: N801  # reads as a verb where it is used
    """A CONNECT proxy for one test: yields its url and the targets that it was asked for."""

    def __enter__(self) -> tuple[str, list[str]]:
        self.tunnels: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}", self.tunnels

    def __exit__(self, *_: object) -> None:
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            head = b""
            while b"\r\n\r\n" not in head:
                head += near.recv(4096)
            target = head.split(b" ", 2)[1].decode()
            self.tunnels.append(target)
            far = socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2])))
            near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return
        finally:
            source.close()


def test_nobody_there_is_one_plain_error(site: Any) -> None:
    text = (site.trust / "trust.toml").read_text()
    with socket.create_server(("127.0.0.1", 0)) as unused:
        free = unused.getsockname()[1]
    (site.trust / "trust.toml").write_text(text.replace(f"localhost:{site.port}", f"localhost:{free}"))
    with site.session() as session, pytest.raises(ServiceUnreachable, match="is it running"):
        session.infer("toy", ROWS)


def test_an_answer_cut_off_by_the_network_is_an_error(site: Any) -> None:
    with site.session() as session:
        session.metadata("toy")
        site.cut = lambda body: body[: len(body) // 2]
        with pytest.raises(ServiceUnreachable, match="broke"):
            session.infer("toy", ROWS)


def test_the_async_twin_over_real_tls(site: Any) -> None:
    async def ask() -> Any:
        async with AsyncSession(site.trust, purpose="diagnosis", token=TOKEN, trust_env=False) as session:
            return await session.infer("toy", ROWS)

    assert asyncio.run(ask()).labels == ("benign", "malignant")
