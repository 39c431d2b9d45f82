"""Pseudonyms: a random name per (tenant, subject), and the sealed identity behind it.

Leaves carry only the pseudonym. The row of the database that links it to a person is AES-GCM sealed under a key of that
person's own, which the database does not hold (`audit.person_keys`). Deleting row and key leaves a name that nobody can
resolve, in this database and in every copy of it.

    a new person    the key is durable, then the row is: a key without a row is nobody's yet, and is replaced
    an erasure      the key is marked, row and record go in one transaction, then the key is deleted; what a crash cuts
                    off, the next start ends: no row, no key
    an older log    rows that one key sealed for all are sealed anew when it is opened, each under its own

A pseudonym whose row is being deleted is given to nobody: who asks for it waits for the commit, and gets a new one.
Trusts: the subjects key and the file of keys. Never: writes an identity in clear, or a guessable hash of one into the
database.
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, Engine, delete, insert, select

from audit.errors import LogDamaged, LogUnavailable, QueryRefused
from audit.limits import (
    MAX_CACHED_SUBJECTS,
    MAX_NAMED_SUBJECTS,
    MAX_NEW_SUBJECTS,
    MAX_SUBJECT,
    PRUNE_SUBJECTS,
    RETRY_AFTER_S,
    SUBJECT_DELETION_WAIT_S,
)
from audit.person_keys import KEY_BYTES, PersonKey, PersonKeys
from audit.tables import record as record_table
from audit.tables import subject as table
from sealgate.ambient import Clock, Entropy
from sealgate.errors import ConfigurationError, LogError
from sealgate.protocol.canonical import canonical_json
from sealgate.protocol.secrets import Secret

_LOOKUP = b"sealgate subject lookup v1\x00"
_SEAL = b"sealgate subject seal v1\x00"  # of rows from before there was a key for each person
_NONCE = 12
_BEFORE_KEYS = (
    select(table.c.ref, table.c.lookup, table.c.sealed, table.c.created_us)
    .where(table.c.lookup.is_not(None))
    .order_by(table.c.lookup)
    .limit(PRUNE_SUBJECTS)
)
_KEYED = select(table.c.ref).where(table.c.lookup.is_(None)).limit(1)
_Name = TypeVar("_Name", str, bytes)


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who a pseudonym stands for."""

    tenant: str
    subject: str


@dataclass(frozen=True)
class _Row:
    key: PersonKey
    sealed: bytes
    created_us: int


class Subjects:
    """The pseudonyms of one log. `pseudonym` may be called from any thread; `flush` only by the writer.

    `_cache`, `_unwritten` and `_leaving` go by handle (`_leaving` says whose pseudonym) and are guarded by `_lock`,
    whose condition is `_settled`. A row stays in `_unwritten` until the transaction that carries it is durable, so no
    second pseudonym can be made for the same subject meanwhile; and in `_leaving` until the one that deletes it is.
    `_names` are of who asked lately, with what `_name` makes of them: all are forgotten when anybody is erased.
    """

    def __init__(self, key: Secret | bytes, *, keys: Path, reader: Engine, clock: Clock, entropy: Entropy) -> None:
        """`keys` is the file of `audit.person_keys`. Raises ConfigurationError if it is missing and the log has people:
        all of them would be forgotten."""
        raw = key.reveal() if isinstance(key, Secret) else key
        if len(raw) != 32:
            raise ConfigurationError("the subjects key must be 32 bytes")
        self._lookup_key = hmac.digest(raw, _LOOKUP, hashlib.sha256)
        self._seal = AESGCM(hmac.digest(raw, _SEAL, hashlib.sha256))
        if not keys.exists():
            _require_nobody(reader, keys)
        self._keys = PersonKeys(keys, raw, entropy=entropy)
        self._reader = reader
        self._clock = clock
        self._entropy = entropy
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        self._cache: OrderedDict[bytes, str] = OrderedDict()
        self._unwritten: dict[bytes, _Row] = {}
        self._leaving: dict[bytes, str] = {}
        self._names: dict[tuple[str, str], tuple[bytes, bytes]] = {}

    def close(self) -> None:
        """Let go of the file of keys. Doing so twice is harmless."""
        self._keys.close()

    def catch_up(self, connection: Connection) -> None:
        """End what a crash cut off, and give everybody of an older log a key; in the writer's transaction."""
        self._end_deletions(connection, self._keys.leaving())
        while rows := connection.execute(_BEFORE_KEYS).all():
            fresh = []
            for row in rows:
                content = _opened(self._seal, row.sealed, row.ref)
                if hmac.digest(self._lookup_key, content, hashlib.sha256) != row.lookup:
                    raise LogDamaged("a pseudonym in the database belongs to somebody else")
                fresh.append(
                    self._sealed(content, PersonKey(row.ref, row.lookup, self._entropy(KEY_BYTES)), row.created_us)
                )
            self._keys.put(row.key for row in fresh)
            for one in fresh:
                connection.execute(delete(table).where(table.c.ref == one.key.ref))
            connection.execute(insert(table), [_columns(one) for one in fresh])

    def pseudonym(self, tenant: str, subject: str) -> str:
        """The stable pseudonym of a subject. A new one is durable no later than the next append. Raises LogDamaged, and
        LogUnavailable if the row is being deleted and that does not come to its end, or if too many new ones wait."""
        content, handle = self._names.get((tenant, subject)) or self._named(tenant, subject)
        with self._settled:
            if not self._settled.wait_for(lambda: handle not in self._leaving, SUBJECT_DELETION_WAIT_S):
                raise LogUnavailable("the subject is being erased", code="subject-leaving", retry_after_s=RETRY_AFTER_S)
            known = self._cache.get(handle)
            if known is not None:
                self._cache.move_to_end(handle)
                return known
            waiting = self._unwritten.get(handle)
            if waiting is not None:
                return waiting.key.ref
            ref = self._stored(handle, content)
            if ref is None:
                if len(self._unwritten) >= MAX_NEW_SUBJECTS:  # whose records the log does not take
                    raise LogUnavailable("too many new names wait", code="queue-full", retry_after_s=RETRY_AFTER_S)
                ref = self._entropy(16).hex()
                key = PersonKey(ref, handle, self._entropy(KEY_BYTES))
                self._unwritten[handle] = self._sealed(content, key, self._clock())
            else:
                self._remember(handle, ref)
            return ref

    def known(self, tenant: str, subject: str) -> str | None:
        """The pseudonym that a subject has, durably, if it has one. Raises LogDamaged."""
        content, handle = self._name(tenant, subject)
        return self._stored(handle, content)

    def find(self, connection: Connection, tenant: str, subject: str) -> str | None:
        """The same, as the caller's transaction sees it."""
        content, handle = self._name(tenant, subject)
        return self._row(connection, handle, content)

    def _name(self, tenant: str, subject: str) -> tuple[bytes, bytes]:
        """What is sealed of an identity, and the handle that its key is found by."""
        if not subject or len(subject) > MAX_SUBJECT or len(tenant) > MAX_SUBJECT:
            raise LogError("a subject must have a name of bounded length", code="subject")
        content = canonical_json(Identity(tenant=tenant, subject=subject))
        return content, hmac.digest(self._lookup_key, content, hashlib.sha256)

    def _named(self, tenant: str, subject: str) -> tuple[bytes, bytes]:
        """`_name`, and remembered."""
        name = self._name(tenant, subject)
        if len(self._names) >= MAX_NAMED_SUBJECTS:
            self._names.clear()
        self._names[tenant, subject] = name
        return name

    def _stored(self, handle: bytes, content: bytes) -> str | None:
        with self._reader.begin() as connection:
            return self._row(connection, handle, content)

    def _row(self, connection: Connection, handle: bytes, content: bytes) -> str | None:
        """The pseudonym on disk, once its sealed identity proves to be this subject's."""
        key = self._key(self._keys.by_handle, handle)
        if key is None:
            return None
        sealed = connection.execute(select(table.c.sealed).where(table.c.ref == key.ref)).scalar_one_or_none()
        if sealed is None:
            return None
        if _opened(AESGCM(key.key), sealed, key.ref) != content:
            raise LogDamaged("a pseudonym in the database belongs to somebody else")
        return key.ref

    def _key(self, find: Callable[[_Name], PersonKey | None], name: _Name) -> PersonKey | None:
        try:
            return find(name)
        except sqlite3.Error as error:
            raise LogUnavailable(
                "the file with the keys of people cannot be read", code="reader", retry_after_s=RETRY_AFTER_S
            ) from error

    def _sealed(self, content: bytes, key: PersonKey, created_us: int) -> _Row:
        nonce = self._entropy(_NONCE)
        return _Row(key, nonce + AESGCM(key.key).encrypt(nonce, content, key.ref.encode()), created_us)

    def _remember(self, handle: bytes, ref: str) -> None:
        self._cache[handle] = ref
        while len(self._cache) > MAX_CACHED_SUBJECTS:
            self._cache.popitem(last=False)

    def flush(self, connection: Connection) -> list[bytes]:
        """Write waiting rows in the caller's transaction, their keys before them; hand the result to `written` once it
        is durable."""
        with self._lock:
            rows = list(self._unwritten.values())
        if rows:
            self._keys.put(row.key for row in rows)
            connection.execute(insert(table), [_columns(row) for row in rows])
        return [row.key.handle for row in rows]

    def written(self, handles: list[bytes]) -> None:
        """The transaction that carried these rows is durable, and with it what was deleted in it."""
        if not handles and not self._leaving:  # only the writer, who calls this, adds to it
            return
        if self._leaving:
            with self._reader.begin() as connection:
                self._end_deletions(connection, list(self._leaving.values()))
        with self._settled:
            for handle in handles:
                self._remember(handle, self._unwritten.pop(handle).key.ref)
            for handle in self._leaving:
                self._cache.pop(handle, None)
            if self._leaving:
                self._names.clear()
            self._leaving.clear()
            self._settled.notify_all()

    def _end_deletions(self, connection: Connection, refs: Sequence[str]) -> None:
        """No row, no key. A row that is there after all was not deleted: its record was refused, or never durable."""
        there = select(table.c.ref)
        still = [ref for ref in refs if connection.execute(there.where(table.c.ref == ref)).first() is not None]
        if still:
            self._keys.mark(still, leaving=False)
        if gone := [ref for ref in refs if ref not in set(still)]:
            self._keys.delete(gone)

    def scrub(self) -> bool:
        """See that no file of ours has a deleted key any more; False if that must wait for who copies it."""
        return self._keys.scrub()

    def resolve(self, connection: Connection, ref: str) -> Identity:
        """Who a pseudonym stands for; raises QueryRefused if it was deleted, LogDamaged if the row was altered."""
        sealed = connection.execute(select(table.c.sealed).where(table.c.ref == ref)).scalar_one_or_none()
        key = None if sealed is None else self._key(self._keys.by_ref, ref)
        if sealed is None or key is None:
            raise QueryRefused("no such pseudonym, or its identity was deleted", code="not-found")
        return msgspec.json.decode(_opened(AESGCM(key.key), sealed, ref), type=Identity)

    def delete(self, connection: Connection, ref: str) -> None:
        """Delete the link to a person, in the writer's transaction. The same person then gets a new pseudonym."""
        self.delete_all(connection, [ref])

    def delete_all(self, connection: Connection, refs: Sequence[str]) -> None:
        """The same for several. Their keys go when `written` hears that the transaction is durable."""
        found = [key for ref in refs if (key := self._key(self._keys.by_ref, ref)) is not None]
        self._keys.mark([key.ref for key in found], leaving=True)
        for ref in refs:
            connection.execute(delete(table).where(table.c.ref == ref))
        with self._settled:
            self._leaving |= {key.handle: key.ref for key in found}

    def unused(self, connection: Connection, *, after: str, before_us: int, limit: int) -> tuple[list[str], str | None]:
        """Of the next `limit` pseudonyms after one, those made before a time that no record carries and nobody used
        since the writer started; and where to go on."""
        page = connection.execute(
            select(table.c.ref, table.c.created_us).where(table.c.ref > after).order_by(table.c.ref).limit(limit)
        ).all()
        with self._settled:
            used = set(self._cache.values())
        candidates = [row.ref for row in page if row.created_us < before_us and row.ref not in used]
        carried = select(record_table.c.idx).limit(1)
        found = [
            ref for ref in candidates if connection.execute(carried.where(record_table.c.actor == ref)).first() is None
        ]
        return found, page[-1].ref if len(page) == limit else None


def _opened(seal: AESGCM, sealed: bytes, ref: str) -> bytes:
    try:
        return seal.decrypt(sealed[:_NONCE], sealed[_NONCE:], ref.encode())
    except (InvalidTag, ValueError) as error:
        raise LogDamaged("the sealed identity does not open") from error


def _columns(row: _Row) -> dict[str, object]:
    return {"ref": row.key.ref, "lookup": None, "sealed": row.sealed, "created_us": row.created_us}


def _require_nobody(reader: Engine, keys: Path) -> None:
    with reader.begin() as connection:
        if connection.execute(_KEYED).first() is not None:
            raise ConfigurationError(
                f"{keys}, with the keys of the people in the log, is missing: restore its newest copy. If it is lost "
                "for good, make an empty file there: everybody is then forgotten, and gets a new pseudonym"
            )
