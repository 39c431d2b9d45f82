"""Pseudonyms: a random name per (tenant, subject), and the sealed identity behind it.

Leaves carry only the pseudonym. The row that links it to a person is found by a keyed hash, its content is AES-GCM
sealed under a key that the database does not hold, and deleting it leaves a name that nobody can resolve.
Trusts: the subjects key. Never: writes an identity in clear, or a guessable hash of one.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections import OrderedDict
from dataclasses import dataclass

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, Engine, delete, insert, select

from audit.errors import LogDamaged, QueryRefused
from audit.limits import MAX_CACHED_SUBJECTS, MAX_SUBJECT
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

    `_cache` and `_unwritten` are guarded by `_lock`. A row stays in `_unwritten` until the transaction that carries it
    is durable, so no second pseudonym can be made for the same subject meanwhile.
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
        self._cache: OrderedDict[bytes, str] = OrderedDict()
        self._unwritten: dict[bytes, _Row] = {}

    def pseudonym(self, tenant: str, subject: str) -> str:
        """The stable pseudonym of a subject. A new one is durable no later than the next append. Raises LogDamaged."""
        if not subject or len(subject) > MAX_SUBJECT or len(tenant) > MAX_SUBJECT:
            raise LogError("a subject must have a name of bounded length", code="subject")
        content = canonical_json(Identity(tenant=tenant, subject=subject))
        lookup = hmac.digest(self._lookup_key, content, hashlib.sha256)
        with self._lock:
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

    def _stored(self, lookup: bytes, content: bytes) -> str | None:
        """The pseudonym on disk, once its sealed identity proves to be this subject's: whoever can write the database
        could else exchange the lookups of two people, and have one's doings recorded under the other's name."""
        with self._reader.begin() as connection:
            found = connection.execute(
                select(table.c.ref, table.c.sealed).where(table.c.lookup == lookup)
            ).one_or_none()
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
        """The transaction that carried these rows is durable."""
        if not lookups:
            return
        with self._lock:
            for lookup in lookups:
                self._remember(lookup, self._unwritten.pop(lookup).ref)

    def resolve(self, connection: Connection, ref: str) -> Identity:
        """Who a pseudonym stands for; raises QueryRefused if it was deleted, LogDamaged if the row was altered."""
        sealed = connection.execute(select(table.c.sealed).where(table.c.ref == ref)).scalar_one_or_none()
        if sealed is None:
            raise QueryRefused("no such pseudonym, or its identity was deleted", code="not-found")
        return msgspec.json.decode(self._opened(sealed, ref), type=Identity)

    def delete(self, connection: Connection, ref: str) -> None:
        """Delete the link to a person, in the caller's transaction. The same person then gets a new pseudonym."""
        connection.execute(delete(table).where(table.c.ref == ref))
        with self._lock:
            for lookup in [lookup for lookup, known in self._cache.items() if known == ref]:
                del self._cache[lookup]
