"""Runs the gateway: uvicorn over TLS 1.3, in one or several processes on the same listening sockets.

With `[gateway] unix_socket`, a proxy on this machine that ends TLS is served on a UNIX socket too.
Trusts: the deployment; file permissions for who may connect to the UNIX socket. Never: serves the network in clear,
believes forwarding headers about addresses, or writes an access log of its own beside `gateway.access_log`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]  # its types do not name it

from gateway.app import build_server, make_gate, open_watch
from gateway.console.router import open_console
from gateway.limits import COLLECT_EVERY, GOODBYE_TIMEOUT_S, HANDSHAKE_TIMEOUT_S, KEEP_ALIVE_S, SHUTDOWN_S
from gateway.metrics import require_metrics
from gateway.parent_death import end_with
from gateway.telemetry import Telemetry, capture_libraries
from gateway.tls_identity import SealedHttpProtocol, make_tls_context
from sealgate.deployment import Deployment, open_deployment
from sealgate.errors import ConfigurationError
from sealgate.local_socket import bind_local

_BACKLOG = 1024
_LAST_TURNS_S = 0.05  # the loop closes sockets in its next turn; no peer is waited for


@dataclass(frozen=True)
class _Opened:
    """Makes the application in the process that will serve it; several processes get this by pickle."""

    root: Path
    parent: int = 0  # of a process that is one of several: it ends with that one

    def __call__(self) -> Any:
        if self.parent:
            end_with(self.parent)
        telemetry = Telemetry()
        capture_libraries(telemetry)
        server = build_server(open_deployment(self.root), telemetry=telemetry)
        gc.collect()
        gc.freeze()  # what stands now stands until the end: collections need not look at it
        gc.set_threshold(COLLECT_EVERY)
        return server

    def tls(self, *_: Any) -> Any:
        """The `ssl_context_factory` of uvicorn."""
        return make_tls_context(open_deployment(self.root), telemetry=Telemetry())


def server_config(app: Any, tls: Any, **more: Any) -> uvicorn.Config:
    """How we run uvicorn. `app` is a factory; `tls` takes uvicorn's two arguments and gives the TLS context."""
    return uvicorn.Config(
        app,
        factory=True,
        http=SealedHttpProtocol,
        loop="gateway.serve:make_loop",
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        headers=[("X-Content-Type-Options", "nosniff")],
        backlog=_BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
        ssl_context_factory=tls,
        **more,
    )


class _Loop(uvloop.Loop):  # type: ignore[misc]  # uvloop ships no types
    """uvicorn serves every socket alike and leaves the times of TLS at a minute. Here a UNIX socket is served without
    TLS, and a peer that does not even shake hands gets less time.

    uvicorn closes what is idle when it stops, and does not know of connections that have yet to shake hands. One that
    comes up after that is not served, and `close` hangs up on all that is left: otherwise strangers could put off the
    end, and a loop that closes over an open socket ends with an error."""

    def __init__(self) -> None:
        super().__init__()
        self._accepted: weakref.WeakSet[Any] = weakref.WeakSet()

    async def create_server(self, protocol: Callable[[], Any], *args: Any, **more: Any) -> Any:
        sock = more.get("sock")
        local = sock is not None and sock.family == socket.AF_UNIX
        if more.get("ssl") is None and not local:
            return await super().create_server(protocol, *args, **more)
        server: Any = None

        def listening() -> bool:
            return server is None or bool(server.is_serving())

        def accepted() -> Any:
            made = protocol()
            made.listening = listening
            self._accepted.add(made)
            return made

        if local:
            server = await self.create_unix_server(accepted, *args, sock=sock, backlog=more["backlog"])
        else:
            more["ssl_handshake_timeout"] = HANDSHAKE_TIMEOUT_S
            more["ssl_shutdown_timeout"] = GOODBYE_TIMEOUT_S
            server = await super().create_server(accepted, *args, **more)
        return server

    def close(self) -> None:
        gc.collect()  # of handshakes that failed
        if self._accepted:
            self.run_until_complete(self._hang_up())
        super().close()

    async def _hang_up(self) -> None:
        left = list(self._accepted)
        for one in left:
            if one.transport is not None:
                one.transport.abort()
        # uvloop gives no transport away before hands are shaken: whoever holds the protocol is told that the peer left.
        for holder in gc.get_referrers(*(one for one in left if one.transport is None)):
            if isinstance(holder, SSLProtocol):
                holder.eof_received()
        await asyncio.sleep(_LAST_TURNS_S)


def make_loop() -> _Loop:
    """The event loop that uvicorn runs; it finds this function by its name."""
    return _Loop()


def listen(host: str, port: int) -> socket.socket:
    """The listening socket; raises ConfigurationError if the address cannot be had."""
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(info[0], info[1])
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(info[4])
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host} port {port}: {error.strerror}; is another gateway running? "
            "The address stands in deployment.toml, section [gateway]"
        ) from error
    sock.set_inheritable(True)
    return sock


def listen_for_proxy(deployment: Deployment) -> socket.socket | None:
    """The UNIX socket of `unix_socket`, if that is set; raises ConfigurationError if it cannot be had."""
    path = deployment.gateway_socket
    if path is None:
        return None
    group = deployment.settings.gateway.unix_socket_group
    sock = bind_local(path, group=group, setting="gateway.unix_socket_group", service="gateway")
    sock.set_inheritable(True)
    return sock


def serve(deployment: Deployment) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    settings = deployment.settings.gateway
    telemetry = Telemetry()
    # What is wrong with the deployment is said now, in one line, before anything listens.
    checked = make_gate(deployment, telemetry=telemetry)
    open_console(deployment, checked)
    checked.audit.close()
    checked.authenticator.let_go()
    make_tls_context(deployment)
    require_metrics(deployment)
    checked_watch = open_watch(deployment)
    if checked_watch is not None:
        checked_watch.close()
    _allow_many_files()
    sock = listen(settings.host, settings.port)
    telemetry.event("listening", address=f"{settings.host}:{sock.getsockname()[1]}", count=settings.workers)
    sockets = [sock]
    local = listen_for_proxy(deployment)
    if local is not None:
        telemetry.event("listening", address=settings.unix_socket, count=settings.workers)
        sockets.append(local)
    try:
        return _serve(deployment, sockets)
    finally:
        if deployment.gateway_socket is not None:
            deployment.gateway_socket.unlink(missing_ok=True)


def _serve(deployment: Deployment, sockets: list[socket.socket]) -> int:
    settings = deployment.settings.gateway
    opened = _Opened(deployment.root, parent=os.getpid() if settings.workers > 1 else 0)
    config = server_config(opened, opened.tls, workers=settings.workers)
    # uvicorn raises the signal again when it has stopped in order; then it has done its work.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    if settings.workers > 1:
        processes = Multiprocess(config, sockets=sockets)
        processes.run()
        return 1 if any(process.exitcode == STARTUP_FAILURE for process in processes.processes) else 0
    server = uvicorn.Server(config)
    server.run(sockets=sockets)
    return 0 if server.started else 1


def _allow_many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
