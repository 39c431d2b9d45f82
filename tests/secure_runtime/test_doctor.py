"""`sealgate doctor`: the truth about this machine, for people and for machines."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sealgate.protocol.frames import Layer
from secure_runtime import doctor
from secure_runtime.errors import SandboxRefused


@pytest.fixture(scope="module")
def diagnosis() -> doctor.Diagnosis:
    return doctor.with_single_use(doctor.examine())


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sealgate", "doctor", *arguments], capture_output=True, text=True, check=False
    )


def test_text_names_every_layer_and_the_profile(diagnosis: doctor.Diagnosis) -> None:
    done = _run()
    assert done.returncode == (0 if diagnosis.profile in ("strict", "container") else 1)
    assert done.stderr == ""
    assert f"{diagnosis.profile}:" in done.stdout
    for name, layer in diagnosis.layers.items():
        assert any(line.split()[:2] == [name, layer.state] for line in done.stdout.splitlines()), name


def test_json_holds_the_same(diagnosis: doctor.Diagnosis) -> None:
    told = json.loads(_run("--json").stdout)
    assert told["profile"] == diagnosis.profile == doctor.best_profile()
    assert set(told["layers"]) == set(diagnosis.layers)
    assert told["probes"].keys() == diagnosis.probes.keys()
    assert told["surroundings"]["processors"].isdigit()


def test_every_layer_has_a_meaning(diagnosis: doctor.Diagnosis) -> None:
    assert set(diagnosis.layers) == set(diagnosis.meanings)
    assert all(diagnosis.meanings.values())


def test_single_use_processes_are_tried_and_decide_no_profile(
    diagnosis: doctor.Diagnosis, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = doctor.examine()
    assert {plain.layers[name].state for name in ("seccomp-zygote", "seccomp-once")} == {"not-needed"}
    assert diagnosis.layers["seccomp-zygote"].state == plain.layers["seccomp-seal"].state
    assert diagnosis.layers["seccomp-once"].state == plain.layers["seccomp-seal"].state
    assert diagnosis.missing == plain.missing
    monkeypatch.setattr(doctor, "python_paths", lambda: ("/nonexistent-place",))
    without = doctor.with_single_use(plain)
    assert without.profile == plain.profile
    assert without.layers["seccomp-once"].state == "failed"
    assert "No module named" in without.layers["seccomp-once"].detail


def test_torch_is_not_imported() -> None:
    source = "import sys; from secure_runtime.doctor import best_profile; best_profile(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def _with_missing(**missing: list[str]) -> doctor.Diagnosis:
    layers = {"user-namespace": Layer(state="failed", detail="Operation not permitted")}
    return doctor.Diagnosis(
        layers, {"open-file": Layer(state="failed", detail="it was possible")}, {}, {"dev": []} | missing
    )


@pytest.mark.parametrize(
    ("missing", "profile"),
    [
        ({"strict": [], "container": []}, "strict"),
        ({"strict": ["user-namespace"], "container": []}, "container"),
        ({"strict": ["user-namespace"], "container": ["probe open-file"]}, "dev"),
    ],
)
def test_the_strictest_profile_that_holds_is_named(missing: dict[str, list[str]], profile: str) -> None:
    diagnosis = _with_missing(**missing)
    assert diagnosis.profile == profile
    text = doctor.as_text(diagnosis)
    assert f"{profile}:" in text
    for name in missing["strict"]:
        assert name in text
        assert diagnosis.hints()[name]


def test_a_probe_that_dies_is_a_refusal_and_no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real process that ends at once stands for an interpreter that cannot start."""
    real = doctor.spawn_probe
    monkeypatch.setattr(doctor, "spawn_probe", lambda plan: real(plan, python="/bin/true"))
    with pytest.raises(SandboxRefused, match="ended without a word"):
        doctor.examine()
    assert doctor.best_profile() == "dev"


def test_a_probe_that_refuses_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "python_paths", lambda: ("/nonexistent-place",))
    with pytest.raises(SandboxRefused, match="No module named"):
        doctor.examine()


def test_no_interpreter_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.spawn_probe
    monkeypatch.setattr(doctor, "spawn_probe", lambda plan: real(plan, python="/nonexistent/python"))
    with pytest.raises(SandboxRefused, match="no process can be started"):
        doctor.examine()
