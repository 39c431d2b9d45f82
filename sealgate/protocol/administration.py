"""Frames of the administration socket: what an operator's command tells the runtime host, and what it answers.

The same framing as `sealgate.protocol.frames`. One question on a connection, one answer: `Recorded` once the record is
durable (an answer that says more is one of its own kind), or `Refused` with a code of REFUSALS. Who asks is not in a
frame: the host reads it off the socket.

Pure: parsing and building only. Trusts nothing: the types bound every field. Never: carries an identifier of a token or
a key (a revoked credential is named by the SHA-256 of its identifier), or of a person but in what concerns that person:
a report, an erasure, a hold, a revocation. There it ends at the host, which puts a pseudonym on record.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from sealgate.limits import MAX_ADMIN_NOTE, MAX_BUNDLES, MAX_NAME, MAX_SUBJECT_NAME
from sealgate.protocol.frames import Frame, PublishedWorker, Recorded, Refused

Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""SHA-256, lowercase hex."""

Note = Annotated[str, msgspec.Meta(pattern=rf"^[^\x00-\x1f\x7f-\x9f]{{0,{MAX_ADMIN_NOTE}}}\Z")]
"""Words of an operator, for the record: one line."""

_Tenant = Annotated[str, msgspec.Meta(pattern=rf"^([A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}})?\Z")]
Subject = Annotated[str, msgspec.Meta(pattern=rf"^[^\x00-\x1f\x7f-\x9f]{{1,{MAX_SUBJECT_NAME}}}\Z")]
"""What a token or a certificate mapping calls its caller."""

HoldName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}\Z")]
"""What a hold is called on record, and when it is released. It should name a case, never a person."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]

REFUSALS: dict[str, str] = {
    "unavailable": "the audit log takes no records now, so nothing can be put on record",
    "policy-missing": "policy-history has no such version that is whole; apply it again",
    "policy-unsound": "the runtime host could not load that version; run: sealgate policy check",
    "policy-not-kept": "policy-history cannot be written by the runtime host's user",
    "subject-unknown": "the log knows nobody of this name in this tenant, or the name was erased",
    "legal-hold": "a legal hold keeps this name; that it was to be erased is on record",
    "hold-exists": "a hold of this name is in force",
    "hold-unknown": "no hold of this name is in force",
    "too-many-holds": "too many holds are in force",
    "pruning-under-way": "records are being deleted this very moment; try again",
    "names-person": "the note, or the hold's name, holds the person's name: a record of it could never be erased",
    "retention-unsound": "the runtime host cannot read retention.toml; run: sealgate privacy retention STATE",
    "switch-under-way": "models are being changed this very moment; try again",
    "switch-failed": "a new worker did not come to serve; the old ones go on",
    "bundle-unknown": "there is no such bundle",
    "bundle-refused": "a bundle that was asked for, or is served now, is refused",
    "version-not-loaded": "a version that deployment.toml names would not be loaded",
    "settings-unsound": "deployment.toml cannot be read",
    "too-many-workers": "there are more models than workers may be",
    "memory-short": "the machine has not the memory for new workers beside the old ones",
    "choice-not-kept": "the runtime host's user cannot write which models are unloaded",
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

    `fingerprint` is the SHA-256 of what identifies it: a token's `jti`, a certificate's DER form. Of a caller `subject`
    and `tenant` are told, and no hash: names are few, and whoever tries them would find the one that fits.
    """

    what: Literal["token", "subject", "certificate"]
    fingerprint: Digest | Literal[""] = ""
    tenant: _Tenant = ""
    subject: Subject | Literal[""] = ""
    restored: bool = False
    note: Note = ""


OVER = "no-longer-needed"
"""The ground where the last record about somebody was pruned."""

Ground: TypeAlias = Literal["no-longer-needed", "consent-withdrawn", "objection", "unlawful", "legal-duty", "child"]


class AskAboutSubject(Frame, frozen=True, kw_only=True, tag="ask-about-subject"):
    """Which pseudonym does a person have? Answered by SubjectFound once the question is on record."""

    tenant: _Tenant
    subject: Subject
    note: Note = ""


class EraseSubject(Frame, frozen=True, kw_only=True, tag="erase-subject"):
    """Delete the name of a person. Answered by SubjectErased."""

    tenant: _Tenant
    subject: Subject
    ground: Ground
    note: Note = ""


class PlaceHold(Frame, frozen=True, kw_only=True, tag="place-hold"):
    """Keep what is recorded of a person, of a tenant ("" for `subject`), or everything ("" for both)."""

    name: HoldName
    tenant: _Tenant = ""
    subject: Subject | Literal[""] = ""
    note: Note = ""


class ReleaseHold(Frame, frozen=True, kw_only=True, tag="release-hold"):
    """Lift a hold."""

    name: HoldName
    note: Note = ""


class PruneRecords(Frame, frozen=True, kw_only=True, tag="prune-records"):
    """Announce, and where nobody else does it delete, records whose time is over, from an index on. Answered by
    RecordsPruned, again and again until its `next` is -1."""

    start: Annotated[int, msgspec.Meta(ge=0, lt=2**53)] = 0
    note: Note = ""


class ForgetUnused(Frame, frozen=True, kw_only=True, tag="forget-unused"):
    """Delete the names of people of whom no record is left, from a pseudonym on. Answered by UnusedForgotten."""

    after: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{32})?\Z")] = ""
    note: Note = ""


_Place = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f/]{1,255}(/[^\x00-\x1f\x7f-\x9f/]{1,255})?\Z")]


class ChangeModels(Frame, frozen=True, kw_only=True, tag="change-models"):
    """Load, unload or renew bundles, by new workers beside the old ones; or, "route": read anew which versions answer
    and how many requests may be in flight, which needs no new worker. Answered by ModelsTold.

    `places` are "NAME" (every version there) or "NAME/VERSION" below the folder of models; none for reload and route.
    """

    what: Literal["load", "unload", "reload", "route"]
    places: Annotated[tuple[_Place, ...], msgspec.Meta(max_length=MAX_BUNDLES)] = ()
    note: Note = ""


class AskModels(Frame, frozen=True, kw_only=True, tag="ask-models"):
    """What is served, by which workers? Answered by ModelsTold; not put on record: it tells no secret."""


class ToldModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One bundle. `state` is "loaded", "unloaded" by an operator, "new" (not asked for yet), or "refused" with a
    code."""

    place: str
    state: Literal["loaded", "unloaded", "new", "refused"]
    reason: str = ""
    name: str = ""
    version: str = ""
    answers: str = ""  # "default", "canary, 10 %", or nothing
    model_digest: str = ""
    certificate_digest: str = ""
    epsilon_micro: int = 0
    memory_bytes: int = 0


class ModelsTold(Frame, frozen=True, kw_only=True, tag="models-told"):
    """How it stands after what was asked. `code` is "" if it was done, else one of REFUSALS, and `why` one line of
    it."""

    code: str = ""
    why: str = ""
    record: int = -1
    models: tuple[ToldModel, ...] = ()
    workers: tuple[PublishedWorker, ...] = ()
    draining: int = 0


class SubjectFound(Frame, frozen=True, kw_only=True, tag="subject-found"):
    """The person's pseudonym; the question is on record."""

    actor: str
    record: int


class SubjectErased(Frame, frozen=True, kw_only=True, tag="subject-erased"):
    """The name is deleted, and that is on record. `scrubbed`: no file has its key, nor, in SQLite, the row."""

    record: int
    receipt: bytes
    scrubbed: bool


class RecordsPruned(Frame, frozen=True, kw_only=True, tag="records-pruned"):
    """What one record announced: where in the database (as indices, see sealgate.transparency.pruned, but counted
    through all shards), "" for none, and whether the host has deleted them already. `next` is where to go on, -1 at the
    end."""

    indices: str = ""
    record: int = -1
    deleted: bool = False
    next: int = -1


class UnusedForgotten(Frame, frozen=True, kw_only=True, tag="unused-forgotten"):
    """How many names were deleted. `next` is where to go on, "" at the end."""

    count: int
    next: str


AdminToHost: TypeAlias = (
    ApplyPolicy
    | CredentialRevoked
    | AskAboutSubject
    | EraseSubject
    | PlaceHold
    | ReleaseHold
    | PruneRecords
    | ForgetUnused
    | ChangeModels
    | AskModels
)
HostToAdmin: TypeAlias = (
    Recorded | Refused | SubjectFound | SubjectErased | RecordsPruned | UnusedForgotten | ModelsTold
)
