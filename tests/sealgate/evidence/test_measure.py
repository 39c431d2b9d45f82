"""Measurements: made again from the files by another way, the same for host and worker, other as soon as a byte is."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sealgate.evidence import measure
from sealgate.protocol.frames import BootPlan, ModelFacts
from secure_runtime.host.spawn import worker_environment

ROOT = Path(__file__).parents[3]
PLAN = BootPlan(
    profile="strict",
    audience="sealgate.test:8443",
    models_dir="/var/lib/models",
    publishers_file="/var/lib/publishers.toml",
    sys_path=("/opt/python",),
    uid=1,
    gid=1,
    torch_threads=1,
    memory_limit_bytes=1 << 30,
)


def listed_by_shell() -> str:
    """The code's digest by find, sha256sum and sort, over the same list of lines."""
    names = " -o ".join(f"-name '*{suffix}'" for suffix in (".py", ".sql", ".cedar", ".cedarschema", ".toml", ".txt"))
    script = (
        f"for p in sealgate secure_runtime; do find $p -type f \\( {names} \\) -not -path '*__pycache__*' "
        "-exec sha256sum {} +; done | awk '{print $2 \" \" $1}' | LC_ALL=C sort | sha256sum | cut -d' ' -f1"
    )
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_code_is_measured_as_other_tools_measure_it() -> None:
    for _ in range(3):  # somebody may be saving a file of the checkout just now
        before, seen, after = listed_by_shell(), measure.measure_code(), listed_by_shell()
        if before == after:
            assert seen == before
            return
    pytest.fail("the checkout did not stand still")


def test_a_process_without_site_packages_measures_the_same_code() -> None:
    """As the worker is started: isolated, without site, with the real directories on its path."""
    script = (
        f"import sys; sys.path += {[str(ROOT), *(path for path in sys.path if 'site-packages' in path)]!r}\n"
        "from sealgate.evidence.measure import measure_code; print(measure_code())"
    )
    for _ in range(3):
        before = measure.measure_code()
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-B", "-c", script], capture_output=True, text=True, check=True
        )
        if before == measure.measure_code():
            assert done.stdout.strip() == before
            return
    pytest.fail("the checkout did not stand still")


def test_any_changed_added_or_renamed_source_is_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "measured_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    first = measure.measure_code(["measured_package"])
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.cpython.py").write_text("compiled")
    (package / "notes.md").write_text("not code")
    assert measure.measure_code(["measured_package"]) == first
    seen = {first}
    (package / "a.py").write_text("x = 2\n")
    seen.add(measure.measure_code(["measured_package"]))
    (package / "b.py").write_text("x = 2\n")
    seen.add(measure.measure_code(["measured_package"]))
    shutil.move(package / "b.py", package / "c.py")
    seen.add(measure.measure_code(["measured_package"]))
    assert len(seen) == 4


def test_packages_count_by_what_their_installer_wrote_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "measured_thing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: measured-thing\nVersion: 1.0\n")
    record = "measured_thing.py,sha256=abc,3\n__pycache__/measured_thing.cpython-311.pyc,,\n"
    (info / "RECORD").write_text(record)
    monkeypatch.syspath_prepend(str(tmp_path))
    first = measure.measure_packages(["measured-thing"])
    (info / "RECORD").write_text(record.replace("cpython-311.pyc,,", "cpython-312.pyc,,"))
    assert measure.measure_packages(["measured-thing"]) == first
    (info / "RECORD").write_text(record.replace("abc", "abd"))
    assert measure.measure_packages(["measured-thing"]) != first
    assert measure.measure_packages(["no-such-thing-at-all"]) == hashlib.sha256(b"").hexdigest()


CHANGES: dict[str, Any] = {"profile": "dev", "torch_threads": 2, "key_active_s": 5, "require_audit": True, "uid": 7}


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_of_the_plan_changes_the_configuration(name: str) -> None:
    changed = msgspec.structs.replace(PLAN, **{name: CHANGES[name]})
    assert measure.measure_configuration(changed) != measure.measure_configuration(PLAN)


def test_paths_key_numbers_and_keys_are_no_part_of_the_configuration() -> None:
    changed = msgspec.structs.replace(
        PLAN, models_dir="/m", publishers_file="/p", sys_path=(), model_keys={"m": "a2V5"}, avoid_key_ids=(1, 2)
    )
    assert measure.measure_configuration(changed) == measure.measure_configuration(PLAN)


def test_the_environment_is_what_a_process_really_has() -> None:
    environment = worker_environment(PLAN)
    script = "import json, os; print(json.dumps(dict(os.environ)))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    assert measure.measure_environment(seen) == measure.measure_environment(environment)
    assert measure.measure_environment({**seen, "LD_PRELOAD": "x"}) != measure.measure_environment(environment)


def test_what_is_served_is_measured_whatever_its_order() -> None:
    def facts(name: str, certificate: str) -> ModelFacts:
        return ModelFacts(
            name=name,
            version="1",
            model_digest="a" * 64,
            certificate_digest=certificate * 64,
            epsilon_micro=1,
            delta="0.1",
            privacy_unit="example",
            sensitivity="personal",
            purposes=(),
        )

    one, two = facts("one", "b"), facts("two", "b")
    assert measure.measure_models([one, two]) == measure.measure_models([two, one])
    assert len({measure.measure_models(given) for given in ([one], [one, two], [one, facts("two", "c")], [])}) == 4


def test_everything_of_a_host_is_stated(tmp_path: Path) -> None:
    publishers = tmp_path / "publishers.toml"
    plan = msgspec.structs.replace(PLAN, publishers_file=str(publishers))
    without = measure.measure_host(plan, environment={})
    publishers.write_text("keys")
    found = measure.measure_host(plan, environment={})
    assert set(found) == {"code", "host-code", "packages", "interpreter", "configuration", "environment", "publishers"}
    assert found["publishers"] == hashlib.sha256(b"keys").hexdigest() != without["publishers"]
