"""Which proofs of possession were used (RFC 9449 section 11.1), shared by all gateway processes of a deployment.

A memory in each process would let a proof be used once in each of them, so this is one SQLite file. It is meant to live
exactly as long as the gateway: the first process to open it throws away what an earlier run left and starts with a new
key for nonces. So whatever is lost with the file (a power failure, an operator who deletes it) cannot be used against
it: proofs that it no longer remembers carry nonces that no longer count, and nothing has to wait for the disk.

It is bounded in bytes. Each use forgets a few of those that expired; when it is full of unexpired ones, further proofs
are refused. Only proofs that were found good otherwise are written, so strangers cannot fill it.

Trusts: whoever may write its folder. Never: answers "not used" when it cannot write that down.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gateway.errors import Unauthenticated
from gateway.limits import MAX_PROOF_PAGES, PROOF_STORE_WAIT_S
from sealgate.ambient import Clock, Entropy, now_us, random_bytes
from sealgate.errors import ConfigurationError

DATABASE = "proofs.sqlite"
_LOCK = "proofs.lock"
_PAGE = 4096
_KEY_SIZE = 32
_SCHEMA = f"""
PRAGMA page_size = {_PAGE};
PRAGMA journal_mode = WAL;
CREATE TABLE nonce_key (key BLOB NOT NULL);
CREATE TABLE used (id BLOB PRIMARY KEY, expires_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX used_by_expiry ON used (expires_us);
"""
# More than one, so that a store that filled up empties while it is used.
_FORGET = "DELETE FROM used WHERE id IN (SELECT id FROM used WHERE expires_us <= ? ORDER BY expires_us LIMIT 4)"
_REMEMBER = "INSERT OR IGNORE INTO used VALUES (?, ?)"


class ProofStore:
    """Opened once per process; `remember` is called from its event loop. Raises ConfigurationError if it cannot be."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock = now_us,
        entropy: Entropy = random_bytes,
        pages_max: int = MAX_PROOF_PAGES,
        wait_s: float = PROOF_STORE_WAIT_S,
    ) -> None:
        self._clock = clock
        self._path = folder / DATABASE
        self._patient: sqlite3.Connection | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._pages_max = pages_max
        self._wait_s = wait_s
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigurationError(_unusable(folder, error.strerror or "")) from error
        self._quick: sqlite3.Connection | None = None
        try:
            self._begin(entropy)
            self._quick = self._connect(timeout_s=0)
            self.nonce_key: bytes = self._quick.execute("SELECT key FROM nonce_key").fetchone()[0]
        except (OSError, sqlite3.Error, TypeError) as error:
            if self._quick is not None:
                self._quick.close()
            os.close(self._lock)
            raise ConfigurationError(_unusable(folder, str(error))) from error

    def _begin(self, entropy: Entropy) -> None:
        """Hold the shared lock, over a store that this run of the gateway began."""
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Nobody has it open: what is there belongs to an earlier run.
            for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
                self._path.with_name(name).unlink(missing_ok=True)
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as made:
                made.executescript(_SCHEMA)
                made.execute("INSERT INTO nonce_key VALUES (?)", (entropy(_KEY_SIZE),))
        # Between the two locks another process may begin anew. It is over before this one reads the key.
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def _connect(self, *, timeout_s: float) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path.as_uri() + "?mode=rw", uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA synchronous = OFF")  # it need not outlive the machine's power
            connection.execute(f"PRAGMA max_page_count = {self._pages_max}")
            connection.execute(f"PRAGMA journal_size_limit = {self._pages_max * _PAGE}")
        except BaseException:
            connection.close()
            raise
        return connection

    async def remember(self, *, jkt: str, jti: str, expires_us: int) -> None:
        """Note the use of a proof; raises Unauthenticated if it was used before, or if the use cannot be noted."""
        name = hashlib.sha256(f"{jkt} {jti}".encode()).digest()
        try:
            fresh = self._note(self._quick, name, expires_us)
            if fresh is None:
                loop = asyncio.get_running_loop()
                fresh = await loop.run_in_executor(self._waiting(), self._note_patiently, name, expires_us)
        except sqlite3.Error as error:
            full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
            raise Unauthenticated("proof-store-full" if full else "proof-store-unavailable") from None
        if fresh is None:
            raise Unauthenticated("proof-store-unavailable")
        if not fresh:
            raise Unauthenticated("proof-replayed")

    def _note(self, connection: sqlite3.Connection | None, name: bytes, expires_us: int) -> bool | None:
        """Whether the use is new; None if another process is writing. Takes some 20 us."""
        if connection is None:
            raise sqlite3.ProgrammingError("the store is closed")
        try:
            with _transaction(connection):
                connection.execute(_FORGET, (self._clock(),))
                return connection.execute(_REMEMBER, (name, expires_us)).rowcount == 1
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                return None
            raise

    def _note_patiently(self, name: bytes, expires_us: int) -> bool | None:
        """In the one thread that may wait for another process."""
        if self._patient is None:
            self._patient = self._connect(timeout_s=self._wait_s)
        return self._note(self._patient, name, expires_us)

    def _waiting(self) -> ThreadPoolExecutor:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="proofs")
        return self._thread

    def close(self) -> None:
        """Let go of the file; proofs are refused from now on. May be called twice."""
        if self._quick is None:
            return
        if self._thread is not None:
            self._thread.shutdown()
        for connection in (self._quick, self._patient):
            if connection is not None:
                connection.close()
        self._quick = self._patient = None
        os.close(self._lock)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _unusable(folder: Path, reason: str) -> str:
    return f"{folder} cannot be used ({reason}); the gateway keeps used proofs of possession there and must own it"
