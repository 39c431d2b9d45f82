"""What a worker that computes on a GPU may do beyond one that does not: all that its driver asks for, in one place.

CUDA's driver (libcuda, in the worker's own address space) opens the device nodes again and again, maps memory through
them, and speaks to the kernel by some fifty ioctls whose arguments no filter can read. It also names its threads
through /proc, and shares memory with itself through memory files (both since release 570). So such a worker is weaker:
the kernel's GPU driver, a large program, can be reached from inside, also while serving. What stays closed:

- no file but those that the sandbox shows, and of them only the device nodes and the names of its own threads for
  writing (Landlock; without it no profile but `dev` holds);
- of ioctls only NVIDIA's: type 'F' of the control and GPU nodes, and the numbers of nvidia-uvm; none of terminals,
  sockets or file systems;
- private memory is bounded (RLIMIT_DATA); addresses are not, because the driver reserves as many as all memory of the
  machine and its GPUs has, nor is memory that the worker shares with itself: a control group bounds both;
- no socket, no process, no exec, no other user, as everywhere.

Sources: NVIDIA's open kernel modules (nv-ioctl-numbers.h, uvm_linux_ioctl.h) for the numbers, proc(5) and the kernel's
landlock.h. Not run on a GPU yet. Trusts: the plan's list of nodes. Never: shows a node that is no character device.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

from secure_runtime.worker.sandbox.bpf import ALLOW, Condition, Rule
from secure_runtime.worker.sandbox.report import LayerMissing, Report

LAYER = "no-gpu-driver"
OPEN_FILES = 4096  # the driver opens its nodes anew for what it maps
OWN_THREADS = "/proc/self/task"  # thread names are written there; Landlock's rule is about this process alone
PROC_READ = tuple(f"/proc/{name}" for name in ("self", "driver", "devices", "cpuinfo", "meminfo", "modules", "stat"))
"""What of /proc may be read: nothing of other processes, where the worker has no process-id namespace of its own."""

_IOCTL_TYPE, _IOCTL_TYPE_MASK = ord("F") << 8, 0xFF00
_UVM_NUMBERS = 0xFF  # nvidia-uvm's commands are bare numbers
_UVM_INITIALIZE, _UVM_DEINITIALIZE = 0x30000001, 0x30000002
_NOT_READ_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | (os.O_TMPFILE & ~os.O_DIRECTORY)  # leaves O_RDONLY, O_RDWR
_FLAGS_OF_DESCRIPTORS = (1, 2, 3, 4)  # F_GETFD, F_SETFD, F_GETFL, F_SETFL; none that duplicates

_COMMANDS = (
    Rule(("ioctl",), ALLOW, (Condition(1, _IOCTL_TYPE, mask=_IOCTL_TYPE_MASK),)),
    Rule(("ioctl",), ALLOW, (Condition(1, 0, mask=0xFFFFFFFF ^ _UVM_NUMBERS),)),
    *(Rule(("ioctl",), ALLOW, (Condition(1, request),)) for request in (_UVM_INITIALIZE, _UVM_DEINITIALIZE)),
)
_NODES = (
    Rule(("open",), ALLOW, (Condition(1, 0, mask=_NOT_READ_WRITE),)),
    Rule(("openat",), ALLOW, (Condition(2, 0, mask=_NOT_READ_WRITE),)),
)
_MEMORY_FILES = (Rule(("memfd_create", "ftruncate", "fallocate", "pipe2"), ALLOW),)

LOAD_RULES = (*_COMMANDS, *_NODES, *_MEMORY_FILES)
"""Beyond `filters.load_rules`. Opening for both goes to Landlock, which knows the path; a filter does not."""

SEAL_RULES = (
    *LOAD_RULES,
    Rule(("mmap", "read", "write", "pread64", "lseek", "eventfd2"), ALLOW),
    *(Rule(("fcntl",), ALLOW, (Condition(1, command),)) for command in _FLAGS_OF_DESCRIPTORS),
    Rule(("fstat", "stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "readlink"), ALLOW),
    Rule(("mbind", "get_mempolicy", "set_mempolicy", "mincore"), ALLOW),
)
"""Beyond `filters.seal_rules`: device memory is mapped while serving, too."""

NOT_DENIED = frozenset({"stat-file", "map-file", "memory-file"})
"""Denial probes that a GPU's driver must be able to pass."""


def nodes_of(plan: Mapping[str, Any]) -> tuple[str, ...]:
    """The device nodes that the plan shows, looked at; raises LayerMissing for what is no device."""
    nodes = tuple(plan.get("gpus", ()))
    for path in nodes:
        try:
            kind = os.stat(path).st_mode
        except OSError as error:
            raise LayerMissing(f"{path} cannot be shown to the worker: {error.strerror}") from error
        if not stat.S_ISCHR(kind):
            raise LayerMissing(f"{path} cannot be shown to the worker: it is no device")
    if nodes and plan.get("single_use"):
        raise LayerMissing('single-use processes need the CPU: a fork has no GPU (set device = "cpu")')
    return nodes


def note(nodes: tuple[str, ...], report: Report) -> None:
    """Say it in the report: no profile requires this layer, a client may."""
    report.gpus = nodes
    if nodes:
        report.set(LAYER, "disabled", f"models run on a GPU, whose driver the worker speaks to by {', '.join(nodes)}")
    else:
        report.set(LAYER, "on")


def close_descriptors(report: Report, *, first: int) -> None:
    """Close every descriptor from `first` on but those of the driver: its nodes, memory files, events and pipes."""
    try:
        opened = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError as error:
        report.failed("closed-descriptors", error)
        return
    stay = 0
    for descriptor in opened:
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue  # the one that listed
        if descriptor < first:
            continue
        if target in report.gpus or target.startswith(("anon_inode:", "/memfd:", "pipe:")):
            stay += 1
        else:
            os.close(descriptor)
    report.set("closed-descriptors", "on", f"but {stay} of the GPU's driver")
