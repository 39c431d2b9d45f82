"""UNIX sockets that are listened on: what stands in their place is taken away only if nobody answers there."""

from __future__ import annotations

import os
import socket

import pytest

from sealgate.deployment import socket_address
from sealgate.errors import ConfigurationError
from sealgate.local_socket import bind_local


def test_the_file_of_a_dead_service_is_replaced_and_open_to_nobody_else(tmp_path):
    path = tmp_path / "link.sock"
    bind_local(path, service="runtime").close()
    with bind_local(path, service="runtime") as sock:
        sock.listen()
        assert path.stat().st_mode & 0o777 == 0o600
        with socket_address(path) as address, socket.socket(socket.AF_UNIX) as caller:
            caller.connect(address)


def test_a_group_may_connect(tmp_path):
    path = tmp_path / "link.sock"
    bind_local(path, service="runtime", group=str(os.getgid()), setting="runtime.socket_group").close()
    assert path.stat().st_mode & 0o777 == 0o660
    with pytest.raises(ConfigurationError, match=r"runtime\.socket_group names 'nobodys'"):
        bind_local(tmp_path / "other.sock", service="runtime", group="nobodys", setting="runtime.socket_group")


@pytest.mark.parametrize("callers", [0, 1], ids=["idle", "backlog full"])
def test_a_service_that_listens_keeps_its_place(tmp_path, callers):
    path = tmp_path / "link.sock"
    with bind_local(path, service="runtime") as sock:
        sock.listen(0)  # room for one caller who waits
        with socket_address(path) as address, socket.socket(socket.AF_UNIX) as caller:
            if callers:
                caller.connect(address)
            with pytest.raises(ConfigurationError, match="is another runtime running"):
                bind_local(path, service="runtime")
        assert path.is_socket()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "link.sock"
    path.write_text("precious")
    with pytest.raises(ConfigurationError, match="is not a socket"):
        bind_local(path, service="runtime")
    assert path.read_text() == "precious"
