"""Holders of key bytes and of unsealed plaintext that cannot be printed, compared, copied or pickled by accident.

Trusts: the code in the same process. These types stop mistakes, not hostile code beside them: the process boundary does
that. Wiping is best effort: it clears our buffer, not copies that Python, libraries or `reveal` callers made.

Never: puts content into `repr`, `str`, a format, a pickle, a copy or an exception.
"""

from __future__ import annotations

import hmac
from typing import NoReturn

_WIPED = "the content was wiped"


class _Opaque:
    """What both holders share: one mutable buffer and no way to show it."""

    __slots__ = ("_buffer",)

    def __init__(self, content: bytes | bytearray) -> None:
        # A bytearray is taken over, not copied, so that wiping clears the only buffer.
        self._buffer: bytearray | None = content if isinstance(content, bytearray) else bytearray(content)

    def _content(self) -> bytearray:
        if self._buffer is None:
            raise ValueError(_WIPED)
        return self._buffer

    def wipe(self) -> None:
        """Overwrite the content with zeros, in place, so that views of it read zeros too. Wiping twice is harmless."""
        if self._buffer is not None:
            self._buffer[:] = bytes(len(self._buffer))
            self._buffer = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __format__(self, specification: str) -> str:
        return repr(self)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        # Covers pickle, copy and deepcopy.
        raise TypeError(f"{type(self).__name__} is neither copied nor serialised")

    __hash__ = None  # type: ignore[assignment]  # a hash would be a fingerprint of the content


class Secret(_Opaque):
    """Key bytes. `reveal` is the only way out, so a search for it finds every use of a key."""

    __slots__ = ()

    def reveal(self) -> bytes:
        """A copy of the bytes. Hand it to the primitive that needs it and let go of it. ValueError once wiped."""
        return bytes(self._content())

    def __eq__(self, other: object) -> bool:
        """Constant-time comparison with another Secret; never equal to plain bytes, nor once wiped."""
        if not isinstance(other, Secret):
            return NotImplemented
        if self._buffer is None or other._buffer is None:
            return self is other
        return hmac.compare_digest(self._buffer, other._buffer)


class Plaintext(_Opaque):
    """What unsealing yields.

    Holding one proves: the bytes were authenticated under a key that this process holds. It does not prove that they
    are well formed, fresh, not replayed, or allowed: the gatekeeper says that. Use as a context manager to wipe.
    """

    __slots__ = ()

    def view(self) -> memoryview:
        """The content, read-only and without a copy. ValueError once wiped."""
        return memoryview(self._content()).toreadonly()

    def __len__(self) -> int:
        return len(self._content())

    def __bytes__(self) -> NoReturn:
        raise TypeError("Plaintext is read through view()")

    def __enter__(self) -> Plaintext:
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()
