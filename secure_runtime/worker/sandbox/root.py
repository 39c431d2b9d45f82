"""The worker's file system: an empty one, into which only what it reads is mounted, read-only.

    code   the standard library, the shared libraries, the packages of plan.sys_path
    data   the bundles and the publishers file: also without the right to map them executable
    random /dev/urandom, which torch opens while it is imported
    gpus   only where the plan shows some: their device nodes, and a /proc of the worker's own process-id namespace

No other device, no /proc, /sys, /etc (but the loader's cache), no home, no temporary directory. Of a source checkout
only the packages that the worker imports are shown, not what else lies beside them.

Trusts: the plan's paths. Never: leaves the old root reachable, or a mount writable.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secure_runtime.worker.sandbox import gpus, kernel
from secure_runtime.worker.sandbox.report import Report

_OWN_PACKAGES = ("sealgate", "secure_runtime")
_OWN_PARENT = os.path.abspath(__file__).rsplit(os.sep, 4)[0]
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib")
_LOADER_CACHE = "/etc/ld.so.cache"
_RANDOM = "/dev/urandom"
_PROC = "/proc"
_MOUNT_POINTS = ("/tmp", "/run", "/mnt", "/var", "/usr")  # noqa: S108  (any directory serves for the moment)
_CODE = kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
_DATA = _CODE | kernel.MOUNT_ATTR_NOEXEC
_DEVICE = kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NOEXEC


@dataclass(frozen=True)
class View:
    """What will be visible. `links` are symbolic links of the machine's root (/lib on a merged /usr); `listed` are
    source checkouts: Python looks for a package by listing the directory that holds it."""

    code: tuple[str, ...]
    data: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    listed: tuple[str, ...]
    devices: tuple[str, ...] = ()  # of GPUs

    @property
    def readable(self) -> tuple[str, ...]:
        """For Landlock."""
        return (*self.code, *self.data, _RANDOM, *(gpus.PROC_READ if self.devices else ()))

    @property
    def writable(self) -> tuple[str, ...]:
        """For Landlock."""
        return (*self.devices, gpus.OWN_THREADS) if self.devices else ()


def view_of(plan: Mapping[str, Any]) -> View:
    """Compute the view, while the machine's file system is still there."""
    links = [(path, os.readlink(path)) for path in _LIBRARIES if os.path.islink(path)]
    code = [path for path in (*_LIBRARIES, _LOADER_CACHE) if os.path.exists(path) and not os.path.islink(path)]
    code += _interpreter_paths()
    listed = []
    for entry in plan["sys_path"]:
        shown = _package_paths(entry)
        code += shown
        if entry not in shown:
            listed.append(entry)
    data = [path for path in (plan["models_dir"], plan["publishers_file"]) if path and os.path.exists(path)]
    shown_data = tuple(dict.fromkeys(os.path.abspath(path) for path in data))
    return View(_outermost(code), shown_data, tuple(links), tuple(listed), gpus.nodes_of(plan))


def _interpreter_paths() -> list[str]:
    """The standard library and every directory that a library of the running process came from."""
    # Without `site`, sys.path is the standard library, and the directory that boot.py found this package in.
    found = [path for path in sys.path if os.path.isabs(path) and path != _OWN_PARENT]
    found.append(os.path.join(sys.base_prefix, "lib"))
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            mapped = {line.split(maxsplit=5)[5].strip() for line in maps if line.count("/") > 0}
    except OSError:
        mapped = set()
    found += [os.path.dirname(path) for path in mapped if ".so" in os.path.basename(path)]
    return [path for path in found if os.path.exists(path)]


def _package_paths(entry: str) -> list[str]:
    """A directory of installed packages whole; of a source checkout only our own packages."""
    try:
        names = os.listdir(entry)
    except OSError:
        return []
    own = [name for name in _OWN_PACKAGES if name in names]
    if own and not any(name.endswith(".dist-info") for name in names):
        return [os.path.join(entry, name) for name in own]
    return [entry]


def _outermost(paths: list[str]) -> tuple[str, ...]:
    """Absolute, without those that lie beneath another."""
    kept: list[str] = []
    for path in sorted({os.path.abspath(path) for path in paths}, key=len):
        if path != "/" and not any(path == outer or path.startswith(outer + "/") for outer in kept):
            kept.append(path)
    return tuple(kept)


def build(view: View, report: Report, *, owner_map: int | None) -> None:
    """Make the view this process's root. `owner_map` is a user namespace (descriptor) through which the data's owner
    appears as the worker's user, so that a worker started by root can read bundles that only root may."""
    if not report.is_on("mount-namespace"):
        report.set("private-root", "failed", "needs the mount namespace")
        return
    trees: list[tuple[str, int]] = []
    try:
        for path in view.code:
            trees.append((path, kernel.clone_tree(path, _CODE)))
        trees += [(path, kernel.clone_tree(path, _DEVICE)) for path in (_RANDOM, *view.devices)]
        unmapped = []
        for path in view.data:
            tree = kernel.clone_tree(path, _DATA)
            trees.append((path, tree))
            if owner_map is not None and not _show_as_owned(tree, owner_map):
                unmapped.append(path)
        _assemble(view, trees)
    except OSError as error:
        report.failed("private-root", error)
        return
    finally:
        for _, tree in trees:
            os.close(tree)
    detail = f"{len(trees)} places, read-only"
    if unmapped:
        detail += "; its file system knows no mapped owners, so the worker's user must be allowed to read the bundles"
    report.set("private-root", "on", detail)


def _show_as_owned(tree: int, owner_map: int) -> bool:
    try:
        kernel.set_mount_attributes(tree, kernel.MOUNT_ATTR_IDMAP, recursive=False, userns=owner_map)
    except OSError:
        return False
    return True


def _assemble(view: View, trees: list[tuple[str, int]]) -> None:
    os.umask(0o022)
    base = next(path for path in _MOUNT_POINTS if os.path.isdir(path))
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount(b"sealgate", os.fsencode(base), b"tmpfs", flags, b"mode=0755,size=1m,nr_inodes=4096")
    for path, tree in trees:
        target = base + path
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            os.makedirs(target, 0o755, exist_ok=True)
        elif not os.path.exists(target):
            os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        kernel.attach_tree(tree, target)
    if view.devices:
        os.makedirs(base + _PROC, 0o755)
        flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
        kernel.mount(b"proc", os.fsencode(base + _PROC), b"proc", flags)
    for path, destination in view.links:
        os.makedirs(os.path.dirname(base + path), 0o755, exist_ok=True)
        os.symlink(destination, base + path)
    os.chdir(base)
    kernel.call("pivot_root", b".", b".")
    kernel.call("umount2", b".", kernel.MNT_DETACH)
    os.chdir("/")
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        kernel.set_mount_attributes(root, _CODE | kernel.MOUNT_ATTR_NOEXEC, recursive=False)
    finally:
        os.close(root)
    os.umask(0o077)


def owner_map(view: View, *, uid: int, gid: int) -> int | None:
    """A user namespace that shows the owner of the first data path as `uid`; None where that cannot be made.

    Needs root: the map of another process's namespace is written from outside. The helper holds the namespace only
    until the descriptor is open.
    """
    if not view.data:
        return None
    owner = os.stat(view.data[0])
    told, tell = os.pipe()
    hold, release = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(release)
        entered = kernel.attempt("unshare", kernel.CLONE_NEWUSER) == 0
        os.write(tell, b"y" if entered else b"n")
        os.read(hold, 1)
        os._exit(0)
    os.close(hold)
    try:
        if os.read(told, 1) != b"y":
            return None
        for name, inside, outside in (("uid_map", owner.st_uid, uid), ("gid_map", owner.st_gid, gid)):
            with open(f"/proc/{helper}/{name}", "w", encoding="ascii") as file:
                file.write(f"{inside} {outside} 1")
        return os.open(f"/proc/{helper}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    finally:
        os.close(release)
        os.close(told)
        os.close(tell)
        os.waitpid(helper, 0)
