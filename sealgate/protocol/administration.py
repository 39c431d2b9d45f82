"""Frames of the administration socket: what an operator's command tells the runtime host, and what it answers.

The same framing as `sealgate.protocol.frames`. One question on a connection, one answer: `Recorded` once the record is
durable, or `Refused` with a code of REFUSALS. Who asks is not in a frame: the host reads it off the socket.

Pure: parsing and building only. Trusts nothing: the types bound every field. Never: carries an identifier of a person,
a token or a key; a revoked credential is named by the SHA-256 of its identifier.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from sealgate.limits import MAX_ADMIN_NOTE, MAX_NAME
from sealgate.protocol.frames import Frame, Recorded, Refused

Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""SHA-256, lowercase hex."""

Note = Annotated[str, msgspec.Meta(pattern=rf"^[^\x00-\x1f\x7f-\x9f]{{0,{MAX_ADMIN_NOTE}}}\Z")]
"""Words of an operator, for the record: one line."""

_Tenant = Annotated[str, msgspec.Meta(pattern=rf"^([A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}})?\Z")]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]

REFUSALS: dict[str, str] = {
    "unavailable": "the audit log takes no records now, so nothing can be put on record",
    "policy-missing": "policy-history has no such version that is whole; apply it again",
    "policy-unsound": "the runtime host could not load that version; run: sealgate policy check",
    "policy-not-kept": "policy-history cannot be written by the runtime host's user",
    "internal": "the runtime host failed; its own output says where",
}
"""Every `Refused.code` on this socket, with what it means for whoever asked."""


class ApplyPolicy(Frame, frozen=True, kw_only=True, tag="apply-policy"):
    """Put the version `digest` of the policy history in force. It passed `scenarios` scenarios of these files."""

    digest: Digest
    note: Note = ""
    scenarios: _Count = 0
    scenarios_digest: Digest | Literal[""] = ""


class CredentialRevoked(Frame, frozen=True, kw_only=True, tag="credential-revoked"):
    """A credential was revoked or, with `restored`, accepted again; it is in force already, this puts it on record.

    `fingerprint` is the SHA-256 of what identifies it: a token's `jti`, a subject, a certificate's DER form.
    """

    what: Literal["token", "subject", "certificate"]
    fingerprint: Digest
    tenant: _Tenant = ""
    restored: bool = False
    note: Note = ""


AdminToHost: TypeAlias = ApplyPolicy | CredentialRevoked
HostToAdmin: TypeAlias = Recorded | Refused
