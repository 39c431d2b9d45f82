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

_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def run(sock: socket.socket, _plan: dict[str, Any], report: Any) -> int:
    """Seal, probe, tell."""
    from secure_runtime.worker import sandbox
    from secure_runtime.worker.sandbox.report import LAYERS, REQUIRED

    sandbox.seal(report)
    told = {
        "layers": {name: report.layers[name] for name in LAYERS if name in report.layers},
        "probes": report.probes,
        "meanings": LAYERS,
        "missing": {profile: report.missing(profile=profile) for profile in REQUIRED},
    }
    data = json.dumps(told).encode()
    sock.sendall(len(data).to_bytes(4, "big") + data)
    return 0


if __name__ == "__main__":
    sys.path.append(_PARENT)
    from secure_runtime.worker.boot import boot

    sys.path.pop()
    os._exit(boot(int(sys.argv[1]), lambda: run))
