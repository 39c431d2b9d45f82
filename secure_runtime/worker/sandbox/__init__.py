"""The layers between the worker and the rest of the machine. Standard library only, and ctypes.

    enter   every layer that must close before third-party code is imported, up to seccomp's stage "load"
    seal    after the models are loaded: seccomp's stage "seal" on every thread, then the denial probes
    (offspring.py: the zygote and its single-use processes, where the plan asks for them;
    gpus.py: what a worker may do beyond that where the plan shows it a GPU)

The order in `enter` matters, and each function says why it stands where it does. Three situations:

    root with CAP_SYS_ADMIN   namespaces and the private root are made with real privilege (bundles may be root's
                              alone), then the user is changed, then the user namespace is entered
    root without it           the user is changed first; from there on like an ordinary user
    ordinary user             the user namespace comes first and lends the privilege for the others; where the
                              machine forbids it, Landlock and seccomp still close

Trusts: the plan, which the host sent over the inherited socket. Never: continues without a layer that the profile
requires (`LayerMissing`, from `seal` as `SandboxRefused`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from secure_runtime.worker.sandbox import bpf, filters, gpus, identity, landlock, namespaces, offspring, probes, root
from secure_runtime.worker.sandbox.filters import CHANNEL, SOCKET
from secure_runtime.worker.sandbox.report import REQUIRED, LayerMissing, Report
from secure_runtime.worker.sandbox.syscalls import MACHINE

__all__ = ["CHANNEL", "SOCKET", "LayerMissing", "Report", "enter", "seal"]

_NO_ZYGOTE = {"state": "not-needed", "detail": "no single-use processes are offered"}


def enter(plan: Mapping[str, Any]) -> Report:
    """Close every layer of the first stage around this single-threaded process; raises LayerMissing.

    May fork: what returns is then the first process of its own namespace, and the caller's process waits for it.
    """
    report = Report(plan["profile"])
    if report.profile not in REQUIRED:
        raise LayerMissing(f"there is no profile '{report.profile}'")
    view = root.view_of(plan)
    identity.close_descriptors(report, first=SOCKET + 1)
    forks = bool(plan.get("single_use"))
    if forks:
        offspring.make_channel()
    identity.die_with_parent(report)
    _leave_the_machine(plan, view, report)
    os.chdir("/")
    os.umask(0o077)
    _require_readable(view)
    identity.limit_resources(plan["memory_limit_bytes"], report, gpus=bool(view.devices))
    identity.drop_capabilities(report)
    identity.forbid_new_privileges(report)
    identity.forbid_dumps(report)
    landlock.restrict(view.readable, report, listable=view.listed, writable=view.writable)
    gpus.note(view.devices, report)
    report.set("write-xor-execute", "disabled", "torch compiles kernels while it runs (oneDNN)")
    _filter("seccomp-load", filters.load_rules(os.getpid(), forks=forks, gpus=bool(view.devices)), report)
    if forks and report.is_on("seccomp-load"):
        report.set("seccomp-load", "on", "but fork: the zygote of single-use processes is made after it")
    report.require(before_seal=True)
    return report


def _leave_the_machine(plan: Mapping[str, Any], view: root.View, report: Report) -> None:
    """User, namespaces and file system, in the order that the situation demands."""
    uid, gid = plan["uid"], plan["gid"]
    situation = identity.Situation.now()
    if not situation.root:
        report.set("other-uid", "not-needed", "not started by root")
    try:
        proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise LayerMissing("/proc cannot be opened; the sandbox needs it until its file system closes") from error
    owner_map = root.owner_map(view, uid=uid, gid=gid) if situation.administrator and uid else None
    if situation.root and not situation.administrator:
        identity.change_user(uid, gid, report)
    if situation.administrator or namespaces.enter_user_namespace(report, proc=proc):
        namespaces.leave_shared_namespaces(report)
        namespaces.become_first_process(report, uid=uid, gid=gid)
        root.build(view, report, owner_map=owner_map)
    else:
        namespaces.note_unreachable(report)
    if situation.administrator:
        identity.change_user(uid, gid, report)
        namespaces.enter_user_namespace(report, proc=proc)
    for descriptor in (proc, owner_map):
        if descriptor is not None:
            os.close(descriptor)


def _require_readable(view: root.View) -> None:
    """Say now, in words, what would otherwise end as a missing module or an empty list of models."""
    for path in (*view.code, *view.data):
        if not os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
            raise LayerMissing(f"the worker's user (uid {os.geteuid()}) may not read {path}: let it, or move it")
    for path in view.devices:
        if not os.access(path, os.R_OK | os.W_OK):
            raise LayerMissing(
                f"the worker's user (uid {os.geteuid()}) may not use {path}: let it read and write there"
            )


def _filter(layer: str, rules: tuple[bpf.Rule, ...], report: Report) -> None:
    if not filters.known_machine():
        report.set(layer, "off", f"no table of system calls for {MACHINE}")
        return
    try:
        bpf.install(filters.program_for(rules, machine=MACHINE))
    except OSError as error:
        report.failed(layer, error)
        return
    report.set(layer, "on")


def seal(report: Report, *, zygote: Mapping[str, Mapping[str, str]] | None = None) -> Report:
    """Close the second stage around every thread, probe it, and hold the result against the profile.

    Raises SandboxRefused. From here on nothing can be opened or imported, and the only descriptors are /dev/null and
    the socket to the host; where the plan shows a GPU, also those of its driver (gpus.py). `zygote` is what the zygote
    found of itself and of its children, where there is one; its socket is then kept as well.
    """
    from secure_runtime.errors import SandboxRefused  # not at the top: `enter` runs before sealgate may be imported

    last = SOCKET if zygote is None else CHANNEL
    if report.gpus:
        gpus.close_descriptors(report, first=last + 1)
    else:
        identity.close_descriptors(report, first=last + 1)
        identity.forbid_new_descriptors(first_free=last + 1)
    rules = filters.seal_rules(os.getpid(), channel=zygote is not None, gpus=bool(report.gpus))
    _filter("seccomp-seal", rules, report)
    for layer in ("seccomp-zygote", "seccomp-once"):
        found = _NO_ZYGOTE if zygote is None else zygote[layer]
        report.set(layer, found["state"], found["detail"])
    report.sealed = True
    probes.run(report)
    try:
        report.require()
    except LayerMissing as error:
        raise SandboxRefused(str(error)) from error
    return report
