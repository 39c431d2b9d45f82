"""Who the worker is and what it may grow to: user, capabilities, privileges, parent, limits.

Trusts: nothing. Never: leaves a step half done silently; each notes in the report what it reached.
"""

from __future__ import annotations

import os
import resource
import signal
from dataclasses import dataclass

from secure_runtime.worker.sandbox import kernel
from secure_runtime.worker.sandbox.gpus import OPEN_FILES
from secure_runtime.worker.sandbox.report import Report

_LAST_DESCRIPTOR = 0xFFFFFFFF
_MAX_CAPABILITY = 63
_LOADING_DESCRIPTORS = 256
_KEPT_FOR_NAMESPACES = 1 << kernel.CAP_SYS_ADMIN | 1 << kernel.CAP_SETPCAP
_THREADS = 512  # processes and threads of the worker's user, inside its own user namespace


@dataclass(frozen=True)
class Situation:
    """How the worker was started, which decides the order of the layers."""

    root: bool
    administrator: bool  # root with CAP_SYS_ADMIN: namespaces without a user namespace first

    @classmethod
    def now(cls) -> Situation:
        """Look at the running process."""
        root = os.geteuid() == 0
        return cls(root, root and bool(kernel.effective_capabilities() >> kernel.CAP_SYS_ADMIN & 1))


def close_descriptors(report: Report, *, first: int) -> None:
    """Close everything from `first` on."""
    try:
        kernel.call("close_range", first, _LAST_DESCRIPTOR, 0)
    except OSError:
        os.closerange(first, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    report.set("closed-descriptors", "on")


def die_with_parent(report: Report) -> None:
    """Ask for SIGKILL at the parent's death. Every change of user clears it, so `change_user` asks again."""
    try:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        report.set("parent-death", "on")
    except OSError as error:
        report.failed("parent-death", error)


def change_user(uid: int, gid: int, report: Report) -> None:
    """Leave root for `uid`, keeping no group, and of the capabilities only what the next layers need."""
    if uid == 0:
        report.set("other-uid", "disabled", "the settings keep root (worker uid 0)")
        return
    try:
        kernel.prctl(kernel.PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        kernel.set_capabilities(kernel.permitted_capabilities() & _KEPT_FOR_NAMESPACES)
        kernel.prctl(kernel.PR_SET_KEEPCAPS, 0)
    except OSError as error:
        report.failed("other-uid", error)
        return
    report.set("other-uid", "on", f"uid {uid}")
    die_with_parent(report)


def empty_bounding_set() -> bool:
    """Drop every capability from the bounding set; False without the privilege to do so."""
    for capability in range(_MAX_CAPABILITY + 1):
        if kernel.attempt("prctl", kernel.PR_CAPBSET_READ, capability, 0, 0, 0) != 1:
            continue
        if kernel.attempt("prctl", kernel.PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            return False
    return True


def drop_capabilities(report: Report) -> None:
    """Empty all capability sets, and read them back."""
    bounding = empty_bounding_set()
    try:
        kernel.attempt("prctl", kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        kernel.set_capabilities(0)
    except OSError as error:
        report.failed("no-capabilities", error)
        return
    if kernel.effective_capabilities() or kernel.permitted_capabilities():
        report.set("no-capabilities", "failed", "capabilities remain")
        return
    # Without exec the bounding set has no effect, and no-new-privileges keeps it without effect even then.
    report.set("no-capabilities", "on", "" if bounding else "the bounding set could not be emptied")


def forbid_new_privileges(report: Report) -> None:
    """Also what lets an unprivileged process install Landlock and seccomp."""
    try:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        report.set("no-new-privileges", "on")
    except OSError as error:
        report.failed("no-new-privileges", error)


def forbid_dumps(report: Report) -> None:
    """Neither core dumps nor other processes of the same user may read this one's memory."""
    try:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    except OSError as error:
        report.failed("not-dumpable", error)
        return
    on = kernel.attempt("prctl", kernel.PR_GET_DUMPABLE, 0, 0, 0, 0) == 0
    report.set("not-dumpable", "on" if on else "failed")


def limit_resources(memory_bytes: int, report: Report, *, gpus: bool = False) -> None:
    """Lower each limit to ours, or keep a stricter hard limit. With `gpus` memory is bounded instead of addresses, and
    memory files may grow as far: there is no other file to write to.

    The thread limit counts everything that the user runs, so it is set only where the user is alone: in its own user
    namespace. Elsewhere the memory limit bounds threads, since each needs a stack.
    """
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: memory_bytes if gpus else 0,
        (resource.RLIMIT_DATA if gpus else resource.RLIMIT_AS): memory_bytes,
        resource.RLIMIT_NOFILE: OPEN_FILES if gpus else _LOADING_DESCRIPTORS,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
    }
    if report.is_on("user-namespace"):
        wanted[resource.RLIMIT_NPROC] = _THREADS
    try:
        for kind, value in wanted.items():
            _lower(kind, value)
    except (OSError, ValueError) as error:
        report.set("resource-limits", "failed", str(error))
        return
    of = "private memory; a GPU's driver reserves addresses without bound" if gpus else "address space"
    report.set("resource-limits", "on", f"{memory_bytes // (1024 * 1024)} MiB of {of}")


def forbid_new_descriptors(*, first_free: int) -> None:
    """No descriptor beyond those open: neither opened nor received. Not zero, because poll() counts against it too."""
    _lower(resource.RLIMIT_NOFILE, first_free)


def _lower(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (bound, bound))
