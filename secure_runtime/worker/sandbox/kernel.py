"""The kernel as the sandbox speaks to it: raw system calls through ctypes, and the few C structures they need.

Raw calls, because the C library has no wrappers for most of them, and because no dependency may run before the sandbox.
Trusts: the C library's `syscall` and `prctl`. Never: retries or hides an error; a failing call raises OSError.
"""

from __future__ import annotations

import ctypes
import errno
import os

from secure_runtime.worker.sandbox.syscalls import NUMBERS

_LIBC = ctypes.CDLL(None, use_errno=True)
_SYSCALL = _LIBC.syscall
_SYSCALL.restype = ctypes.c_long

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_SET_KEEPCAPS = 1, 3, 4, 8
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 23, 24, 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4

CAP_SETPCAP, CAP_SYS_ADMIN = 8, 21

AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, MOVE_MOUNT_F_EMPTY_PATH = 1, os.O_CLOEXEC, 4
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 8, 16384, 1 << 18, 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_IDMAP = 1, 2, 4, 8, 0x100000


class MountAttributes(ctypes.Structure):
    """struct mount_attr"""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityWord(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


_CAPABILITY_VERSION_3 = 0x20080522

Argument = int | bytes | None | ctypes.Structure | ctypes.Array[ctypes.c_char]


def attempt(name: str, *arguments: Argument) -> int:
    """Make the call; returns its result, or minus the error number. Every integer goes as a C long: the C library's
    `syscall` reads whole registers. A name that this architecture lacks answers -ENOSYS."""
    number = NUMBERS.get(name)
    if number is None:
        return -errno.ENOSYS
    passed: list[object] = [ctypes.c_long(number)]
    for argument in arguments:
        if isinstance(argument, int):
            passed.append(ctypes.c_long(argument))
        elif argument is None:
            passed.append(ctypes.c_void_p(0))
        elif isinstance(argument, bytes):
            passed.append(ctypes.c_char_p(argument))
        else:
            passed.append(ctypes.byref(argument))
    result = int(_SYSCALL(*passed))
    return -ctypes.get_errno() if result == -1 else result


def call(name: str, *arguments: Argument) -> int:
    """Make the call; raises OSError, naming the call, when it fails."""
    result = attempt(name, *arguments)
    if result < 0:
        raise OSError(-result, f"{name}: {os.strerror(-result)}")
    return result


def prctl(option: int, value: int = 0) -> int:
    """prctl(option, value, 0, 0, 0); raises OSError."""
    return call("prctl", option, value, 0, 0, 0)


def effective_capabilities() -> int:
    """The calling thread's effective set, as a bit mask."""
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    words = (_CapabilityWord * 2)()
    _check_capability_call("capget", header, words)
    return int(words[0].effective) | int(words[1].effective) << 32


def permitted_capabilities() -> int:
    """The calling thread's permitted set, as a bit mask."""
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    words = (_CapabilityWord * 2)()
    _check_capability_call("capget", header, words)
    return int(words[0].permitted) | int(words[1].permitted) << 32


def set_capabilities(mask: int) -> None:
    """Make `mask` the effective and permitted set, and empty the inheritable one."""
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    words = (_CapabilityWord * 2)()
    for index in range(2):
        half = mask >> (32 * index) & 0xFFFFFFFF
        words[index].effective = words[index].permitted = half
    _check_capability_call("capset", header, words)


def _check_capability_call(name: str, header: _CapabilityHeader, words: ctypes.Array[_CapabilityWord]) -> None:
    if _SYSCALL(ctypes.c_long(NUMBERS[name]), ctypes.byref(header), ctypes.byref(words)) != 0:
        raise OSError(ctypes.get_errno(), name)


def mount(source: bytes, target: bytes, kind: bytes, flags: int, data: bytes = b"") -> None:
    """The classic mount call; raises OSError."""
    call("mount", source, target, kind, flags, data)


def clone_tree(path: str, attributes: int) -> int:
    """A detached copy of the mounts at `path`, submounts included, with `attributes` added; returns a descriptor."""
    tree = call("open_tree", AT_FDCWD, os.fsencode(path), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE)
    try:
        set_mount_attributes(tree, attributes, recursive=True)
    except OSError:
        os.close(tree)
        raise
    return tree


def set_mount_attributes(tree: int, attributes: int, *, recursive: bool, userns: int = 0) -> None:
    """mount_setattr on an open tree; raises OSError."""
    wanted = MountAttributes(attr_set=attributes, attr_clr=0, propagation=0, userns_fd=userns)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    call("mount_setattr", tree, b"", flags, wanted, ctypes.sizeof(wanted))


def attach_tree(tree: int, target: str) -> None:
    """Mount a detached tree at `target`; raises OSError."""
    call("move_mount", tree, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH)
