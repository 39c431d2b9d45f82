"""GET /metrics for a Prometheus server: the figures of the whole deployment, on an address of this machine alone.

A listener of its own, in clear, off unless `telemetry.metrics` names a loopback address: figures tell of use, and who
meets the service over the network must not read them. With `telemetry.metrics_token_file` a scraper must show that
token; without one it must ask by a loopback address or localhost, as no web page does by a name that a stranger's DNS
points here. Each gateway process listens there (the kernel picks one), tells the host what it counted, and gives the
sum of all; so it does not matter which one is asked. Needs the extra `telemetry`.

Trusts: the host's sum. Never: answers another path or method, reads a body, keeps a connection, or serves more than a
few scrapes at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.errors import RuntimeAway, RuntimeBusy
from gateway.limits import (
    FIGURES_EVERY_S,
    MAX_METRICS_CONNECTIONS,
    MAX_METRICS_HEAD,
    MAX_METRICS_TOKEN,
    METRICS_ANSWER_S,
)
from gateway.runtime_link import RuntimeLink
from sealgate.deployment import Deployment, metrics_address
from sealgate.errors import ConfigurationError, DecodeError
from sealgate.protocol import figures
from sealgate.protocol.figures import FAMILIES, Figures, Snapshot

if TYPE_CHECKING:
    from prometheus_client import Metric

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PORT = re.compile(r":[0-9]{1,5}\Z")
_TEXT = "text/plain; charset=utf-8"


class MetricsServer:
    """Owned by the event loop. `standing` puts into the figures how this process stands now."""

    def __init__(
        self,
        own: Figures,
        link: RuntimeLink,
        standing: Callable[[Figures], None],
        *,
        address: tuple[str, int],
        token: bytes = b"",
    ) -> None:
        self._own = own
        self._link = link
        self._standing = standing
        self._address = address
        self._token = token
        self._server: asyncio.Server | None = None
        self._teller: asyncio.Task[None] | None = None
        self._open = 0

    @property
    def port(self) -> int:
        """That it listens on."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Listen, and begin to tell the host."""
        host, port = self._address
        self._server = await asyncio.start_server(
            self._serve, host, port, limit=MAX_METRICS_HEAD, reuse_address=True, reuse_port=True
        )
        self._teller = asyncio.get_running_loop().create_task(self._tell_now_and_then())

    async def close(self) -> None:
        """Stop listening; what was counted last is told."""
        if self._teller is not None:
            self._teller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._teller
        if self._server is not None:
            self._server.close()
        self._tell()

    async def _tell_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(FIGURES_EVERY_S)
            self._tell()

    def _tell(self) -> None:
        self._standing(self._own)
        if self._link.connected:
            self._link.tell_figures(figures.encode(self._own.take()))

    # A scrape --------------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= MAX_METRICS_CONNECTIONS:
            writer.transport.abort()
            return
        self._open += 1
        try:
            async with asyncio.timeout(METRICS_ANSWER_S):
                status, media_type, body = await self._answer(await reader.readuntil(b"\r\n\r\n"))
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n"
                    "Cache-Control: no-store\r\nConnection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        except (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError):
            writer.transport.abort()  # a caller that is slow, gone, or says too much
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, head: bytes) -> tuple[str, str, bytes]:
        line, _, rest = head.partition(b"\r\n")
        if line.split(b" ")[:2] != [b"GET", b"/metrics"]:
            return "404 Not Found", _TEXT, b"there is GET /metrics\n"
        if not self._token and not _names_this_machine(rest):
            return "403 Forbidden", _TEXT, b"ask by a loopback address, or set telemetry.metrics_token_file\n"
        if self._token and not self._shown(rest):
            return "401 Unauthorized\r\nWWW-Authenticate: Bearer", _TEXT, b"the token of telemetry.metrics_token_file\n"
        self._tell()
        try:
            snapshot = figures.decode(await self._link.figures())
        except (RuntimeAway, RuntimeBusy, DecodeError):
            snapshot = self._own.snapshot()  # of this process alone: that the runtime is away is itself a figure
            snapshot["sealgate_runtime_ready"] = {(): (0,)}
        return "200 OK", *await asyncio.to_thread(rendered, snapshot)

    def _shown(self, fields: bytes) -> bool:
        shown = _values(fields, b"authorization")
        return len(shown) == 1 and hmac.compare_digest(shown[0], b"Bearer " + self._token)


def _values(fields: bytes, name: bytes) -> list[bytes]:
    """What stands in every field of that name."""
    told = (line.partition(b":") for line in fields.split(b"\r\n"))
    return [value.strip() for field, _, value in told if field.strip().lower() == name]


def _names_this_machine(fields: bytes) -> bool:
    """Whether a scrape was asked for at a loopback address or localhost; HTTP/1.0 need not say where."""
    hosts = _values(fields, b"host")
    names = [_PORT.sub("", host.decode("latin-1")) for host in hosts]
    return not names or (len(names) == 1 and metrics_address(f"{names[0]}:0") is not None)


class _Given:
    """A snapshot, as the library's registry asks for it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        for name in FAMILIES:
            if name in self._snapshot:
                yield _metric(name, self._snapshot[name])


def _metric(name: str, series: dict[tuple[str, ...], tuple[int, ...]]) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    family = FAMILIES[name]
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(name, family.help, labels=family.labels)
        bounds = [str(bound / family.per) for bound in family.bounds] + ["+Inf"]
        for labels, numbers in sorted(series.items()):
            counts = [sum(numbers[: place + 1]) for place in range(len(bounds))]
            histogram.add_metric(labels, list(zip(bounds, counts, strict=True)), sum_value=numbers[-1] / family.per)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(name, family.help, labels=family.labels)
    for labels, (number,) in sorted(series.items()):
        metric.add_metric(labels, number / family.per)
    return metric


def rendered(snapshot: Snapshot) -> tuple[str, bytes]:
    """Media type and body in the text format of Prometheus."""
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    given: Any = _Given(snapshot)
    registry.register(given)
    return CONTENT_TYPE_LATEST, generate_latest(registry)


def look_at_self(own: Figures) -> None:
    """Put in the memory and the processor time of this process; the host gives it a number of its own."""
    times = os.times()
    with contextlib.suppress(OSError, ValueError, IndexError):
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
        own.put("sealgate_process_resident_memory_bytes", ("gateway",), resident)
    own.put("sealgate_process_cpu_seconds_total", ("gateway",), round((times.user + times.system) * 1e6))


def open_metrics(
    deployment: Deployment, own: Figures | None, link: RuntimeLink, standing: Callable[[Figures], None]
) -> MetricsServer | None:
    """By the deployment's settings; None where no figures are kept. Raises ConfigurationError without the extra, or for
    a token that cannot be read."""
    settings = deployment.settings.telemetry
    address = metrics_address(settings.metrics) if settings.metrics else None
    if own is None or address is None:
        return None
    return MetricsServer(own, link, standing, address=address, token=_token(deployment))


def require_metrics(deployment: Deployment) -> None:
    """Raise ConfigurationError, in one line, for what would keep the figures from being served."""
    settings = deployment.settings.telemetry
    address = metrics_address(settings.metrics) if settings.metrics else None
    if address is None:
        return
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "telemetry.metrics is set, and the extra telemetry is not installed: pip install 'sealgate[telemetry]'"
        ) from None
    _token(deployment)
    try:
        with socket.create_server(address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"telemetry.metrics: cannot listen on {settings.metrics}: {error.strerror}; is another gateway running?"
        ) from error


def _token(deployment: Deployment) -> bytes:
    name = deployment.settings.telemetry.metrics_token_file
    if not name:
        return b""
    path = deployment.root / name
    try:
        with path.open("rb") as file:
            token = file.read(MAX_METRICS_TOKEN + 1).strip()
    except OSError as error:
        raise ConfigurationError(f"telemetry.metrics_token_file: {path} cannot be read: {error.strerror}") from error
    if not 16 <= len(token) <= MAX_METRICS_TOKEN or not token.isascii() or len(token.split()) != 1:
        raise ConfigurationError(f"telemetry.metrics_token_file: {path} must hold one token of 16 characters or more")
    return token
