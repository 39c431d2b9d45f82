"""Denial probes: after the seal the worker tries what it must not be able to do, and reports what happened.

Each probe is a call that reaches the kernel when there is no sandbox (a test shows it), and none does harm when it gets
through. Denied means: exactly the filter's or the limit's error, not some other failure. Calls that the filter answers
by killing cannot be probed by a process that means to live; the tests try each of them in a worker of its own.

Trusts: the error number of the kernel. Never: opens, imports or allocates lazily; it runs after the seal.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
from collections.abc import Callable
from dataclasses import dataclass

from secure_runtime.worker.sandbox import gpus, kernel
from secure_runtime.worker.sandbox.kernel import AT_FDCWD, Argument
from secure_runtime.worker.sandbox.report import Report
from secure_runtime.worker.sandbox.syscalls import NUMBERS

_NAME = b".sealgate-probe"
_SCRATCH = ctypes.create_string_buffer(4096)
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK, _AF_VSOCK, _STREAM, _RAW = 1, 2, 10, 16, 40, 1, 3
_RLIMIT_CORE = 4
_IPC_PRIVATE, _IPC_RMID = 0, 0
_TIOCSTI = 0x5412
_SECCOMP_GET_ACTION_AVAIL = 2
_PROT_READ, _PROT_WRITE = 1, 2
_MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x02, 0x20, 0x4000
_MORE_THAN_ANY_LIMIT = 1 << 45
_REMOVE_DIRECTORY = 0x200


def _nothing(_result: int) -> None:
    """The call leaves nothing behind."""


def _close(result: int) -> None:
    os.close(result)


def _remove(_result: int) -> None:
    kernel.attempt("unlinkat", AT_FDCWD, _NAME, 0)


def _close_and_remove(result: int) -> None:
    os.close(result)
    _remove(result)


def _remove_directory(_result: int) -> None:
    kernel.attempt("unlinkat", AT_FDCWD, _NAME, _REMOVE_DIRECTORY)


def _end_child(result: int) -> None:
    if result == 0:
        os._exit(0)
    os.waitpid(result, 0)


def _undump(_result: int) -> None:
    kernel.attempt("prctl", kernel.PR_SET_DUMPABLE, 0, 0, 0, 0)


def _remove_segment(result: int) -> None:
    kernel.attempt("shmctl", result, _IPC_RMID, None)


def _unmap(result: int) -> None:
    kernel.attempt("munmap", result, _MORE_THAN_ANY_LIMIT)


def _close_pair(_result: int) -> None:
    for place in (0, 4):
        os.close(int.from_bytes(_SCRATCH.raw[place : place + 4], "little"))


@dataclass(frozen=True)
class Probe:
    """One forbidden call. `undo` cleans up after a call that got through."""

    name: str
    call: str
    arguments: tuple[Argument, ...]
    undo: Callable[[int], None] = _nothing
    denied_by: int = errno.EPERM


def _probes() -> tuple[Probe, ...]:
    parent = os.getppid() or 2  # in a process-id namespace the parent has no number; 1 is this process
    huge = (0, _MORE_THAN_ANY_LIMIT, _PROT_READ | _PROT_WRITE, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE, -1, 0)
    no_limit = ctypes.create_string_buffer(16)
    return (
        Probe("open-file", "openat", (AT_FDCWD, b"/", os.O_RDONLY), _close),
        Probe("create-file", "openat", (AT_FDCWD, _NAME, os.O_WRONLY | os.O_CREAT, 0o600), _close_and_remove),
        Probe("stat-file", "newfstatat", (AT_FDCWD, b"/", _SCRATCH, 0)),
        Probe("read-link", "readlinkat", (AT_FDCWD, b"/proc/self/exe", _SCRATCH, 4096)),
        Probe("change-directory", "chdir", (b".",)),
        Probe("make-directory", "mkdirat", (AT_FDCWD, _NAME, 0o700), _remove_directory),
        Probe("make-node", "mknodat", (AT_FDCWD, _NAME, stat.S_IFIFO | 0o600, 0), _remove),
        Probe("remove-file", "unlinkat", (AT_FDCWD, _NAME, 0)),
        Probe("change-mode", "fchmodat", (AT_FDCWD, _NAME, 0o777)),
        Probe("map-file", "mmap", (0, 4096, _PROT_READ, _MAP_PRIVATE, 0, 0)),
        Probe("memory-file", "memfd_create", (b"probe", 0), _close),
        Probe("duplicate-descriptor", "dup", (0,), _close),
        Probe("receive-descriptors", "recvmsg", (3, None, 0)),
        Probe("socket-inet", "socket", (_AF_INET, _STREAM, 0), _close),
        Probe("socket-inet6", "socket", (_AF_INET6, _STREAM, 0), _close),
        Probe("socket-unix", "socket", (_AF_UNIX, _STREAM, 0), _close),
        Probe("socket-netlink", "socket", (_AF_NETLINK, _RAW, 0), _close),
        Probe("socket-vsock", "socket", (_AF_VSOCK, _STREAM, 0), _close),
        Probe("socket-pair", "socketpair", (_AF_UNIX, _STREAM, 0, _SCRATCH), _close_pair),
        Probe("new-process", "clone", (int(signal.SIGCHLD), 0, 0, 0, 0), _end_child),
        Probe("new-user-namespace", "clone", (kernel.CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0), _end_child),
        Probe("new-process-clone3", "clone3", (None, 0), denied_by=errno.ENOSYS),
        Probe("signal-parent", "kill", (parent, 0)),
        Probe("signal-thread-of-parent", "tgkill", (parent, parent, 0)),
        Probe("limits-of-parent", "prlimit64", (parent, _RLIMIT_CORE, None, _SCRATCH)),
        Probe("change-limits", "prlimit64", (0, _RLIMIT_CORE, no_limit, None)),
        Probe("become-dumpable", "prctl", (kernel.PR_SET_DUMPABLE, 1, 0, 0, 0), _undump),
        Probe("change-user", "setresuid", (-1, -1, -1)),
        Probe("shared-memory", "shmget", (_IPC_PRIVATE, 4096, 0o600), _remove_segment),
        Probe("terminal-input", "ioctl", (0, _TIOCSTI, b"x")),
        Probe("another-filter", "seccomp", (_SECCOMP_GET_ACTION_AVAIL, 0, None)),
        Probe("memory-above-limit", "mmap", huge, _unmap, denied_by=errno.ENOMEM),
    )


def run(report: Report) -> None:
    """Try everything once and note each outcome in `report.probes`: `on` where it was denied, `failed` otherwise."""
    for probe in _probes():
        if probe.call not in NUMBERS:
            report.probes[probe.name] = {"state": "not-needed", "detail": "this architecture has no such call"}
            continue
        if report.gpus and probe.name in gpus.NOT_DENIED:
            report.probes[probe.name] = {"state": "disabled", "detail": "a GPU's driver needs it"}
            continue
        # A worker with a GPU may call openat; that it opens nothing else is Landlock's word.
        denied_by = errno.EACCES if report.gpus and probe.name == "open-file" else probe.denied_by
        result = kernel.attempt(probe.call, *probe.arguments)
        if result == -denied_by:
            report.probes[probe.name] = {"state": "on", "detail": ""}
        else:
            if result >= 0:
                probe.undo(result)
            outcome = "it was possible" if result >= 0 else f"not denied, failed by itself: {errno.errorcode[-result]}"
            report.probes[probe.name] = {"state": "failed", "detail": outcome}
