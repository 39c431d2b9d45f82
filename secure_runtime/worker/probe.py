"""A worker without a model: closes and seals the sandbox like the real one, says what it reached, and ends.

Started like boot.py, by `sealgate doctor`, under the profile that requires nothing, so that the report is whole on any
machine. Says it as `u32 length | JSON`; a boot that fails is told as boot.py tells it.

Trusts: the host. Never: loads a model, makes a key, or serves.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

_MAX_REPORT = 64 * 1024
_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def run(sock: socket.socket, plan: dict[str, Any], report: Any) -> int:
    """Seal, probe, tell; with a zygote that tries its own sandbox and that of a child, where the plan asks for it."""
    from secure_runtime.worker import sandbox
    from secure_runtime.worker.sandbox.report import LAYERS, REQUIRED

    channel, zygote = _tried_zygote() if plan.get("single_use") else (None, None)
    sandbox.seal(report, zygote=zygote)
    told = {
        "layers": {name: report.layers[name] for name in LAYERS if name in report.layers},
        "probes": report.probes,
        "meanings": LAYERS,
        "missing": {profile: report.missing(profile=profile) for profile in REQUIRED},
    }
    data = json.dumps(told).encode()
    sock.sendall(len(data).to_bytes(4, "big") + data)
    del channel  # it was open until here, as a worker's is
    return 0


def _tried_zygote() -> tuple[socket.socket, dict[str, dict[str, str]]]:
    """The channel to a zygote, which has ended, and what it found."""
    from secure_runtime.worker.sandbox import offspring

    probe = os.getpid()
    if os.fork() == 0:
        try:
            offspring.become_zygote(probe).sendall(json.dumps(offspring.try_out()).encode())
        finally:
            os._exit(0)
    channel = offspring.keep_workers_end()
    told = channel.recv(_MAX_REPORT)
    if not told:
        raise OSError("the process that makes single-use processes did not start")
    return channel, json.loads(told)


if __name__ == "__main__":
    sys.path.append(_PARENT)
    from secure_runtime.worker.boot import boot

    sys.path.pop()
    os._exit(boot(int(sys.argv[1]), lambda: run))
