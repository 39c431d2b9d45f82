"""publishers.toml: what is accepted, and the one line that says what to mend."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.certificate.publishers import load_publishers
from sealgate.errors import ConfigurationError

KEY = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
TEXT = base64.b64encode(KEY).decode()


def write(path, text):
    path.write_text(text)
    return path


def test_keys_by_their_digest(tmp_path):
    path = write(tmp_path / "publishers.toml", f'[[publisher]]\nname = "hospital"\nkey = "{TEXT}"\n')
    found = load_publishers(path).find(hashlib.sha256(KEY).hexdigest())
    assert found is not None
    assert found.name == "hospital"
    assert load_publishers(path).find("0" * 64) is None


def test_an_empty_file_accepts_nobody(tmp_path):
    assert load_publishers(write(tmp_path / "p.toml", "")).by_keyid == {}


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        f'[[publisher]]\nname = "a"\nkey = "{TEXT}"\nextra = 1\n',
        f'[[publisher]]\nname = ""\nkey = "{TEXT}"\n',
        f'[[publisher]]\nkey = "{TEXT}"\n',
        '[[publisher]]\nname = "a"\nkey = "AAAA"\n',
        '[[publisher]]\nname = "a"\nkey = "!!"\n',
        f'[[publisher]]\nname = "a"\nkey = "{TEXT}"\n[[publisher]]\nname = "a"\nkey = "{TEXT}"\n',
        f'[[publisher]]\nname = "a"\nkey = "{TEXT}"\n' + "#" * 300_000,
        "".join(f'[[publisher]]\nname = "{i}"\nkey = "{TEXT}"\n' for i in range(300)),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text):
    path = write(tmp_path / "publishers.toml", text)
    with pytest.raises(ConfigurationError, match=r"publishers\.toml"):
        load_publishers(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="nowhere"):
        load_publishers(tmp_path / "nowhere")
