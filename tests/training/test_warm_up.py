"""The sizes of requests that a publisher expects stand in the manifest, and in older manifests nothing does."""

from __future__ import annotations

from pathlib import Path

import pytest

from sealgate.certificate.manifest import manifest_bytes, parse_manifest
from sealgate.errors import ConfigurationError
from tests.live import CONFIG
from training.configuration import load_configuration
from training.manifests import manifest_of


@pytest.mark.parametrize(("line", "sizes"), [("", ()), ("warm_up = [1, 32]\n", (1, 32))])
def test_sizes_of_the_configuration_reach_the_manifest(tmp_path: Path, line: str, sizes: tuple[int, ...]) -> None:
    path = tmp_path / "c.toml"
    path.write_text(CONFIG.read_text().replace("[model]\n", f"[model]\n{line}", 1))
    data = manifest_bytes(manifest_of(load_configuration(path)))
    assert parse_manifest(data).warm_up_sizes == sizes
    assert (b"warm_up" in data) == bool(sizes), "a manifest without sizes is what it was before there were any"


def test_sizes_out_of_bounds_are_refused_before_training(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(CONFIG.read_text().replace("[model]\n", "[model]\nwarm_up = [5000]\n", 1))
    with pytest.raises(ConfigurationError, match="warm up"):
        manifest_of(load_configuration(path))
