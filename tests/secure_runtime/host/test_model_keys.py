"""The data keys that the host hands to a worker, and what it never imports."""

from __future__ import annotations

import ast
import base64
import shutil
from pathlib import Path

import msgspec
import pytest

import secure_runtime.host
from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.encryption import encrypt_bundle
from sealgate.certificate.files import KEY
from sealgate.certificate.pipeline_making import make_pipeline
from sealgate.certificate.wrapping_keys import write_new_key
from sealgate.deployment import Deployment, DeploymentSection, ModelsSection, Settings
from sealgate.errors import ConfigurationError
from sealgate.protocol.frames import BootPlan
from sealgate.protocol.secrets import Secret
from secure_runtime.host.model_keys import data_keys, wrapping_keys
from secure_runtime.worker import main
from tests.sealgate.certificate.conftest import Forge
from tests.secure_runtime.worker.test_load_models import named, plan


def deployment(root: Path, *keys: str) -> Deployment:
    section = DeploymentSection(audience="a", origin="o")
    return Deployment(root, Settings(deployment=section, models=ModelsSection(keys=keys)))


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    """Three bundles of one publisher: plain, under the deployment's key, under another's."""
    forge = Forge()
    write_new_key(tmp_path / "models.key")
    for name in ("plain", "mine", "others"):
        bundle = named(forge, name).write(tmp_path / "models" / name)
        if name == "mine":
            encrypt_bundle(bundle, forge.publishers, wrapping_keys(deployment(tmp_path, "file:models.key")).keys[0])
        if name == "others":
            encrypt_bundle(bundle, forge.publishers, write_new_key(tmp_path / "other.key"))
    return forge


def test_the_worker_gets_one_key_for_each_bundle_that_can_be_opened(forge: Forge, tmp_path: Path) -> None:
    told: list[str] = []
    found = data_keys(deployment(tmp_path, "file:models.key"), tell=told.append)
    assert list(found) == ["mine"]
    bundle = verify_bundle(
        tmp_path / "models" / "mine",
        forge.publishers,
        data_key=lambda _: Secret(base64.b64decode(found["mine"])),
    )
    assert bundle.weights == forge.weights
    assert len(told) == 1
    assert "model others" in told[0]
    assert found["mine"] not in repr(told)
    wrapping = (tmp_path / "models.key").read_text().strip()
    assert base64.b64decode(found["mine"]) != base64.b64decode(wrapping)


def test_the_worker_loads_what_it_has_keys_for_and_keeps_none(forge: Forge, tmp_path: Path) -> None:
    given = data_keys(deployment(tmp_path, "file:models.key"), tell=lambda _: None)
    with_keys = msgspec.structs.replace(plan(tmp_path, forge), model_keys=given)
    loaded, refused = main._load_models(with_keys, "cpu")
    assert set(loaded) == {"mine", "plain"}
    assert [(one.name, one.reason) for one in refused] == [("others", "weights-locked")]
    assert with_keys.without_keys() == plan(tmp_path, forge)
    assert given["mine"] not in repr(with_keys)
    assert given["mine"] in msgspec.json.encode(with_keys).decode()  # it does reach the worker


@pytest.mark.parametrize(
    ("demand", "code"),
    [("require_encryption", "encryption-missing"), ("require_model_signature", "model-signature-missing")],
)
def test_a_deployment_may_demand_more(forge: Forge, tmp_path: Path, demand: str, code: str) -> None:
    given = data_keys(deployment(tmp_path, "file:models.key"), tell=lambda _: None)
    demanding: BootPlan = msgspec.structs.replace(plan(tmp_path, forge), model_keys=given, **{demand: True})
    loaded, refused = main._load_models(demanding, "cpu")
    assert set(loaded) == ({"mine"} if demand == "require_encryption" else set())
    assert ("plain", code) in [(one.name, one.reason) for one in refused]


PIPELINE = """
name = "both"
version = "1"
description = "two that agree"
[[member]]
name = "left"
bundle = "plain"
reads.features = "row"
[[member]]
name = "right"
bundle = "mine"
reads.features = "row"
[fusion]
how = "mean"
weights.left = "0.5"
weights.right = "0.5"
"""


def test_the_worker_gets_the_keys_of_a_pipelines_members(forge: Forge, tmp_path: Path) -> None:
    """Each its own: with `require_encryption` a pipeline loads where all its members are encrypted."""
    ring = wrapping_keys(deployment(tmp_path, "file:models.key"))
    (tmp_path / "models" / "p.toml").write_text(PIPELINE)
    encrypt_bundle(tmp_path / "models" / "plain", forge.publishers, ring.keys[0])
    make_pipeline(
        tmp_path / "models" / "p.toml",
        tmp_path / "models" / "both",
        key=forge.key,
        publishers=forge.publishers,
        data_key=ring.unwrap,
    )
    for name in ("plain", "mine", "others"):
        shutil.rmtree(tmp_path / "models" / name)
    (tmp_path / "models" / "p.toml").unlink()
    told: list[str] = []
    given = data_keys(deployment(tmp_path, "file:models.key"), tell=told.append)
    assert (len(given), len(set(given.values())), told) == (2, 2, [])
    assert data_keys(deployment(tmp_path, "file:models.key"), tell=told.append, places=("another",)) == {}
    with_keys = msgspec.structs.replace(plan(tmp_path, forge), model_keys=given, require_encryption=True)
    loaded, refused = main._load_models(with_keys, "cpu")
    assert (set(loaded), refused) == ({"both"}, ())
    loaded, refused = main._load_models(plan(tmp_path, forge), "cpu")
    assert ([*loaded], [(one.name, one.reason) for one in refused]) == ([], [("both", "weights-locked")])


def test_a_key_of_a_mixed_up_bundle_is_refused_alone(forge: Forge, tmp_path: Path) -> None:
    (tmp_path / "models" / "mine" / KEY).write_bytes(b"{}")
    told: list[str] = []
    assert data_keys(deployment(tmp_path, "file:models.key"), tell=told.append) == {}
    assert sorted(line.split(":")[0] for line in told) == ["model mine", "model others"]
    loaded, refused = main._load_models(plan(tmp_path, forge), "cpu")
    assert set(loaded) == {"plain"}
    assert {one.name: one.reason for one in refused}["mine"] == "key-envelope"


def test_without_keys_nothing_is_read_and_with_wrong_ones_it_is_said(forge: Forge, tmp_path: Path) -> None:
    assert data_keys(deployment(tmp_path), tell=pytest.fail) == {}
    (tmp_path / "models.key").chmod(0o644)
    told: list[str] = []
    assert data_keys(deployment(tmp_path, "file:models.key"), tell=told.append) == {}
    assert "chmod 600" in told[0]
    with pytest.raises(ConfigurationError, match="chmod 600"):
        wrapping_keys(deployment(tmp_path, "file:models.key"))


def test_the_host_has_no_code_that_opens_weights() -> None:
    (folder,) = secure_runtime.host.__path__
    for path in Path(folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [f"{names[0]}.{alias.name}" for alias in node.names] if names else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            forbidden = (
                "sealgate.certificate.sealed_weights",
                "sealgate.certificate.bundle",
                "sealgate.certificate.enc",
            )
            assert not any(name.startswith(forbidden) for name in names), path
