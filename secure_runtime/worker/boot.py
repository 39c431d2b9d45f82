"""First code of a worker process: read the plan, close the sandbox, only then import anything that is not Python's own.

    python -I -S -B boot.py FD

FD is one end of a socketpair, the only thing inherited beside /dev/null. The host writes one plan: u32 length, JSON.
Standard output and error go to /dev/null from the first line on: what a library or a traceback prints may carry a
payload, and nobody reads it anyway. A boot that fails is told over the socket instead, as a BootFailed frame, and only
while no request can have arrived; after the seal the worker just ends.

Trusts: the host, its parent. Never: imports a third-party package before `enter` has returned.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any

_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_SOCKET = 3
_MAX_PLAN = 1 << 20
_FRAME = struct.Struct(">II")
_REFUSED, _BROKEN = 1, 70
_NO_ROOM = "failed to map segment"  # the C library's words for a library that RLIMIT_AS leaves no addresses for

Main = Callable[[socket.socket, dict[str, Any], Any], int]


def take_over(inherited: int) -> socket.socket:
    """Put the socket at descriptor 3 and /dev/null at 1 and 2 (the host opened 0 on it for both directions)."""
    os.dup2(0, 1, inheritable=False)
    os.dup2(0, 2, inheritable=False)
    if inherited != _SOCKET:
        os.dup2(inherited, _SOCKET, inheritable=False)
        os.close(inherited)
    return socket.socket(fileno=_SOCKET)


def read_plan(sock: socket.socket) -> dict[str, Any]:
    """The host's plan; raises ValueError or TypeError for anything that is not one."""
    length = int.from_bytes(_exactly(sock, 4), "big")
    if not 0 < length <= _MAX_PLAN:
        raise ValueError("the boot plan's length is out of bounds")
    plan = json.loads(_exactly(sock, length))
    if not isinstance(plan, dict):
        raise TypeError("the boot plan is not an object")
    return plan


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise ValueError("the host hung up before its plan was whole")
        data += more
    return data


def _packed(value: str | Mapping[str, Any]) -> bytes:
    """MessagePack of text and of maps, by hand: msgspec cannot be imported yet."""
    if isinstance(value, str):
        text = value.encode("utf-8", "replace")[:0xFFFF]
        return b"\xda" + len(text).to_bytes(2, "big") + text
    pairs = b"".join(_packed(key) + _packed(item) for key, item in value.items())
    return b"\xde" + len(value).to_bytes(2, "big") + pairs


def tell_failure(sock: socket.socket, *, reason: str, detail: str, layers: Mapping[str, Any]) -> None:
    """A BootFailed frame (sealgate.protocol.frames)."""
    header = _packed({"t": "boot-failed", "reason": reason, "detail": detail, "layers": layers})
    sock.sendall(_FRAME.pack(len(header), 0) + header)


def _place_of(error: BaseException) -> str:
    """File and line where it was raised, without reading any file."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "?"
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"


def boot(inherited: int, main: Callable[[], Main]) -> int:
    """Close the sandbox, then let `main` import the worker and run it; returns the exit code."""
    standard_library = list(sys.path)
    sys.path.append(_PARENT)
    from secure_runtime.worker import sandbox

    sock = take_over(inherited)
    report: Any = None
    try:
        plan = read_plan(sock)
        report = sandbox.enter(plan)
        # The standard library stays in front: an installed package cannot take the place of one of its modules.
        sys.path[:] = [*standard_library, *plan["sys_path"]]
        return main()(sock, plan, report)
    except BaseException as error:
        if report is not None and report.sealed:
            return _BROKEN
        reason = sandbox.LayerMissing.code if isinstance(error, sandbox.LayerMissing) else "boot-error"
        detail = str(error) if reason != "boot-error" else f"{type(error).__name__}: {error} ({_place_of(error)})"
        if _NO_ROOM in detail:
            detail += "; memory_limit_mb is too small for torch's libraries, which take 0.7 GiB"
        tell_failure(sock, reason=reason, detail=detail, layers=getattr(report or error, "layers", {}))
        return _REFUSED


def _worker() -> Main:
    from secure_runtime.worker.main import run

    return run


if __name__ == "__main__":
    code = boot(int(sys.argv[1]), _worker)
    # Without clean-up: finalizers may try what the seal forbids.
    os._exit(code)
