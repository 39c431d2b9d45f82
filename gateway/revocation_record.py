"""A revocation that is in force already is put on record, and the operator hears whether it was.

Trusts: the administration socket's permissions. Never: fails because there is no record. A host that is away, or that
does not take an operator's words, changes nothing about what is in force; it is said instead.
"""

from __future__ import annotations

import sys

from sealgate.administration import HostAway, HostRefused, tell_host
from sealgate.deployment import Deployment
from sealgate.errors import ConfigurationError
from sealgate.protocol.administration import CredentialRevoked
from sealgate.terminal import printable


def put_on_record(deployment: Deployment, frame: CredentialRevoked) -> None:
    """Tell the runtime host, and print what came of it."""
    try:
        answer = tell_host(deployment, frame)
    except (HostAway, HostRefused, ConfigurationError) as error:
        print(f"in force, but not on record: {printable(str(error))}", file=sys.stderr)
    else:
        print(f"on record as number {answer.record} of {printable(answer.log)}")
