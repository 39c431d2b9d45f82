"""The gateway as shipped, on a loopback port without TLS: for comparing with peers that are measured without it.

`python -m benchmarks.clear_gateway STATE PORT`. Everything else is `gateway.serve`: the same application, protocol
class and event loop. The product has no such switch, and needs none.
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

from gateway.serve import _Opened, listen, server_config


def main() -> None:
    """Serve until SIGTERM."""
    root, port = Path(sys.argv[1]), int(sys.argv[2])
    server = uvicorn.Server(server_config(_Opened(root), None))
    server.run(sockets=[listen("127.0.0.1", port)])


if __name__ == "__main__":
    main()
