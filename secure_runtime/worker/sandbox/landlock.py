"""Landlock: what may be opened, for reading only (a GPU's nodes for both); no TCP; no signal or socket to the outside.

Works without any privilege and inside containers. It binds the calling thread and those it starts later, so it is put
on while the process has one thread.

Trusts: the kernel's answer about its ABI version. Never: grants a right to create, remove or execute, or to write to
what is not named as writable.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable

from secure_runtime.worker.sandbox import kernel
from secure_runtime.worker.sandbox.report import Report

_WRITE_FILE, _READ_FILE, _READ_DIR, _DEVICE_IOCTL = 1 << 1, 1 << 2, 1 << 3, 1 << 15
_VERSION_QUERY = 1
_RULE_PATH_BENEATH = 1
_TCP_BIND_AND_CONNECT = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11
_FILE_RIGHTS_SINCE = ((1, 13), (2, 14), (3, 15), (5, 16))  # (ABI, how many rights exist)
_TCP_SINCE, _SCOPES_SINCE = 4, 6


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("directory", ctypes.c_int32))


def abi() -> int:
    """The kernel's Landlock version; 0 where there is none or it is switched off."""
    return max(0, kernel.attempt("landlock_create_ruleset", None, 0, _VERSION_QUERY))


def restrict(readable: Iterable[str], report: Report, *, listable: Iterable[str], writable: Iterable[str] = ()) -> None:
    """Close the three Landlock layers as far as the kernel has them. Directories beneath `listable` may be listed;
    what is beneath `writable` may be written to, and devices there asked by ioctl."""
    version = abi()
    if version == 0:
        for layer in ("landlock-files", "landlock-tcp", "landlock-scopes"):
            report.set(layer, "off", "this kernel has no Landlock, or it is switched off at boot (lsm=)")
        return
    try:
        _apply(version, readable, listable, writable)
    except OSError as error:
        for layer in ("landlock-files", "landlock-tcp", "landlock-scopes"):
            report.failed(layer, error)
        return
    report.set("landlock-files", "on", f"ABI {version}")
    alone = report.is_on("network-namespace")
    _note(report, "landlock-tcp", version, since=_TCP_SINCE, instead=alone, by="the network namespace is empty")
    alone = alone and report.is_on("pid-namespace")
    by = "the network and process-id namespaces hold no one else"
    _note(report, "landlock-scopes", version, since=_SCOPES_SINCE, instead=alone, by=by)


def _note(report: Report, layer: str, version: int, *, since: int, instead: bool, by: str) -> None:
    if version >= since:
        report.set(layer, "on", f"ABI {version}")
    elif instead:
        report.set(layer, "not-needed", f"Landlock ABI {version} lacks it; {by}")
    else:
        report.set(layer, "off", f"needs Landlock ABI {since}, the kernel has {version}")


def _apply(version: int, readable: Iterable[str], listable: Iterable[str], writable: Iterable[str]) -> None:
    rights = max(count for since, count in _FILE_RIGHTS_SINCE if version >= since)
    wanted = _Ruleset(files=(1 << rights) - 1, network=0, scopes=0)
    size = 8
    if version >= _TCP_SINCE:
        wanted.network, size = _TCP_BIND_AND_CONNECT, 16
    if version >= _SCOPES_SINCE:
        wanted.scopes, size = _ABSTRACT_SOCKETS_AND_SIGNALS, 24
    ruleset = kernel.call("landlock_create_ruleset", wanted, size, 0)
    try:
        for path in readable:
            _allow(ruleset, path, _READ_FILE | _READ_DIR)
        for path in listable:
            _allow(ruleset, path, _READ_DIR)
        for path in writable:
            _allow(ruleset, path, (_READ_FILE | _WRITE_FILE | _DEVICE_IOCTL) & wanted.files)
        kernel.call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what cannot be named need not be allowed
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= ~_READ_DIR
        kernel.call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, _PathBeneath(rights, place), 0)
    finally:
        os.close(place)
