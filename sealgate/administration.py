"""How an operator's command reaches the runtime host that runs: one frame over the administration socket, one answer.

Trusts: the file system permissions of the socket (the host's user and root). Never: waits without an end, or sends what
the host would not take.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, TypeVar

from sealgate.ambient import monotonic_ns
from sealgate.deployment import Deployment, socket_address
from sealgate.errors import ConfigurationError, DecodeError, HostAway, HostRefused
from sealgate.limits import ADMIN_ANSWER_S
from sealgate.protocol.administration import REFUSALS, AdminToHost, HostToAdmin
from sealgate.protocol.frames import FrameReader, Recorded, Refused, encode_frame

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HostAway", "HostRefused", "ask_host", "tell_host"]

_Answer = TypeVar("_Answer", bound=HostToAdmin)
_RECEIVE = 64 * 1024


def tell_host(deployment: Deployment, frame: AdminToHost, *, timeout_s: float = ADMIN_ANSWER_S) -> Recorded:
    """Tell the host; returns once what it was told is a durable record. Raises as `ask_host` does."""
    return ask_host(deployment, frame, Recorded, timeout_s=timeout_s)


def ask_host(
    deployment: Deployment, frame: AdminToHost, kind: type[_Answer], *, timeout_s: float = ADMIN_ANSWER_S
) -> _Answer:
    """Ask the host; returns its answer, of the kind that this question has, once it is on record.

    Raises ConfigurationError for a frame that the host would not take, HostAway if nothing was said to anybody, and
    HostRefused if the host refused or did not answer in time (then the log says whether it was done).
    """
    message = b"".join(encode_frame(frame))
    try:
        FrameReader(AdminToHost).feed(message)
    except DecodeError as error:
        raise ConfigurationError("a note is one line of at most 300 characters, a name has no spaces") from error
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout_s)
        _connect(sock, deployment.admin_socket)
        try:
            sock.sendall(message)
            answer = _answer(sock, until_ns=monotonic_ns() + int(timeout_s * 1e9))
        except (OSError, DecodeError) as error:
            raise HostRefused("the runtime host did not answer; the audit log says whether it was done") from error
    if isinstance(answer, Refused):
        code = answer.code if answer.code in REFUSALS else "internal"
        raise HostRefused(f"the runtime host refused: {REFUSALS[code]}", code=code)
    if not isinstance(answer, kind):
        raise HostRefused("the runtime host gave another answer; the audit log says whether it was done")
    return answer


def _connect(sock: socket.socket, path: Path) -> None:
    try:
        with socket_address(path) as address:
            sock.connect(address)
    except PermissionError as error:
        raise HostAway(
            f"this user may not administer the runtime host: {path} belongs to another user", code="host-not-yours"
        ) from error
    except OSError as error:
        raise HostAway("no runtime host runs for this deployment") from error


def _answer(sock: socket.socket, *, until_ns: int) -> HostToAdmin:
    reader = FrameReader(HostToAdmin)
    while (left_ns := until_ns - monotonic_ns()) > 0:  # in all: an answer may also come byte by byte
        sock.settimeout(left_ns / 1e9)
        data = sock.recv(_RECEIVE)
        if not data:
            raise DecodeError("the connection ended before an answer")
        for frame, _ in reader.feed(data):
            answer: HostToAdmin = frame
            return answer
    raise TimeoutError
