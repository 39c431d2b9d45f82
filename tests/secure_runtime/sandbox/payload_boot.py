"""The worker's boot with another main: runs the source text that the plan carries as `payload`, inside the sandbox.

Started as `python -I -S -B payload_boot.py FD`, like the real one; only tests start it.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

sys.path.append(os.path.abspath(__file__).rsplit(os.sep, 4)[0])
from secure_runtime.worker.boot import Main, boot

sys.path.pop()


def _payload() -> Main:
    def run(sock: socket.socket, plan: dict[str, Any], report: Any) -> int:
        names: dict[str, Any] = {"sock": sock, "plan": plan, "report": report}
        exec(compile(plan["payload"], "payload", "exec"), names)
        return int(names.get("code", 0))

    return run


if __name__ == "__main__":
    code = boot(int(sys.argv[1]), _payload)
    os._exit(code)
