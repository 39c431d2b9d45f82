"""Run as root by test_split_users.py: a deployment, `deploy/split-users.sh`, and what each user can then do.

Prints one JSON object. Everything is imported before any process changes its user, because the interpreter itself may
lie where other users cannot read.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from audit.log import AuditLog
from audit.query import AuditReader, RecordFilter
from gateway.app import make_gate
from gateway.provisioning import provision
from gateway.telemetry import Telemetry
from gateway.tls_identity import make_tls_context
from policy.history import PolicyHistory
from sealgate.deployment import open_deployment
from sealgate.local_socket import bind_local
from sealgate.transparency.record import Record
from secure_runtime.host.key_files import load_ed25519, load_note_signer, load_subjects_key
from secure_runtime.host.policies import open_policy

RUNTIME, GATEWAY, LINK = 52001, 52002, 52003
SECRETS = (
    "evidence/operator.key",
    "log/log.key",
    "log/mldsa.key",
    "log/subjects.key",
    "log/people.sqlite",
    "publisher.key",
    "pki/server.key",
    "pki/ca.key",
    "tokens/issuer.key",
)


def as_user(uid: int, deed: Callable[[], None]) -> int:
    """Fork, become `uid` with the group LINK, do it; returns the process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([LINK])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            deed()
            code = 0
        finally:
            os._exit(code)
    return child


def readable(path: Path) -> bool:
    try:
        (os.listdir if path.is_dir() else Path.read_bytes)(path)
    except PermissionError:
        return False
    return True


def main(base: Path) -> None:
    script = Path(__file__).parents[2] / "deploy" / "split-users.sh"
    state = base / "state"
    provision(state, audience="localhost:18443", origin="localhost/split", profile="strict")
    (state / "models" / "a-model").mkdir(mode=0o700)
    names = {"RUNTIME_USER": str(RUNTIME), "GATEWAY_USER": str(GATEWAY), "LINK_GROUP": str(LINK)}
    subprocess.run(["sh", script, state], check=True, env={**os.environ, **names})
    ready_in, ready_out = os.pipe()
    stop_in, stop_out = os.pipe()
    told_in, told_out = os.pipe()

    def runtime() -> None:
        os.umask(0o027)
        deployment = open_deployment(state)
        origin = deployment.settings.deployment.origin
        history = PolicyHistory(deployment.policy_history)
        with history.hold():
            open_policy(deployment, tell=print)
        load_ed25519(deployment.operator_key)
        with AuditLog.open(
            f"sqlite:///{deployment.database}",
            signer=load_note_signer(deployment.log_key, origin),
            subjects_key=load_subjects_key(deployment.subjects_key),
            person_keys=deployment.person_keys,
            origin=origin,
        ) as log:
            log.append(Record(kind="policy.change")).result()
            listener = bind_local(  # what the setting socket_group does
                deployment.socket, group=str(LINK), setting="runtime.socket_group", service="runtime"
            )
            listener.listen()
            os.write(ready_out, b"r")
            os.read(stop_in, 1)

    def gateway() -> None:
        deployment = open_deployment(state)
        make_tls_context(deployment)
        gate = make_gate(deployment, telemetry=Telemetry())
        reader: AuditReader = gate.audit
        found = {"records": len(reader.records(RecordFilter(), None, 10).records)}
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(os.fspath(deployment.socket))
        history = PolicyHistory(deployment.policy_history)
        in_force = history.current()
        assert in_force is not None
        history.require_whole(in_force.digest)
        found |= {"writes-policy": os.access(history.folder, os.W_OK), "administers": os.access(state / "run", os.W_OK)}
        found |= {name: readable(state / name) for name in (*SECRETS, "models/a-model")}
        found["writes-log"] = os.access(deployment.database, os.W_OK)
        os.write(told_out, json.dumps(found).encode() + b"\n")

    def look() -> None:
        found = {name: readable(state / name) for name in SECRETS}
        os.write(told_out, json.dumps(found).encode() + b"\n")

    running = as_user(RUNTIME, runtime)
    os.close(ready_out)
    if os.read(ready_in, 1) != b"r":
        raise SystemExit("the runtime's user cannot open the log or the socket")
    ends = [os.waitpid(as_user(GATEWAY, gateway), 0)[1], os.waitpid(as_user(RUNTIME, look), 0)[1]]
    os.write(stop_out, b"s")
    ends.append(os.waitpid(running, 0)[1])
    os.close(told_out)
    with os.fdopen(told_in) as told:
        lines = told.read().splitlines()
    print(json.dumps({"ends": ends, "gateway": json.loads(lines[0]), "runtime": json.loads(lines[1])}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
