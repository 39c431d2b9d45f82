"""Pseudonyms: a random name per (tenant, subject), and the sealed identity behind it.

Leaves carry only the pseudonym. The row that links it to a person is found by a keyed hash, its content is AES-GCM
sealed under a key that the database does not hold, and deleting it leaves a name that nobody can resolve. A pseudonym
whose row is being deleted is given to nobody: who asks for it waits for the commit, and gets a new one.
Trusts: the subjects key. Never: writes an identity in clear, or a guessable hash of one.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, Engine, delete, insert, select

from audit.errors import LogDamaged, LogUnavailable, QueryRefused
from audit.limits import MAX_CACHED_SUBJECTS, MAX_SUBJECT, RETRY_AFTER_S, SUBJECT_DELETION_WAIT_S
from audit.tables import record as record_table
from audit.tables import subject as table
from sealgate.ambient import Clock, Entropy
from sealgate.errors import ConfigurationError, LogError
from sealgate.protocol.canonical import canonical_json
from sealgate.protocol.secrets import Secret

_LOOKUP = b"sealgate subject lookup v1\x00"
_SEAL = b"sealgate subject seal v1\x00"
_NONCE = 12


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who a pseudonym stands for."""

    tenant: str
    subject: str


@dataclass(frozen=True)
class _Row:
    ref: str
    lookup: bytes
    sealed: bytes
    created_us: int


class Subjects:
    """The pseudonyms of one log. `pseudonym` may be called from any thread; `flush` only by the writer.

    `_cache`, `_unwritten` and `_leaving` are guarded by `_lock`, whose condition is `_settled`. A row stays in
    `_unwritten` until the transaction that carries it is durable, so no second pseudonym can be made for the same
    subject meanwhile; and in `_leaving` until the one that deletes it is.
    """

    def __init__(self, key: Secret | bytes, *, reader: Engine, clock: Clock, entropy: Entropy) -> None:
        raw = key.reveal() if isinstance(key, Secret) else key
        if len(raw) != 32:
            raise ConfigurationError("the subjects key must be 32 bytes")
        self._lookup_key = hmac.digest(raw, _LOOKUP, hashlib.sha256)
        self._seal = AESGCM(hmac.digest(raw, _SEAL, hashlib.sha256))
        self._reader = reader
        self._clock = clock
        self._entropy = entropy
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        self._cache: OrderedDict[bytes, str] = OrderedDict()
        self._unwritten: dict[bytes, _Row] = {}
        self._leaving: set[bytes] = set()

    def pseudonym(self, tenant: str, subject: str) -> str:
        """The stable pseudonym of a subject. A new one is durable no later than the next append. Raises LogDamaged, and
        LogUnavailable if the row is being deleted and that does not come to its end."""
        content, lookup = self._name(tenant, subject)
        with self._settled:
            if not self._settled.wait_for(lambda: lookup not in self._leaving, SUBJECT_DELETION_WAIT_S):
                raise LogUnavailable("the subject is being erased", code="subject-leaving", retry_after_s=RETRY_AFTER_S)
            known = self._cache.get(lookup)
            if known is not None:
                self._cache.move_to_end(lookup)
                return known
            waiting = self._unwritten.get(lookup)
            if waiting is not None:
                return waiting.ref
            ref = self._stored(lookup, content)
            if ref is None:
                ref = self._entropy(16).hex()
                nonce = self._entropy(_NONCE)
                sealed = nonce + self._seal.encrypt(nonce, content, ref.encode())
                self._unwritten[lookup] = _Row(ref, lookup, sealed, self._clock())
            else:
                self._remember(lookup, ref)
            return ref

    def known(self, tenant: str, subject: str) -> str | None:
        """The pseudonym that a subject has, durably, if it has one. Raises LogDamaged."""
        content, lookup = self._name(tenant, subject)
        return self._stored(lookup, content)

    def find(self, connection: Connection, tenant: str, subject: str) -> str | None:
        """The same, as the caller's transaction sees it."""
        content, lookup = self._name(tenant, subject)
        return self._row(connection, lookup, content)

    def _name(self, tenant: str, subject: str) -> tuple[bytes, bytes]:
        """What is sealed of an identity, and what it is looked up by."""
        if not subject or len(subject) > MAX_SUBJECT or len(tenant) > MAX_SUBJECT:
            raise LogError("a subject must have a name of bounded length", code="subject")
        content = canonical_json(Identity(tenant=tenant, subject=subject))
        return content, hmac.digest(self._lookup_key, content, hashlib.sha256)

    def _stored(self, lookup: bytes, content: bytes) -> str | None:
        with self._reader.begin() as connection:
            return self._row(connection, lookup, content)

    def _row(self, connection: Connection, lookup: bytes, content: bytes) -> str | None:
        """The pseudonym on disk, once its sealed identity proves to be this subject's: whoever can write the database
        could else exchange the lookups of two people, and have one's doings recorded under the other's name."""
        found = connection.execute(select(table.c.ref, table.c.sealed).where(table.c.lookup == lookup)).one_or_none()
        if found is None:
            return None
        if self._opened(found.sealed, found.ref) != content:
            raise LogDamaged("a pseudonym in the database belongs to somebody else")
        return str(found.ref)

    def _opened(self, sealed: bytes, ref: str) -> bytes:
        try:
            return self._seal.decrypt(sealed[:_NONCE], sealed[_NONCE:], ref.encode())
        except (InvalidTag, ValueError) as error:
            raise LogDamaged("the sealed identity does not open") from error

    def _remember(self, lookup: bytes, ref: str) -> None:
        self._cache[lookup] = ref
        while len(self._cache) > MAX_CACHED_SUBJECTS:
            self._cache.popitem(last=False)

    def flush(self, connection: Connection) -> list[bytes]:
        """Write waiting rows in the caller's transaction; hand the result to `written` once it is durable."""
        with self._lock:
            rows = list(self._unwritten.values())
        if rows:
            connection.execute(
                insert(table),
                [{"ref": r.ref, "lookup": r.lookup, "sealed": r.sealed, "created_us": r.created_us} for r in rows],
            )
        return [row.lookup for row in rows]

    def written(self, lookups: list[bytes]) -> None:
        """The transaction that carried these rows is durable, and with it what was deleted in it."""
        if not lookups and not self._leaving:  # only the writer, who calls this, adds to it
            return
        with self._settled:
            for lookup in lookups:
                self._remember(lookup, self._unwritten.pop(lookup).ref)
            for lookup in self._leaving:
                self._cache.pop(lookup, None)
            self._leaving.clear()
            self._settled.notify_all()

    def resolve(self, connection: Connection, ref: str) -> Identity:
        """Who a pseudonym stands for; raises QueryRefused if it was deleted, LogDamaged if the row was altered."""
        sealed = connection.execute(select(table.c.sealed).where(table.c.ref == ref)).scalar_one_or_none()
        if sealed is None:
            raise QueryRefused("no such pseudonym, or its identity was deleted", code="not-found")
        return msgspec.json.decode(self._opened(sealed, ref), type=Identity)

    def delete(self, connection: Connection, ref: str) -> None:
        """Delete the link to a person, in the writer's transaction. The same person then gets a new pseudonym."""
        self.delete_all(connection, [ref])

    def delete_all(self, connection: Connection, refs: Sequence[str]) -> None:
        """The same for several."""
        for ref in refs:
            lookup = connection.execute(select(table.c.lookup).where(table.c.ref == ref)).scalar_one_or_none()
            if lookup is None:
                continue
            connection.execute(delete(table).where(table.c.ref == ref))
            with self._settled:
                self._leaving.add(bytes(lookup))

    def unused(self, connection: Connection, *, after: str, before_us: int, limit: int) -> tuple[list[str], str | None]:
        """Of the next `limit` pseudonyms after one, those made before a time that no record carries and nobody used
        since the writer started; and where to go on."""
        page = connection.execute(
            select(table.c.ref, table.c.lookup, table.c.created_us)
            .where(table.c.ref > after)
            .order_by(table.c.ref)
            .limit(limit)
        ).all()
        with self._settled:
            candidates = [row.ref for row in page if row.created_us < before_us and row.lookup not in self._cache]
        carried = select(record_table.c.idx).limit(1)
        found = [
            ref for ref in candidates if connection.execute(carried.where(record_table.c.actor == ref)).first() is None
        ]
        return found, page[-1].ref if len(page) == limit else None
