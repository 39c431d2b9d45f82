"""The writer's seal over the head: nobody else can put records into the database that the next start would take over.

A checkpoint is signed after each batch, but stored once a second: what a crash leaves may be newer than the newest one.
Without more, whoever can write the database while no runtime holds it could append records there, consistent in every
hash, and the next start would sign them. So each transaction also writes a keyed hash of origin, size and root beside
them, and of the chain of holds (`audit.holds`), which else could be hidden by deleting rows of an index. It is no
signature: it convinces nobody but the writer, so a transaction that never became durable leaves nothing behind that
could be held against the log.

Trusts: the log's key, which the database does not hold. Never: decides what to do about a wrong seal; `opening` does.
"""

from __future__ import annotations

import hashlib
import hmac

from sealgate.errors import LogError
from sealgate.transparency.notes import Checkpoint, NoteSigner

_PURPOSE = b"sealgate audit head seal v1"
SEALED = "sealed"
"""In the detail of a log's first record: it was sealed from the beginning, so a head without a seal is not its own."""


class HeadSeal:
    """Makes and checks seals for one log."""

    def __init__(self, signer: NoteSigner) -> None:
        self._signer, self._origin = signer, signer.name
        self._key = signer.derive_key(_PURPOSE)

    def under(self, origin: str) -> HeadSeal:
        """The same for a shard of the log."""
        return HeadSeal(self._signer.under(origin))

    def over(self, size: int, root: bytes, *, holds: bytes | None) -> bytes:
        """The seal of a tree that this log's writer made; `holds` is None in a log from before it was sealed too."""
        text = Checkpoint(self._origin, size, root).text()
        if holds is not None:
            text += f"holds {holds.hex()}\n".encode()
        return hmac.digest(self._key, text, hashlib.sha256)

    def require(self, seal: bytes, *, size: int, root: bytes, holds: bytes | None) -> None:
        """Raise LogError (`seal`) unless this log's writer made the seal for this very tree and these holds."""
        if not hmac.compare_digest(seal, self.over(size, root, holds=holds)):
            raise LogError("the head was not written by this log's writer", code="seal")
