"""A writer to be killed: begins and ends requests from several threads, prints what was acknowledged, never stops.

crash_writer.py URL PEOPLE      lines: `authorized INDEX ID`, `completed INDEX ID`, `denied INDEX ID`
"""

from __future__ import annotations

import base64
import sys
import threading
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.log import AuditLog
from sealgate.protocol.completion import Statement, sign_completion
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.record import Record

ORIGIN, DIGEST = "example.com/log", "ab" * 32
printing = threading.Lock()


def say(kind: str, index: int, identifier: str) -> None:
    with printing:
        sys.stdout.write(f"{kind} {index} {identifier}\n")
        sys.stdout.flush()


def main(url: str, people: str) -> None:
    log = AuditLog.open(
        url, signer=NoteSigner.from_seed(ORIGIN, b"\x01" * 32), subjects_key=b"\x02" * 32, person_keys=Path(people),
        origin=ORIGIN,
    )  # fmt: skip
    worker = Ed25519PrivateKey.generate()
    instance = f"worker-{log.state.size}"
    key = base64.urlsafe_b64encode(worker.public_key().public_bytes_raw()).rstrip(b"=").decode()
    log.append(Record(kind="worker.start", runtime_instance=instance, detail={"completion_key": key})).result()
    order = threading.Lock()
    seq = 0

    def caller(number: int) -> None:
        nonlocal seq
        while True:
            actor = log.actor("clinic", f"caller {number}")
            common = {"tenant": "clinic", "actor": actor, "model": "m", "purpose": "care", "operation": "infer"}
            begun = log.append(Record(kind="inference.authorized", **common)).result()
            say("authorized", begun.index, begun.record.id)
            with order:
                seq += 1
                statement = Statement(
                    instance=instance, seq=seq, grant=begun.record.id, outcome="completed", reason="", model="m",
                    model_digest=DIGEST, certificate_digest=DIGEST, units=1, req_commit=DIGEST, resp_commit=DIGEST,
                )  # fmt: skip
                fields = msgspec.structs.asdict(statement)
                del fields["instance"], fields["seq"]
                end = Record(
                    kind="inference.completed",
                    runtime_instance=instance,
                    runtime_seq=statement.seq,
                    runtime_sig=sign_completion(statement, worker).signature,
                    **fields,
                )
                future = log.append(end)
            done = future.result()
            say("completed", done.index, done.record.id)
            denied = log.append(Record(kind="inference.denied", **common)).result()
            say("denied", denied.index, denied.record.id)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
