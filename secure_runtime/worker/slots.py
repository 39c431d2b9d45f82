"""Memory that a worker and one single-use process share: the sealed request goes in by it, the sealed answer out.

A slot is `u32 header length | u32 body length | header (MessagePack) | body (opaque bytes)`, as frames are. Mapped
before the zygote is made, so that every process of the worker has it; a single-use process lets go of all but its own.

Trusts: that a slot is read only after whoever wrote it has stopped. Never: holds plaintext; what it does hold in secret
(the secret that opens one request) is wiped by its reader at once, and with the slot.
"""

from __future__ import annotations

import mmap
import struct
from typing import TypeVar

import msgspec

from sealgate.errors import DecodeError
from sealgate.limits import DEFAULT_MESSAGE, MAX_FRAME_HEADER
from sealgate.protocol.frames import Grant, Took
from sealgate.protocol.sizes import sealed_size

_PREFIX = struct.Struct(">II")


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one single-use process is to do. Body: the sealed request, which `secret` opens."""

    grant: Grant
    media_type: str
    secret: bytes

    def __repr__(self) -> str:
        return f"<Job {self.grant.id}>"


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What it says of it. Body: the sealed response, empty for `refused`. A word to be checked, not a fact."""

    opened: bool
    outcome: str
    reason: str
    problem: str = ""
    media_type: str = ""
    units: int = 0
    eps_micro: int = 0
    model_digest: str = ""
    certificate_digest: str = ""
    took: Took | None = None


_Header = TypeVar("_Header", Job, Result)


class Slot:
    """One piece of shared memory. Owned by one process at a time: the worker, then the single-use process, then again
    the worker."""

    def __init__(self, body_max: int = sealed_size(DEFAULT_MESSAGE)) -> None:
        """`body_max` is for sealed requests and answers alike: what the engine makes fits an inner message."""
        self._body_max = body_max
        self._memory = mmap.mmap(-1, _PREFIX.size + MAX_FRAME_HEADER + body_max)

    def put(self, header: Job | Result, body: bytes) -> None:
        """Replace the content; raises DecodeError for what does not fit."""
        encoded = msgspec.msgpack.encode(header)
        if len(encoded) > MAX_FRAME_HEADER or len(body) > self._body_max:
            raise DecodeError("a slot cannot hold that", code="too-large")
        end = _PREFIX.size + len(encoded)
        self._memory[_PREFIX.size : end] = encoded
        self._memory[end : end + len(body)] = body
        self._memory[: _PREFIX.size] = _PREFIX.pack(len(encoded), len(body))

    def take(self, kind: type[_Header]) -> tuple[_Header, bytes]:
        """The content, which is gone from the slot afterwards; raises DecodeError."""
        header_size, body_size = _PREFIX.unpack_from(self._memory)
        end = _PREFIX.size + header_size
        try:
            if header_size > MAX_FRAME_HEADER or body_size > self._body_max:
                raise DecodeError("a slot cannot hold that", code="too-large")
            header = msgspec.msgpack.decode(self._memory[_PREFIX.size : end], type=kind)
            return header, self._memory[end : end + body_size]
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise DecodeError("a slot's header is malformed") from error
        finally:
            self.wipe()

    def wipe(self) -> None:
        """Give the pages back to the kernel: the slot reads as zeros in every process."""
        self._memory.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Let go of it, in this process."""
        self._memory.close()
