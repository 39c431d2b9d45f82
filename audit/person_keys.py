"""A key for each person in the log, in one small file that is not the log's database: deleting a key erases a person.

What names somebody in the database is sealed under a key of that person's own, which stands here and nowhere else
(crypto-shredding, NIST SP 800-88 Rev. 1, section 2.6, "cryptographic erase"). So an erasure reaches every copy of the
database that was ever made: backups, dead rows, archives of a server. What leads from a person to a pseudonym stands
here too, and not in the database, where a guess could be tested with it long after the erasure.

    person    pseudonym, handle (a keyed hash of the identity), the person's key wrapped under the subjects key,
              and whether a deletion is under way, which a crash must not leave half done
    made_for  a proof that the subjects key is the one that this file was begun with

One connection, write-ahead log, every commit on disk before it returns; what is deleted is overwritten.
Trusts: the file system's fsync, the subjects key. Never: holds an identity, or a key in clear.
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from audit.database import database_path
from audit.errors import LogDamaged
from audit.limits import SCRUB_WAIT_S
from audit.sqlite import create_private
from sealgate.ambient import Entropy
from sealgate.errors import ConfigurationError

KEY_BYTES = 32
_NONCE = 12
_WRAP = b"sealgate person key wrap v1\x00"
_PROOF = b"sealgate person keys made for v1\x00"
_LAYOUT = """
CREATE TABLE person (
    ref TEXT PRIMARY KEY, handle BLOB NOT NULL UNIQUE, wrapped BLOB NOT NULL, leaving INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE INDEX person_leaving ON person (leaving) WHERE leaving <> 0;
CREATE TABLE made_for (id INTEGER PRIMARY KEY, proof BLOB NOT NULL) STRICT;
"""


@dataclass(frozen=True, repr=False)
class PersonKey:
    """One person's: `ref` is the pseudonym, `handle` what the person is found by, `key` 32 bytes."""

    ref: str
    handle: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"PersonKey({self.ref})"


class PersonKeys:
    """The file, open. Safe from several threads: `_lock` guards the one connection."""

    def __init__(self, path: Path, subjects_key: bytes, *, entropy: Entropy) -> None:
        """Opens the file, or begins it; raises ConfigurationError if it cannot be had or was made for another key."""
        self._wrap = AESGCM(hmac.digest(subjects_key, _WRAP, hashlib.sha256))
        self._entropy = entropy
        self._lock = threading.Lock()
        try:
            create_private(path)
            self._connection = _connect(path)
            try:
                self._begin(hmac.digest(subjects_key, _PROOF, hashlib.sha256), path)
            except BaseException:
                self._connection.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise ConfigurationError(f"{path}, with the keys of people, cannot be used ({_named(error)})") from error

    def _begin(self, proof: bytes, path: Path) -> None:
        tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not tables:
            self._connection.executescript(f"BEGIN IMMEDIATE; {_LAYOUT}")
            self._connection.execute("INSERT INTO made_for VALUES (1, ?)", (proof,))
            self._connection.execute("COMMIT")
        found = self._connection.execute("SELECT proof FROM made_for").fetchone()
        if found is None or not hmac.compare_digest(found[0], proof):
            raise ConfigurationError(f"{path} holds the keys of people under another subjects key; restore that one")

    def close(self) -> None:
        """Doing so twice is harmless."""
        with self._lock:
            self._connection.close()

    # Reading ---------------------------------------------------------------------------------------------------------

    def by_handle(self, handle: bytes) -> PersonKey | None:
        """The key of who has this handle. Raises LogDamaged if the row is not as it was written."""
        return self._one("SELECT ref, handle, wrapped FROM person WHERE handle = ?", handle)

    def by_ref(self, ref: str) -> PersonKey | None:
        """The key of who has this pseudonym; likewise."""
        return self._one("SELECT ref, handle, wrapped FROM person WHERE ref = ?", ref)

    def leaving(self) -> list[str]:
        """Whose deletion began and was not seen to its end."""
        with self._lock:
            return [ref for (ref,) in self._connection.execute("SELECT ref FROM person WHERE leaving <> 0")]

    def _one(self, statement: str, value: str | bytes) -> PersonKey | None:
        with self._lock:
            row = self._connection.execute(statement, (value,)).fetchone()
        if row is None:
            return None
        ref, handle, wrapped = row
        try:
            key = self._wrap.decrypt(wrapped[:_NONCE], wrapped[_NONCE:], _bound(ref, handle))
        except (InvalidTag, ValueError) as error:
            raise LogDamaged("the key of a person is not as it was written") from error
        return PersonKey(ref, handle, key)

    # Writing ---------------------------------------------------------------------------------------------------------

    def put(self, keys: Iterable[PersonKey]) -> None:
        """Durable when this returns. Another key of the same handle or pseudonym, whose row never came to be, goes."""
        rows = []
        for one in keys:
            nonce = self._entropy(_NONCE)
            bound = _bound(one.ref, one.handle)
            rows.append((one.ref, one.handle, nonce + self._wrap.encrypt(nonce, one.key, bound)))
        with self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO person (ref, handle, wrapped) VALUES (?, ?, ?)", rows)

    def mark(self, refs: Sequence[str], *, leaving: bool) -> None:
        """Their deletion begins, or did not happen. Durable when this returns."""
        with self._transaction() as connection:
            connection.executemany("UPDATE person SET leaving = ? WHERE ref = ?", [(int(leaving), ref) for ref in refs])

    def delete(self, refs: Sequence[str]) -> None:
        """Nobody finds their keys any more when this returns; `scrub` empties the write-ahead log."""
        with self._transaction() as connection:
            connection.executemany("DELETE FROM person WHERE ref = ?", [(ref,) for ref in refs])

    def scrub(self) -> bool:
        """See that a deleted key is in no file of ours any more; False if somebody is copying the file just now."""
        with self._lock:
            busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def beside(url: str) -> Path:
    """Where the file stands for a log in an SQLite file, unless somebody says otherwise. Raises ConfigurationError."""
    try:
        path = database_path(url)
    except ConfigurationError as error:
        raise ConfigurationError("a log that is in no file must be told where the keys of people stand") from error
    return path.with_name(f"{path.name}.people")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=SCRUB_WAIT_S)
    try:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "trusted_schema=OFF"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _bound(ref: str, handle: bytes) -> bytes:
    """What a wrapped key is bound to: of fixed lengths, so no two pairs are the same bytes."""
    return len(handle).to_bytes(2, "big") + handle + ref.encode()


def _named(error: Exception) -> str:
    return str(getattr(error, "sqlite_errorname", "") or getattr(error, "strerror", "") or type(error).__name__)
