"""The sandbox of the two kinds of process that a worker with single-use processes adds: the zygote, and its children.

    make_channel        before anything is closed: the socketpair between worker and zygote, at descriptors 4 and 5
    become_zygote       in the fork that the worker makes before its own seal: one socket, stage "zygote"
    become_single_use   in each fork of the zygote: no descriptor, a deadline that cannot be put off, stage "once"
    try_out             by the zygote: both kinds try what they must not be able to do, and a child is left to hang

The worker's own seal loses nothing by it: it neither forks nor waits. The zygote holds no key and reads no content.

Trusts: what `enter` closed before; forks inherit it. Never: signals a process: a child's end is its own timer's.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable

from secure_runtime.worker.sandbox import bpf, filters, identity, kernel, probes
from secure_runtime.worker.sandbox.filters import CHANNEL, SOCKET
from secure_runtime.worker.sandbox.report import Report
from secure_runtime.worker.sandbox.syscalls import MACHINE

_ZYGOTES_END = CHANNEL + 1
_CLOCK_MONOTONIC = 1
_HANGS_NS, _LIVES_NS = 10_000_000, 10_000_000_000
_HANG_S = 5.0
_REPORT_BYTES = 16 * 1024
_FAILED = 71


class _Poll(ctypes.Structure):
    """struct pollfd"""

    _fields_ = (("descriptor", ctypes.c_int), ("events", ctypes.c_short), ("returned", ctypes.c_short))


def make_channel() -> None:
    """A socketpair at descriptors 4 (the worker's) and 5 (the zygote's)."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end, place in zip(ends, (CHANNEL, _ZYGOTES_END), strict=True):
        if end.fileno() != place:
            os.dup2(end.fileno(), place, inheritable=False)
            end.close()
        else:
            end.detach()


def keep_workers_end() -> socket.socket:
    """For the worker: close the zygote's end, and use its own."""
    os.close(_ZYGOTES_END)
    return socket.socket(fileno=CHANNEL)


def become_zygote(worker: int) -> socket.socket:
    """Close the worker's sockets, close the stage; returns the socket to the worker, `worker` being its process id.

    Raises OSError. The descriptor moves to where the worker has its host, so that filter and probes fit both.
    """
    os.close(SOCKET)
    os.close(CHANNEL)
    channel = socket.socket(fileno=os.dup(_ZYGOTES_END))  # the lowest number that is free
    os.close(_ZYGOTES_END)
    channel.setblocking(False)  # a call that the stage does not have
    if channel.fileno() != SOCKET:
        raise OSError(errno.EBADF, "the zygote has a descriptor too many")
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != worker:
        raise OSError(errno.ESRCH, "the worker ended meanwhile")
    identity.forbid_new_descriptors(first_free=SOCKET + 1)
    # A handler, because an ignored signal would not end `wait_for`; blocked, so that it arrives only there.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    once_program()
    bpf.install(filters.program_for(filters.ZYGOTE_RULES, machine=MACHINE))
    return channel


@functools.cache
def once_program() -> bytes:
    """The filter of the last stage: assembled by the zygote, so that no child spends time on it."""
    return filters.program_for(filters.ONCE_RULES, machine=MACHINE)


def wait_for(channel: socket.socket) -> None:
    """Return when the channel has something or a child may have ended. No event is lost: see `become_zygote`."""
    wanted = _Poll(channel.fileno(), select.POLLIN, 0)
    kernel.attempt("ppoll", wanted, 1, None, bytes(8), 8)


def ended_children() -> list[tuple[int, int]]:
    """Process id and wait status of every child that has ended."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, status))


def become_single_use(zygote: int, *, lifetime_ns: int) -> None:
    """First thing in a fork of the zygote: nothing to speak with, a time to die, and the last stage. Raises OSError."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != zygote:
        raise OSError(errno.ESRCH, "the zygote ended meanwhile")
    for descriptor in range(SOCKET + 1):
        os.close(descriptor)
    _end_after(lifetime_ns)
    bpf.install(once_program())


def _end_after(lifetime_ns: int) -> None:
    """SIGKILL by a timer of the process's own, which nobody can catch; the next stage takes the timer calls away."""
    event = ctypes.create_string_buffer(struct.pack("=qii48x", 0, signal.SIGKILL, 0))  # SIGEV_SIGNAL
    timer = ctypes.create_string_buffer(8)
    kernel.call("timer_create", _CLOCK_MONOTONIC, event, timer)
    seconds, rest = divmod(max(1, lifetime_ns), 1_000_000_000)
    moment = ctypes.create_string_buffer(struct.pack("=qqqq", 0, 0, seconds, rest))
    kernel.call("timer_settime", int.from_bytes(timer.raw[:4], "little"), 0, moment, None)


# Trying it out -------------------------------------------------------------------------------------------------------


def try_out() -> dict[str, dict[str, str]]:
    """The two layers, as the zygote and two children of it found them by trying. Called by the zygote, once."""
    if not filters.known_machine():
        missing = {"state": "off", "detail": f"no table of system calls for {MACHINE}"}
        return {"seccomp-zygote": missing, "seccomp-once": dict(missing)}
    own = Report("dev")
    probes.run(own)
    denied = sum(entry["state"] == "on" for entry in own.probes.values())
    told = {"seccomp-zygote": _entry(_failed(own), f"it may fork; {denied} other attempts were denied")}
    told["seccomp-once"] = _try_child()
    return told


def _try_child() -> dict[str, str]:
    with mmap.mmap(-1, _REPORT_BYTES) as shared:

        def try_everything() -> None:
            report = Report("dev")
            probes.run(report)
            failed = _failed(report)
            denied = sum(entry["state"] == "on" for entry in report.probes.values())
            text = f"{denied} {' '.join(failed)}".encode()
            shared[: len(text)] = text

        if _run(try_everything, lifetime_ns=_LIVES_NS) != 0:
            return {"state": "failed", "detail": "a child did not come to its end"}
        denied, *failed = shared[:].rstrip(b"\0").decode("ascii", "replace").split()
    if not _killed(_run(lambda: time.sleep(_HANG_S), lifetime_ns=_HANGS_NS)):
        failed.append("outlive-deadline")
    return _entry(failed, f"{denied} attempts were denied; a child that hung was ended")


def _run(task: Callable[[], None], *, lifetime_ns: int) -> int:
    """The wait status of a child that did `task` under the last stage."""
    zygote = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            become_single_use(zygote, lifetime_ns=lifetime_ns)
            task()
            os._exit(0)
        except BaseException:
            os._exit(_FAILED)
    return os.waitpid(child, 0)[1]


def _killed(status: int) -> bool:
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _failed(report: Report) -> list[str]:
    return [name for name, entry in report.probes.items() if entry["state"] == "failed"]


def _entry(failed: list[str], detail: str) -> dict[str, str]:
    if failed:
        return {"state": "failed", "detail": f"got through: {' '.join(failed)}"}
    return {"state": "on", "detail": detail}
