"""Every denial probe reaches the kernel when nothing holds it back: otherwise its denial would prove nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from secure_runtime.worker.sandbox import probes
from secure_runtime.worker.sandbox.report import LAYERS, REQUIRED, LayerMissing, Report
from secure_runtime.worker.sandbox.syscalls import NUMBERS

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def unsandboxed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The probes' outcome in a plain process, in a folder of its own."""
    folder = tmp_path_factory.mktemp("probes")
    source = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from secure_runtime.worker.sandbox import probes
from secure_runtime.worker.sandbox.report import Report
report = Report("dev")
probes.run(report)
print(json.dumps(report.probes))
"""
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=folder, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    assert list(folder.iterdir()) == [], "a probe that got through left something behind"
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("name", [probe.name for probe in probes._probes() if probe.call in NUMBERS])
def test_it_gets_through_without_a_sandbox(unsandboxed: dict[str, Any], name: str) -> None:
    assert unsandboxed[name]["state"] == "failed", unsandboxed[name]


def test_there_are_enough_and_each_has_its_own_name() -> None:
    names = [probe.name for probe in probes._probes()]
    assert len(names) >= 23
    assert len(names) == len(set(names))


def test_a_probe_that_gets_through_refuses_the_profile() -> None:
    report = _whole()
    report.probes["open-file"] = {"state": "failed", "detail": "it was possible"}
    with pytest.raises(LayerMissing, match="open-file: it was possible"):
        report.require()


def _whole(profile: str = "strict") -> Report:
    report = Report(profile)
    for name in LAYERS:
        report.set(name, "on")
    return report


@pytest.mark.parametrize("profile", sorted(REQUIRED))
def test_a_profile_needs_each_of_its_layers(profile: str) -> None:
    _whole(profile).require()
    for name in REQUIRED[profile]:
        for state in ("off", "failed", "disabled"):
            report = _whole(profile)
            report.set(name, state)
            with pytest.raises(LayerMissing, match=name):
                report.require()
        report = _whole(profile)
        del report.layers[name]
        with pytest.raises(LayerMissing, match=name):
            report.require()
        report.set(name, "not-needed")
        report.require()


def test_the_container_profile_asks_for_less_than_strict_and_dev_for_nothing() -> None:
    assert set(REQUIRED["container"]) < set(REQUIRED["strict"])
    assert REQUIRED["dev"] == ()
    Report("dev").require()


def test_before_the_seal_only_the_seal_may_be_missing() -> None:
    report = _whole()
    del report.layers["seccomp-seal"]
    report.require(before_seal=True)
    with pytest.raises(LayerMissing, match="seccomp-seal"):
        report.require()


def test_a_layer_that_is_not_in_the_list_cannot_be_reported() -> None:
    with pytest.raises(KeyError):
        Report("dev").set("imaginary", "on")
