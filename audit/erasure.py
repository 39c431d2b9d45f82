"""Erasing a person's name: the row that leads from a pseudonym to a person is deleted, and a record says so.

The leaves stay as they are; they never named anybody. What is left of the person is a random name that nobody can
resolve, and whoever comes again under the old name gets a new pseudonym. A hold over the person, the tenant or the log
blocks it, and that is on record too. Every ground is one of Article 17(1) of the GDPR, as whoever erases states it; the
log does not judge it.

Trusts: its caller for who may erase. Never: puts a name, or anything that a name can be guessed from, on record.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import Connection

from audit.errors import PrivacyRefused
from audit.holds import blocking, holds_in_force, require_known
from audit.limits import PRUNE_SUBJECTS
from audit.subjects import Subjects
from sealgate.protocol.administration import OVER
from sealgate.transparency.record import Record

if TYPE_CHECKING:
    from audit.effects import Effect

COMPLETED, REFUSED = "erasure.completed", "erasure.refused"
HELD = "legal-hold"
LEFT_OUT = "(left out: it held the person's name)"


def erasing(subjects: Subjects, *, tenant: str, subject: str, ground: str) -> Effect:
    """The effect of an erasure: the record becomes `erasure.completed`, or `erasure.refused` if the person is held.
    Fails with PrivacyRefused (`subject-unknown`), and then there is no record."""

    def erase(connection: Connection, draft: Record) -> Record:
        ref = require_known(subjects, connection, tenant=tenant, subject=subject)
        draft = msgspec.structs.replace(draft, tenant=tenant, actor=ref)
        holds = blocking(holds_in_force(connection), tenant=tenant, actor=ref)
        if holds:
            named = ", ".join(hold.name for hold in holds[:8])
            return msgspec.structs.replace(
                draft,
                kind=REFUSED,
                outcome="refused",
                reason=HELD,
                detail=draft.detail | {"ground": ground, "holds": named},
            )
        subjects.delete(connection, ref)
        return msgspec.structs.replace(draft, kind=COMPLETED, outcome="erased", reason=ground)

    return erase


def require_nameless(words: str, *, subject: str) -> None:
    """Raise PrivacyRefused (`names-person`) for words, meant for the record, that hold the person's own name: what is
    on record can never be erased."""
    name = re.escape(subject.casefold())
    if subject and re.search(rf"(?<![^\W_]){name}(?![^\W_])", words.casefold()):
        raise PrivacyRefused("the words for the record name the person", code="names-person")


def nameless(words: str, *, subject: str) -> str:
    """The words, or what stands in their place where `require_nameless` would refuse them: for what must come on record
    whatever was written beside it."""
    try:
        require_nameless(words, subject=subject)
    except PrivacyRefused:
        return LEFT_OUT
    return words


def forgetting(subjects: Subjects, *, after: str, before_us: int) -> Effect:
    """The effect that erases the names of people of whom no record is left, a page at a time.

    Fails with PrivacyRefused (`nothing-due`) if there is nobody on this page.
    """

    def forget(connection: Connection, draft: Record) -> Record:
        refs, _ = subjects.unused(connection, after=after, before_us=before_us, limit=PRUNE_SUBJECTS)
        holds = holds_in_force(connection)
        # Whose tenant is not known without opening the row; a hold on a tenant or the log keeps everybody's name.
        held = {hold.actor for hold in holds}
        refs = [] if "" in held else [ref for ref in refs if ref not in held]
        if not refs:
            raise PrivacyRefused("nobody to forget", code="nothing-due")
        subjects.delete_all(connection, refs)
        return msgspec.structs.replace(
            draft,
            kind=COMPLETED,
            outcome="erased",
            reason=OVER,
            detail=draft.detail | {"count": str(len(refs))},
        )

    return forget
