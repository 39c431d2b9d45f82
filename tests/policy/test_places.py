"""What the models of a deployment state of themselves, for whoever looks at policies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from policy.places import Bundles
from sealgate.certificate import bundle
from sealgate.deployment import Deployment, open_deployment
from sealgate.errors import CertificateError
from tests.sealgate.certificate.conftest import Forge
from tests.secure_runtime.models.conftest import write_publishers

GOOD = '[deployment]\naudience = "localhost:8443"\norigin = "localhost/log"\n'


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    forge = Forge()
    forge.write(tmp_path / "models" / "toy")
    write_publishers(tmp_path / "publishers.toml", forge)
    (tmp_path / "deployment.toml").write_text(GOOD)
    return open_deployment(tmp_path)


def test_what_is_signed_is_said_without_recomputing_epsilon(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "_check_epsilon", None)
    found = Bundles(deployment)["toy"]
    assert (found.name, found.version) == ("toy", "1.0.0")
    assert found.epsilon_micro > 0


def test_one_that_is_refused_is_left_out_of_what_is_asked_and_named_where_it_is_wanted(deployment: Deployment) -> None:
    shutil.copytree(deployment.models / "toy", deployment.models / "broken")
    manifest = deployment.models / "broken" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"two classes", b"ten classes"))
    bundles = Bundles(deployment)
    assert [one.name for one in bundles.sound()] == ["toy"]
    with pytest.raises(CertificateError):
        bundles.require("broken")
