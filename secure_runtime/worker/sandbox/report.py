"""What isolates this worker: each layer and each denial probe as data, and which of them a profile requires.

A layer is `on`, `off` (the kernel or the platform does not offer it), `failed` (tried, did not work; a probe: the
attempt got through), `disabled` (left off by decision) or `not-needed` (something stronger stands in its place; the
detail says what).

Trusts: the layers to say what they did; the probes check them from inside, the host from outside. Never: turns a
failure into silence: a layer that a profile requires and that is neither `on` nor `not-needed` stops the boot.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LAYERS = {
    "closed-descriptors": "no descriptor is open but /dev/null and the one socket to the host",
    "parent-death": "the kernel kills the worker when its parent dies",
    "user-namespace": "capabilities, should any come back, count for nothing outside",
    "mount-namespace": "mounts of the machine cannot be reached or changed",
    "network-namespace": "no network device, not even loopback; no abstract socket of the machine",
    "ipc-namespace": "no shared memory or queue of the machine",
    "uts-namespace": "the machine's name can neither be seen nor changed",
    "cgroup-namespace": "the machine's control groups cannot be seen",
    "pid-namespace": "no other process can be named, so none can be signalled or traced",
    "private-root": "the file system holds Python, the libraries and the bundles, read-only; no /proc, no home",
    "other-uid": "a worker started by root runs under another identity",
    "resource-limits": "bounds on memory, descriptors and threads; no core dump, no file can grow",
    "no-capabilities": "no capability in any set",
    "no-new-privileges": "no program that is started can gain a privilege",
    "not-dumpable": "another process of the same user cannot read or trace the worker's memory",
    "landlock-files": "only Python, the libraries and the bundles can be opened, only for reading",
    "landlock-tcp": "no TCP bind or connect",
    "landlock-scopes": "no signal and no abstract socket to the outside",
    "seccomp-load": "while models load: no socket, no write, no exec, no new process",
    "seccomp-seal": "while serving: no open, no stat, no exec, no new process, no socket",
    "seccomp-zygote": "the process that makes single-use processes: it may fork, and else less than while serving",
    "seccomp-once": "a process for one request: no descriptor, no process, no thread, no signal, and a deadline",
    "no-gpu-driver": "no driver of a GPU can be reached",
    "write-xor-execute": "memory is never writable and executable",
}
"""Every layer, in the order in which it closes, with what it means."""

_EVERYWHERE = (
    "closed-descriptors",
    "parent-death",
    "other-uid",
    "resource-limits",
    "no-capabilities",
    "no-new-privileges",
    "not-dumpable",
    "landlock-files",
    "seccomp-load",
    "seccomp-seal",
    "seccomp-zygote",
    "seccomp-once",
)
_LAST = ("seccomp-seal", "seccomp-zygote", "seccomp-once")

REQUIRED = {
    "strict": tuple(name for name in LAYERS if name not in ("no-gpu-driver", "write-xor-execute")),
    "container": _EVERYWHERE,
    "dev": (),
}
"""What must be `on` or `not-needed`. `container` is for machines that forbid namespaces: what it keeps needs no
privilege. Landlock's TCP and scope rules are not required there because seccomp denies socket() from before the first
third-party import, and kernels before 6.7 and 6.12 lack them. `dev` requires nothing and is reported as degraded."""

Entry = dict[str, str]
"""`{"state": ..., "detail": ...}`, the shape of `sealgate.protocol.frames.Layer`."""


class LayerMissing(Exception):
    """A required layer is missing, or a probe got through. The worker must not start. Holds no third-party type:
    it is raised before anything but the standard library may be imported."""

    code = "sandbox-refused"

    def __init__(self, message: str, layers: dict[str, Entry] | None = None) -> None:
        super().__init__(message)
        self.layers = layers or {}


@dataclass
class Report:
    """Filled by `enter` and `seal`; owned by the worker's main thread."""

    profile: str
    layers: dict[str, Entry] = field(default_factory=dict)
    probes: dict[str, Entry] = field(default_factory=dict)
    sealed: bool = False
    gpus: tuple[str, ...] = ()  # device nodes that the worker is shown

    def set(self, layer: str, state: str, detail: str = "") -> None:
        """Note the state of a layer; the last word counts."""
        if layer not in LAYERS:
            raise KeyError(layer)
        self.layers[layer] = {"state": state, "detail": detail}

    def failed(self, layer: str, error: OSError) -> None:
        """Note that a layer was tried and did not work."""
        self.set(layer, "failed", str(error.strerror or error))

    def is_on(self, layer: str) -> bool:
        """Whether the layer closed."""
        return self.layers.get(layer, {}).get("state") == "on"

    def missing(self, *, profile: str | None = None, before_seal: bool = False) -> list[str]:
        """Required layers that do not hold, and probes that got through, by this profile or by another."""
        wanted = profile or self.profile
        required = [name for name in REQUIRED[wanted] if not (before_seal and name in _LAST)]
        lacking = [name for name in required if self.layers.get(name, {}).get("state") not in ("on", "not-needed")]
        if wanted != "dev":
            lacking += [f"probe {name}" for name, entry in self.probes.items() if entry["state"] == "failed"]
        return lacking

    def require(self, *, before_seal: bool = False) -> None:
        """Raise LayerMissing if the profile's demands are not met."""
        lacking = self.missing(before_seal=before_seal)
        if lacking:
            reasons = "; ".join(f"{name}: {self._why(name)}" for name in lacking)
            raise LayerMissing(f"profile '{self.profile}' does not hold on this machine ({reasons})", self.layers)

    def _why(self, name: str) -> str:
        entry = self.layers.get(name) or self.probes.get(name.removeprefix("probe "), {})
        return entry.get("detail") or entry.get("state") or "not reached"
