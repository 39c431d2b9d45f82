"""A running deployment has its log cosigned by a witness over HTTPS; an auditor verifies that offline."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gateway import pki
from sealgate.ambient import now_us, random_bytes
from sealgate.witness.folder import WitnessFolder, add_log, make_folder, open_folder
from sealgate.witness.server import WitnessServer, server_tls
from tests.live import MODEL, Live, run_sealgate, wait_until


def witness_beside(live: Live, folder: Path) -> tuple[WitnessFolder, WitnessServer]:
    """A witness of the deployment's log, with TLS under an authority of its own, and the settings that name it."""
    make_folder(folder, name="compliance.example/witness")
    add_log(folder, tomllib.loads(live.trust.read_text())["log_keys"][0])
    witness = open_folder(folder)
    authority = pki.make_authority("compliance", now_us=now_us(), entropy=random_bytes)
    certificate, key = pki.make_server(authority, ("localhost", "127.0.0.1"), now_us=now_us(), entropy=random_bytes)
    (folder / "tls.pem").write_bytes(pki.certificate_pem(certificate))
    (folder / "tls.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (live.root / "log" / "witness-ca.pem").write_bytes(pki.certificate_pem(authority.certificate))
    tls = server_tls(folder / "tls.pem", folder / "tls.key")
    server = WitnessServer(("127.0.0.1", 0), witness.witness(), tls=tls, tell=print)
    url = f"https://127.0.0.1:{server.server_port}"
    lines = [f"witness w{n} {one.public.vkey} {url}" for n, one in enumerate(witness.cosigners)]
    (live.root / "log" / "witness.policy").write_text("\n".join([*lines, "group both all w0 w1", "quorum both", ""]))
    with (live.root / "deployment.toml").open("a") as settings:
        settings.write('\n[log]\nwitness_policy = "log/witness.policy"\nwitness_ca = "log/witness-ca.pem"\n')
        settings.write("witness_every_s = 1\n")
    return witness, server


def test_what_the_host_had_cosigned_is_what_an_auditor_verifies(fresh: Callable[[], Live], tmp_path: Path) -> None:
    live = fresh()
    _, server = witness_beside(live, tmp_path / "witness")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        live.start()
        live.ready()
        with live.session() as session:
            receipt = session.infer(MODEL, live.rows[:1]).receipt
        clients = live.root / "pki" / "clients"
        connection = ["--trust", live.trust, "--client-cert", clients / "auditor.pem"]
        connection += ["--client-key", clients / "auditor.key"]

        def cosigned() -> bool:
            done = run_sealgate("audit", "checkpoint", "--cosigned", "--json", *connection, check=False)
            return done.returncode == 0 and json.loads(done.stdout)["size"] > receipt.index

        wait_until(cosigned, within_s=60, what="a cosigned checkpoint over the request")
        bundle = tmp_path / "evidence.zip"
        run_sealgate("audit", "export", "--cosigned", "--out", bundle, *connection)
        assert "no trouble is known" in run_sealgate("doctor", live.root, check=False).stdout
    finally:
        complaints = live.said("runtime")  # while the witness was there
        server.shutdown()
        thread.join()
        server.server_close()
        for connection in list(server._open):  # and those that it keeps open
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
    policy = live.root / "log" / "witness.policy"
    said = run_sealgate("audit", "verify", bundle, "--trust", live.trust, "--witness-policy", policy, "--json")
    report = json.loads(said.stdout)
    assert report["ok"], report
    assert report["steps"][1]["detail"].endswith("Ed25519 and ML-DSA-44")
    assert (report["steps"][-1]["status"], report["limits"]) == ("ok", [])
    assert "compliance.example/witness" in report["steps"][-1]["detail"]
    assert "witness" not in complaints

    with live.session() as session:  # now the witness is away, and there is something new to cosign
        session.infer(MODEL, live.rows[:1])

    def told() -> object:
        with live.http() as client:
            return client.get(f"{live.url}/health/ready").json().get("witnesses")

    trouble = "compliance.example/witness: it cannot be reached"
    wait_until(lambda: told() == trouble, within_s=60, what="readiness that names the witness")
    done = run_sealgate("doctor", live.root, check=False)
    assert done.returncode == 1
    assert trouble in done.stdout
