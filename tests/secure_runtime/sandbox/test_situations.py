"""In each situation the report says truthfully what holds, and a profile that does not hold refuses to start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secure_runtime.worker.sandbox.report import LAYERS, REQUIRED

SEAL = """
from secure_runtime.worker import sandbox
sandbox.seal(report)
tell({"layers": report.layers, "probes": report.probes,
      "missing": {name: report.missing(profile=name) for name in ("strict", "container")}})
"""
NAMESPACES = [name for name in LAYERS if name.endswith("-namespace")]
OFFERED = ["seccomp-zygote", "seccomp-once"]  # only where single-use processes are: test_offspring.py
EVERYWHERE = [name for name in REQUIRED["container"] if name not in ("other-uid", *OFFERED)]

ALL = ["here", "user", "user-no-namespaces", "root-no-admin", "root-no-namespaces"]


@pytest.fixture(scope="module")
def told_in(boot_as: Callable[..., Any]) -> Callable[[str], Any]:
    """What a sealed payload reports in a situation, asked once."""
    known: dict[str, Any] = {}

    def ask(situation: str) -> Any:
        if situation not in known:
            known[situation] = boot_as(situation, SEAL)
        return known[situation]

    return ask


@pytest.mark.parametrize("situation", ALL)
def test_what_needs_no_privilege_holds_everywhere(told_in: Callable[[str], Any], situation: str) -> None:
    told = told_in(situation).must()
    assert {name: told["layers"][name]["state"] for name in EVERYWHERE} == dict.fromkeys(EVERYWHERE, "on")
    assert {told["layers"][name]["state"] for name in OFFERED} == {"not-needed"}
    assert told["missing"]["container"] == []


@pytest.mark.parametrize("situation", ALL)
def test_every_layer_is_reported(told_in: Callable[[str], Any], situation: str) -> None:
    assert set(told_in(situation).must()["layers"]) == set(LAYERS)


@pytest.mark.parametrize("situation", ALL)
def test_every_probe_is_denied(told_in: Callable[[str], Any], situation: str) -> None:
    probes = told_in(situation).must()["probes"]
    assert len(probes) >= 23
    assert {name: entry for name, entry in probes.items() if entry["state"] not in ("on", "not-needed")} == {}


@pytest.mark.parametrize("situation", ["here", "user", "root-no-admin"])
def test_strict_holds_where_user_namespaces_are_allowed(told_in: Callable[[str], Any], situation: str) -> None:
    told = told_in(situation).must()
    assert told["missing"]["strict"] == []
    assert {name: told["layers"][name]["state"] for name in NAMESPACES} == dict.fromkeys(NAMESPACES, "on")


@pytest.mark.parametrize("situation", ["user-no-namespaces", "root-no-namespaces"])
def test_without_namespaces_the_report_says_so(told_in: Callable[[str], Any], situation: str) -> None:
    told = told_in(situation).must()
    assert set(NAMESPACES) <= set(told["missing"]["strict"])
    assert not any(told["layers"][name]["state"] == "on" for name in NAMESPACES)
    assert told["layers"]["private-root"]["state"] != "on"


@pytest.mark.parametrize("situation", ["root-no-admin", "root-no-namespaces"])
def test_root_in_a_container_leaves_root(told_in: Callable[[str], Any], situation: str) -> None:
    ended = told_in(situation)
    assert ended.must()["layers"]["other-uid"] == {"state": "on", "detail": "uid 65534"}
    assert ended.host["other-uid"].state == "on"


@pytest.mark.parametrize("situation", ALL)
def test_the_host_reads_the_same(told_in: Callable[[str], Any], situation: str) -> None:
    ended = told_in(situation)
    layers = ended.must()["layers"]
    for name in ("no-capabilities", "no-new-privileges", "not-dumpable", "pid-namespace"):
        assert (ended.host[name].state == "on") == (layers[name]["state"] == "on"), name
    for name in set(NAMESPACES) & set(ended.host):
        assert (ended.host[name].state == "on") == (layers[name]["state"] == "on"), name
    assert ended.host["seccomp"].state == "on"
    assert ended.host["not-traced"].state == "on"


@pytest.mark.parametrize("situation", ["user-no-namespaces", "root-no-namespaces"])
def test_strict_refuses_to_start_without_namespaces(boot_as: Callable[..., Any], situation: str) -> None:
    ended = boot_as(situation, "tell('started')", profile="strict")
    assert ended.told is None
    assert ended.refusal.reason == "sandbox-refused"
    assert "user-namespace" in ended.refusal.detail
    assert ended.refusal.layers["user-namespace"].state in ("failed", "off")
    assert ended.code == 1


@pytest.mark.parametrize("situation", ["user-no-namespaces", "root-no-namespaces"])
def test_container_starts_without_namespaces(boot_as: Callable[..., Any], situation: str) -> None:
    assert boot_as(situation, SEAL, profile="container").must()["missing"]["container"] == []


@pytest.mark.root
def test_a_worker_that_keeps_root_is_refused(boot_as: Callable[..., Any]) -> None:
    ended = boot_as("root-no-admin", "tell('started')", profile="container", uid=0, gid=0)
    assert ended.told is None
    assert "other-uid" in ended.refusal.detail


def test_an_unknown_profile_is_refused(boot: Callable[..., Any]) -> None:
    ended = boot("tell('started')", profile="lenient")
    assert ended.told is None
    assert "lenient" in ended.refusal.detail


@pytest.mark.root
def test_bundles_that_only_root_may_read_are_readable_in_the_sandbox(
    boot_as: Callable[..., Any], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir(mode=0o700)
    (models / "weights").write_text("weights")
    (models / "weights").chmod(0o600)
    told = boot_as("here", "import os; tell([open(plan['models_dir'] + '/weights').read(), os.geteuid()])",
                   profile="strict", models_dir=str(models)).must()  # fmt: skip
    assert told[0] == "weights"


def test_a_user_who_may_not_read_the_bundles_is_told_so(boot_as: Callable[..., Any], tmp_path: Path) -> None:
    ended = boot_as("root-no-admin", "tell('started')", models_dir=str(tmp_path))
    assert ended.told is None
    assert str(tmp_path) in ended.refusal.detail or "may not" in ended.refusal.detail


def test_the_machines_name_is_not_seen(boot_as: Callable[..., Any]) -> None:
    assert boot_as("user", "import os; tell(os.uname().nodename)").must() == "worker"
