"""Namespaces: what of the machine the worker can name at all. And the reaper, which stands between host and worker.

A process-id namespace begins with a fork: the child is process 1 of an empty world, the parent (the reaper) waits for
it outside, ends as it ended, and dies with the host. The kernel kills the child when the reaper dies.

Trusts: /proc of the machine, still visible here, for writing the identity maps. Never: keeps a capability after it.
"""

from __future__ import annotations

import os
import signal

from secure_runtime.worker.sandbox import bpf, filters, identity, kernel
from secure_runtime.worker.sandbox.report import Report
from secure_runtime.worker.sandbox.syscalls import MACHINE

_ENTERED = (
    ("mount-namespace", kernel.CLONE_NEWNS),
    ("network-namespace", kernel.CLONE_NEWNET),
    ("ipc-namespace", kernel.CLONE_NEWIPC),
    ("uts-namespace", kernel.CLONE_NEWUTS),
    ("cgroup-namespace", kernel.CLONE_NEWCGROUP),
)
_NAME = b"worker"
_REAPER_FAILED = 71


def enter_user_namespace(report: Report, *, proc: int) -> bool:
    """A user namespace in which only the present user exists, under the same number. True when entered.

    `proc` is a descriptor of /proc: this is also called when /proc can no longer be reached by path. Its files belong
    to root while the process is not dumpable, so it is made dumpable for the moment; no secret exists yet.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        kernel.call("unshare", kernel.CLONE_NEWUSER)
    except OSError as error:
        report.failed("user-namespace", error)
        return False
    try:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        _write(proc, "self/setgroups", "deny")
        _write(proc, "self/uid_map", f"{uid} {uid} 1")
        _write(proc, "self/gid_map", f"{gid} {gid} 1")
    except OSError as error:
        # Unmapped, the process has no usable identity any more; the profile decides, the other layers still close.
        report.failed("user-namespace", error)
        return False
    report.set("user-namespace", "on")
    return True


def _write(directory: int, name: str, text: str) -> None:
    file = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def leave_shared_namespaces(report: Report) -> None:
    """Mount, network, ipc, uts and cgroup namespaces of our own, each as far as the kernel lets us."""
    for layer, flag in _ENTERED:
        try:
            kernel.call("unshare", flag)
            if flag == kernel.CLONE_NEWNS:
                kernel.mount(b"none", b"/", b"", kernel.MS_REC | kernel.MS_PRIVATE)
            elif flag == kernel.CLONE_NEWUTS:
                kernel.call("sethostname", _NAME, len(_NAME))
            report.set(layer, "on")
        except OSError as error:
            report.failed(layer, error)


def note_unreachable(report: Report) -> None:
    """Without a user namespace an ordinary user can have none of the others."""
    for layer in (*(name for name, _ in _ENTERED), "pid-namespace", "private-root"):
        report.set(layer, "off", "needs the user namespace")


def become_first_process(report: Report, *, uid: int, gid: int) -> None:
    """Fork into a process-id namespace of our own. Only the child returns; the parent becomes the reaper."""
    try:
        kernel.call("unshare", kernel.CLONE_NEWPID)
        child = os.fork()
    except OSError as error:
        report.failed("pid-namespace", error)
        return
    if child:
        _reap(child, uid=uid, gid=gid)
    identity.die_with_parent(report)
    report.set("pid-namespace", "on", "" if os.getpid() == 1 else f"process {os.getpid()}")


def _reap(child: int, *, uid: int, gid: int) -> None:
    """Give up everything but waiting, wait, and end as the child ended. Never returns."""
    try:
        own = Report("dev")
        kernel.call("close_range", 0, 0xFFFFFFFF, 0)
        identity.empty_bounding_set()
        if os.geteuid() == 0 and uid != 0:
            identity.change_user(uid, gid, own)
        identity.die_with_parent(own)
        identity.drop_capabilities(own)
        identity.forbid_new_privileges(own)
        identity.forbid_dumps(own)
        if filters.known_machine():
            bpf.install(filters.program_for(filters.REAPER_RULES, machine=MACHINE))
        _, status = os.waitpid(child, 0)
        os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
    except BaseException:  # whatever it was, a worker without its reaper must not live
        os.kill(child, signal.SIGKILL)
        os._exit(_REAPER_FAILED)
