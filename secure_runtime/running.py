"""What a runtime host that runs says of itself: the state that it tells every gateway, read once from its socket.

For `sealgate doctor STATE`. Trusts: the socket's file permissions. Never: asks it to do anything, or waits without an
end.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from sealgate.ambient import monotonic_ns
from sealgate.deployment import Deployment, socket_address
from sealgate.errors import DecodeError, HostAway
from sealgate.protocol.frames import FrameReader, HostToGateway, PublishedWorker, RuntimeState
from sealgate.terminal import printable
from secure_runtime.limits import MAX_TOLD, STATE_ANSWER_S


def read_state(deployment: Deployment) -> RuntimeState:
    """The state of now; raises HostAway if no host runs, this user may not ask it, or it does not answer."""
    deadline = monotonic_ns() + int(STATE_ANSWER_S * 1e9)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(STATE_ANSWER_S)
        try:
            with socket_address(deployment.socket) as address:
                sock.connect(address)
            return _first_state(sock, deadline)
        except PermissionError as error:
            raise HostAway(f"this user may not ask the runtime host: {deployment.socket} belongs to another") from error
        except (OSError, DecodeError) as error:
            raise HostAway("no runtime host runs for this deployment, or it does not answer") from error


def _first_state(sock: socket.socket, deadline: int) -> RuntimeState:
    reader = FrameReader(HostToGateway)
    while (left_ns := deadline - monotonic_ns()) > 0:
        sock.settimeout(left_ns / 1e9)
        data = sock.recv(65536)
        if not data:
            raise DecodeError("the connection ended before a state")
        for frame, _ in reader.feed(data):
            if isinstance(frame, RuntimeState):
                return frame
    raise TimeoutError


def troubles(state: RuntimeState) -> list[str]:
    """What an operator has to look at, a line each; none if all is well."""
    found = [f"{'a worker is away' if state.ready else 'not ready'}: {state.detail}"] if state.detail else []
    found += [] if state.log_state == "ok" else [f"the audit log: {state.log_state}"]
    return found + ([f"witnesses do not cosign: {state.witnesses}"] if state.witnesses else [])


def as_pairs(state: RuntimeState) -> Sequence[tuple[str, object]]:
    """For people."""
    return [
        ("runtime", "ready" if state.ready else f"not ready: {state.detail}"),
        ("audit log", f"{state.log}: {state.log_state}"),
        *(
            (f"worker {number}", f"{one.instance[:16]} on {one.device}: {', '.join(one.models) or 'no model'}")
            for number, one in enumerate(state.workers, 1)
        ),
        *(
            (f"CUDA graphs of {called}", printable(words, limit=MAX_TOLD))
            for called, words in {
                called: words for one in state.workers for called, words in one.graphs.items()
            }.items()
        ),
        *((f"model {name}", f"versions {', '.join(versions)}") for name, versions in _several(state).items()),
        *((f"model {name} answers", words) for name, words in state.routes.items()),
        ("witnesses", state.witnesses or "no trouble is known"),
        ("profile", f"{state.profile}, {state.assurance}{', degraded' if state.degraded else ''}"),
    ]


def isolation(worker: PublishedWorker) -> list[tuple[str, str, str, str]]:
    """Layer, state, detail, and what the host read of it from outside (empty where it cannot), for one worker that
    runs. Its word on `seccomp-zygote` and `seccomp-once` is what its own processes found by trying."""
    read = {name: f"{one.state}: {one.detail}" if one.detail else one.state for name, one in worker.host_layers.items()}
    said = [(name, one.state, one.detail, read.pop(name, "")) for name, one in worker.layers.items()]
    return said + [(name, "", "", words) for name, words in read.items()]


def _several(state: RuntimeState) -> dict[str, list[str]]:
    """Models of which more than one version may answer."""
    versions: dict[str, list[str]] = {}
    for one in state.models:
        versions.setdefault(one.name, []).append(one.version)
    return {name: found for name, found in versions.items() if len(found) > 1}
