"""Has the log's witnesses asked while the runtime host runs, if the deployment names any (`[log] witness_policy`).

Trusts: the deployment's files. Never: stops or delays the host because of a witness; only a setting that cannot be used
keeps it from starting.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from audit.log import AuditLog
from audit.query import AuditReader
from audit.witnessing import WitnessClient, submission_places, witness_tls
from sealgate.deployment import Deployment
from sealgate.transparency.witness_policy import load_witness_policy
from secure_runtime.host.key_files import load_note_signer


@contextlib.contextmanager
def witnessed(deployment: Deployment, log: AuditLog, *, tell: Callable[[str], None]) -> Iterator[Callable[[], str]]:
    """Ask witnesses meanwhile; gives what tells what keeps them from cosigning ("": nothing). Raises ConfigurationError
    for a policy or an authority that cannot be used."""
    path = deployment.witness_policy
    if path is None:
        yield lambda: ""
        return
    policy = load_witness_policy(path)
    tls = witness_tls(deployment.witness_ca)
    submission_places(policy)  # refuse what cannot work before anything is opened
    origin = deployment.settings.deployment.origin
    reader = AuditReader(deployment.log_url, origin=origin)
    client = WitnessClient(
        reader=reader,
        verifier=load_note_signer(deployment.log_key, origin).verifier,
        policy=policy,
        publish=log.publish_cosigned,
        tell=tell,
        every_s=deployment.settings.log.witness_every_s,
        tls=tls,
    )
    client.start()
    try:
        yield client.trouble
    finally:
        client.close()
        reader.close()
