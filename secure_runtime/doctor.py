"""What isolation this machine allows a worker: a real sandbox is closed, sealed and probed, and says what it reached.

Used by `sealgate doctor` and, for choosing a profile, by whoever makes a deployment. Never imports torch.
Trusts: the probe worker, which runs the worker's own sandbox code. Never: changes anything on the machine.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace

import msgspec

from sealgate.errors import DecodeError
from sealgate.protocol.frames import BootFailed, BootPlan, FrameReader, Layer, RuntimeState, WorkerToHost
from sealgate.terminal import printable, printable_json, render_pairs, render_table
from secure_runtime.errors import SandboxRefused
from secure_runtime.host.spawn import python_paths, spawn_probe
from secure_runtime.limits import MAX_PROBE_REPORT, PROBE_TIMEOUT_S, WORKER_UID
from secure_runtime.machine import gpu_nodes, machine_facts
from secure_runtime.running import as_pairs, isolation, troubles

_NAMESPACES = (
    "let user namespaces be made (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns; in a "
    "container a seccomp profile that allows unshare and mount), or use the profile 'container'"
)
_SINGLE_USE = ("seccomp-zygote", "seccomp-once")
_PROFILES = {
    "strict": "strict: every layer holds",
    "container": "container: no namespaces, but Landlock, seccomp and the rest hold",
    "dev": 'dev: no profile that isolates holds; a runtime starts only with profile = "dev" and says it is degraded',
}
_HINTS = {
    "other-uid": "give the container CAP_SETUID and CAP_SETGID, or start as an ordinary user",
    "private-root": "see the mount namespace; in an initramfs pivot_root cannot work",
    "landlock-files": "boot a kernel from 5.13 on with Landlock among its security modules (lsm=landlock,...)",
    "landlock-tcp": "a kernel from 6.7 on",
    "landlock-scopes": "a kernel from 6.12 on",
    "seccomp-load": "x86_64 or aarch64, and a kernel with CONFIG_SECCOMP_FILTER",
    "seccomp-seal": "x86_64 or aarch64, and a kernel with CONFIG_SECCOMP_FILTER",
    "resource-limits": "raise the hard limits of the service (systemd: Limit...)",
}


class _Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the probe worker says."""

    layers: dict[str, Layer]
    probes: dict[str, Layer]
    meanings: dict[str, str]
    missing: dict[str, list[str]]


@dataclass(frozen=True)
class Diagnosis:
    """The state of this machine for this user. `missing` lists, per profile, what it would lack."""

    layers: dict[str, Layer]
    probes: dict[str, Layer]
    meanings: dict[str, str]
    missing: dict[str, list[str]]

    @property
    def profile(self) -> str:
        """The strictest profile that holds here; "dev" when none of the others does."""
        return next(name for name in ("strict", "container", "dev") if not self.missing[name])

    def hints(self) -> dict[str, str]:
        """What to do about each layer that the strict profile lacks."""
        return {
            name: _HINTS.get(name, _NAMESPACES if name.endswith("-namespace") else "report this, please")
            for name in self.missing["strict"]
        }


def examine() -> Diagnosis:
    """Close a sandbox in a fresh process and read its report; raises SandboxRefused when there is none.

    Call from the main thread.
    """
    told = _probe(single_use=False)
    return Diagnosis(told.layers, told.probes, told.meanings, told.missing)


def with_single_use(diagnosis: Diagnosis) -> Diagnosis:
    """The same, with what a second process found of single-use processes. What is missing there is not missing for a
    profile: a runtime offers them only where its settings say so. Call from the main thread."""
    try:
        layers = _probe(single_use=True).layers
        found = {name: layers[name] for name in _SINGLE_USE}
    except SandboxRefused as error:
        found = dict.fromkeys(_SINGLE_USE, Layer(state="failed", detail=str(error)))
    return replace(diagnosis, layers=diagnosis.layers | found)


def _probe(*, single_use: bool) -> _Told:
    plan = BootPlan(
        profile="dev",
        audience="doctor",
        models_dir="",
        publishers_file="",
        sys_path=python_paths(),
        uid=WORKER_UID,
        gid=WORKER_UID,
        torch_threads=1,
        memory_limit_bytes=1 << 30,
        gpus=() if single_use else gpu_nodes("auto"),  # a fork has no GPU
        single_use=single_use,
    )
    try:
        probe = spawn_probe(plan)
    except OSError as error:
        raise SandboxRefused(f"no process can be started: {error.strerror}") from error
    try:
        return _parse(_read_all(probe.sock))
    finally:
        probe.sock.close()
        probe.kill()
        probe.wait()


def best_profile() -> str:
    """ "strict", "container" or "dev": the strictest profile that a worker of this user reaches on this machine."""
    try:
        return examine().profile
    except SandboxRefused:
        return "dev"


def _read_all(sock: socket.socket) -> bytes:
    sock.settimeout(PROBE_TIMEOUT_S)
    data = b""
    try:
        while len(data) <= MAX_PROBE_REPORT:
            more = sock.recv(65536)
            if not more:
                break
            data += more
    except ConnectionResetError:
        pass  # it ended before it had read its plan; what it said, if anything, is in `data`
    except TimeoutError as error:
        raise SandboxRefused("the probe worker did not answer", code="probe-silent") from error
    return data


def _parse(data: bytes) -> _Told:
    try:
        return msgspec.json.decode(data[4:], type=_Told)
    except msgspec.DecodeError:
        raise SandboxRefused(_refusal_in(data), code="probe-failed") from None


def _refusal_in(data: bytes) -> str:
    """A probe that could not start says so like a worker does."""
    try:
        frames = FrameReader(WorkerToHost).feed(data)
    except DecodeError:
        frames = []
    for frame, _ in frames:
        if isinstance(frame, BootFailed):
            return frame.detail
    return "the probe worker ended without a word (a seccomp kill, or the interpreter could not start)"


def _surroundings() -> dict[str, str]:
    return {
        "user": "root" if os.geteuid() == 0 else f"uid {os.geteuid()}",
        "kernel": f"{os.uname().release} {os.uname().machine}",
        **machine_facts(),
    }


def as_json(diagnosis: Diagnosis, state: RuntimeState | None = None) -> str:
    """For machines: one object. `state` is what a runtime host that runs says of itself."""
    told: dict[str, object] = {
        "profile": diagnosis.profile,
        "missing": diagnosis.missing,
        "layers": diagnosis.layers,
        "probes": diagnosis.probes,
        "hints": diagnosis.hints(),
        "surroundings": _surroundings(),
    }
    if state is not None:
        told["runtime"] = {
            "ready": state.ready,
            "detail": state.detail,
            "log": state.log,
            "log_state": state.log_state,
            "witnesses": state.witnesses,
            "troubles": troubles(state),
            "workers": [
                {
                    "instance": one.instance,
                    "device": one.device,
                    "models": one.models,
                    "layers": one.layers,
                    "host_layers": one.host_layers,
                    "got_through": one.got_through,
                }
                for one in state.workers
            ],
        }
    return printable_json(msgspec.json.format(msgspec.json.encode(told)).decode())


def as_text(diagnosis: Diagnosis, state: RuntimeState | None = None) -> str:
    """For people: what holds here, what to do about the rest; and what holds in the deployment that runs."""
    layers = [
        (name, layer.state, diagnosis.meanings.get(name, ""), layer.detail) for name, layer in diagnosis.layers.items()
    ]
    through = [(name, probe.detail) for name, probe in diagnosis.probes.items() if probe.state == "failed"]
    denied = sum(probe.state == "on" for probe in diagnosis.probes.values())
    parts = [
        render_pairs([("profile", _PROFILES[diagnosis.profile]), *_surroundings().items()]),
        "What this machine offers, as a process found that ended with this question:",
        render_table(("layer", "state", "meaning", "detail"), layers),
        f"{denied} of {len(diagnosis.probes)} forbidden attempts were tried and denied after the seal.",
    ]
    if through:
        parts.append(render_table(("attempt that got through", "outcome"), through))
    if diagnosis.hints():
        parts.append(render_table(("missing for 'strict'", "what to do"), list(diagnosis.hints().items())))
    if state is not None:
        parts += ["What the deployment says that runs:", render_pairs(as_pairs(state))]
        for number, one in enumerate(state.workers, 1):
            escaped = f" These attempts got through: {' '.join(one.got_through)}." if one.got_through else ""
            parts.append(printable(f"What isolates worker {number} ({one.instance[:16]}), as it runs:{escaped}"))
            parts.append(render_table(("layer", "state", "detail", "the host reads"), isolation(one)))
    return "\n\n".join(parts)
