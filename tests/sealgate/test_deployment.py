"""Settings of a deployment: what is wrong is said in one line that names the file; deep directories still work."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from sealgate.deployment import open_deployment, socket_address
from sealgate.errors import ConfigurationError

GOOD = '[deployment]\naudience = "localhost:8443"\norigin = "localhost/log"\n'


def test_defaults(tmp_path: Path) -> None:
    (tmp_path / "deployment.toml").write_text(GOOD)
    found = open_deployment(tmp_path)
    assert found.token_audience == "https://localhost:8443"
    assert found.settings.runtime.profile == "strict"
    assert found.root.is_absolute()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "deployment"),
        (GOOD + "[runtime]\nprofile = 'lax'\n", "runtime.profile is 'lax'"),
        (GOOD + "[gateway]\nclient_certificates = 'maybe'\n", "gateway.client_certificates"),
        (GOOD + "[gateway]\nport = 'x'\n", "port"),
        (GOOD + "[gateway]\nprot = 1\n", "prot"),
        (GOOD + "[gateway]\nport = 65536\n", r"\[gateway\] port must be a whole number of at most 65535"),
        (GOOD + "[gateway]\nworkers = 0\n", r"\[gateway\] workers must be a whole number of at least 1"),
        (GOOD + "[gateway]\nworkers = 1000\n", r"\[gateway\] workers must be a whole number of at most 64"),
        (GOOD + "[gateway]\nmax_concurrent = 0\n", "max_concurrent must be a whole number of at least 1"),
        (GOOD + "[gateway]\nbody_timeout_s = 0\n", "body_timeout_s must be a number above 0"),
        (GOOD + "[runtime]\nrequest_timeout_s = -1\n", "request_timeout_s must be a number above 0"),
        (GOOD + "[runtime]\ntorch_threads = 0\n", "torch_threads must be a whole number of at least 1"),
        (GOOD + "[runtime]\nkey_active_s = 0\n", "key_active_s must be a whole number of at least 1"),
        (GOOD + "[runtime]\nworker_uid = -1\n", "worker_uid must be a whole number of at least 0"),
        ("[deployment\n", "deployment.toml"),
        ("\xff", "deployment.toml"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "deployment.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigurationError, match=said) as caught:
        open_deployment(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_deployment_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="sealgate init"):
        open_deployment(tmp_path)


@pytest.mark.parametrize("depth", [1, 30])
def test_a_socket_can_be_reached_however_deep(tmp_path: Path, depth: int) -> None:
    folder = tmp_path.joinpath(*["a-folder"] * depth)
    folder.mkdir(parents=True)
    path = folder / "runtime.sock"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        with socket_address(path) as address:
            server.bind(address)
        server.listen()
        assert path.is_socket()
        with socket_address(path) as address:
            client.connect(address)
