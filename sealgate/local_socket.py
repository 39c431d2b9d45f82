"""A UNIX socket to listen on, whose file says who may connect: its owner, or one group too.

Trusts: the file system. Never: leaves the file open to others for a moment, takes the place of a service that listens.
"""

from __future__ import annotations

import grp
import os
import socket
from pathlib import Path

from sealgate.deployment import socket_address
from sealgate.errors import ConfigurationError


def bind_local(path: Path, *, service: str, group: str = "", setting: str = "") -> socket.socket:
    """A bound socket, 0600, or 0660 for `group`; the file of a dead service is replaced, a live one is an error.

    `service` says who listens there and `setting` where the group is named, for the errors.
    """
    number = _group_id(group, setting) if group else None
    sock = socket.socket(socket.AF_UNIX)
    try:
        with socket_address(path) as address:
            _clear(path, address, service)
            before = os.umask(0o177)
            try:
                sock.bind(address)
            finally:
                os.umask(before)
        if number is not None:
            os.chown(path, -1, number)
            path.chmod(0o660)
    except OSError as error:
        sock.close()
        raise ConfigurationError(f"cannot listen on {path}: {error.strerror}") from error
    except ConfigurationError:
        sock.close()
        raise
    return sock


def _clear(path: Path, address: str, service: str) -> None:
    if not path.exists():
        return
    if not path.is_socket():
        raise ConfigurationError(f"cannot listen on {path}: it is there and is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except ConnectionRefusedError:  # nobody listens
            path.unlink()
            return
        except BlockingIOError:  # somebody listens, and has more to do than it can take
            pass
    raise ConfigurationError(f"{path} is in use: is another {service} running?")


def _group_id(group: str, setting: str) -> int:
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigurationError(f"{setting} names '{group}', but there is no such group") from None
