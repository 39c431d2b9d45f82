"""AWS KMS as moto plays it, over TLS. Run as a program, in a process of its own: arguments are the certificate and key.

Prints its port, then serves until its input ends. moto encrypts for real, checks the encryption context, and knows
nothing of the product.
"""

from __future__ import annotations

import sys
import threading


def main(certificate: str, key: str) -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, application, threaded=True, ssl_context=(certificate, key))  # type: ignore[arg-type]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
