"""Another process of the worker's own user, after the worker's memory: `attacker.py WORKER PLAIN`.

Tries the same on a plain process, to show that the attacks work. Only tests start it.
"""

import ctypes
import errno
import json
import os
import signal
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


class Span(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def read(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return len(os.read(descriptor, 64))
    finally:
        os.close(descriptor)


def read_memory(pid):
    # Without a mapping to read, opening is what the kernel refuses.
    os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))


def write_memory(pid):
    os.close(os.open(f"/proc/{pid}/mem", os.O_WRONLY))


def first_mapping():
    """Of this process: the interpreter lies where it lies in its siblings only without randomisation, so an address
    that is not mapped answers EFAULT, which also shows that the attempt was admitted."""
    return 0x1000


def vm_read(pid):
    mine = ctypes.create_string_buffer(8)
    local, remote = Span(ctypes.addressof(mine), 8), Span(first_mapping(), 8)
    result = LIBC.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if result == -1 and ctypes.get_errno() != errno.EFAULT:
        raise OSError(ctypes.get_errno(), "process_vm_readv")


def trace(pid):
    if LIBC.ptrace(0x4206, pid, None, None) == -1:
        raise OSError(ctypes.get_errno(), "ptrace")


def take_descriptor(pid):
    handle = os.pidfd_open(pid)
    result = LIBC.syscall(ctypes.c_long(438), ctypes.c_long(handle), ctypes.c_long(0), ctypes.c_long(0))
    if result == -1:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")


ATTACKS = {
    "maps": lambda pid: read(f"/proc/{pid}/maps"),
    "environ": lambda pid: read(f"/proc/{pid}/environ"),
    "auxv": lambda pid: read(f"/proc/{pid}/auxv"),
    "descriptors": lambda pid: os.listdir(f"/proc/{pid}/fd"),
    "root": lambda pid: os.listdir(f"/proc/{pid}/root/"),
    "working directory": lambda pid: os.listdir(f"/proc/{pid}/cwd/"),
    "program": lambda pid: os.readlink(f"/proc/{pid}/exe"),
    "threads": lambda pid: read(f"/proc/{pid}/task/{pid}/maps"),
    "namespaces": lambda pid: os.readlink(f"/proc/{pid}/ns/net"),
    "read memory": read_memory,
    "write memory": write_memory,
    "process_vm_readv": vm_read,
    "take descriptor": take_descriptor,
    "ptrace": trace,
}


def attack(pid):
    told = {}
    for name, attempt in ATTACKS.items():
        try:
            attempt(pid)
            told[name] = "reached"
        except OSError as error:
            told[name] = errno.errorcode[error.errno]
    return told


if __name__ == "__main__":
    signal.alarm(30)
    print(json.dumps([attack(int(pid)) for pid in sys.argv[1:]]))
