"""Step 1 of the worker: whatever is wrong with one folder of the models directory, the other models are served."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from sealgate.certificate.audits import PROBES
from sealgate.certificate.manifest import Manifest
from sealgate.certificate.schema import Audit, AuditProbe
from sealgate.protocol.frames import BootPlan, Hello, ModelRefusal, WorkerFacts, encode_frame
from secure_runtime.limits import MAX_BUNDLES, MAX_REFUSALS
from secure_runtime.models.bundle import LoadedModel, captured
from secure_runtime.worker import main
from secure_runtime.worker.engine.lookup import LoadedModels
from secure_runtime.worker.memory import memory_used
from tests.sealgate.certificate.conftest import Forge, a_manifest
from tests.secure_runtime.models.conftest import write_publishers


def plan(folder: Path, forge: Forge) -> BootPlan:
    return BootPlan(
        profile="dev",
        audience="a",
        models_dir=str(folder / "models"),
        publishers_file=str(write_publishers(folder / "publishers.toml", forge)),
        sys_path=(),
        uid=0,
        gid=0,
        torch_threads=1,
        memory_limit_bytes=0,
    )


def load(folder: Path, forge: Forge) -> tuple[dict[str, LoadedModel], dict[str, str]]:
    """What was loaded, and why the rest was refused; what can be loaded can be told in a Hello."""
    loaded, refused = main._load_models(plan(folder, forge), "cpu")
    hello(tuple(model.facts for model in loaded.values()), refused)
    return loaded, {refusal.name: refusal.reason for refusal in refused}


def hello(models: Any, refused: tuple[ModelRefusal, ...]) -> None:
    facts = WorkerFacts(
        instance="1" * 32,
        completion_key=b"k" * 32,
        key_configs=b"k" * 4096,
        models=models,
        refused=refused,
        profile="dev",
        layers={},
        probes={},
        device="cpu",
        measurements={},
    )
    encode_frame(Hello(facts=facts))


def named(forge: Forge, name: str, **changes: Any) -> Forge:
    manifest: Manifest = msgspec.structs.replace(a_manifest(), name=name, **changes)
    made = Forge(key=forge.key, manifest=manifest, bundle_name=name)
    return made.claim(model=name)


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    forge = Forge()
    forge.write(tmp_path / "models" / "toy")
    return forge


def test_a_folder_whose_name_is_no_text_does_not_silence_the_worker(forge: Forge, tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path / "models") + b"/\xff\xfe")
    loaded, refused = load(tmp_path, forge)
    assert list(loaded) == ["toy"]
    assert refused == {"\ufffd\ufffd": "missing-file"}


def test_a_bundle_that_ends_in_another_error_is_refused_alone(
    forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(forge, "large").write(tmp_path / "models" / "large")
    true_load = main.load_bundle

    def load_bundle(directory: Path, *given: Any, **more: Any) -> LoadedModel:
        if directory.name == "large":
            raise MemoryError
        return true_load(directory, *given, **more)

    monkeypatch.setattr(main, "load_bundle", load_bundle)
    loaded, refused = load(tmp_path, forge)
    assert list(loaded) == ["toy"]
    assert refused == {"large": "load-failed"}


def test_models_that_say_more_than_a_frame_can_hold_are_refused(forge: Forge, tmp_path: Path) -> None:
    purposes = tuple(f"{number:03d}" + "\U0001f512" * 125 for number in range(64))  # 32 KiB
    for number in range(9):
        named(forge, f"a-{number}", purposes=purposes).write(tmp_path / "models" / f"a-{number}")
    loaded, refused = load(tmp_path, forge)
    assert 2 <= len(loaded) < 9
    assert set(refused.values()) == {"too-many-bundles"}


def test_refused_folders_without_number_are_named_up_to_a_bound(forge: Forge, tmp_path: Path) -> None:
    for number in range(MAX_BUNDLES + MAX_REFUSALS):
        (tmp_path / "models" / f"{number:04d}{'x' * 200}").mkdir()
    _, refused = load(tmp_path, forge)
    assert len(refused) == MAX_REFUSALS
    assert set(refused.values()) == {"missing-file", "too-many-bundles"}


def test_a_deployment_may_demand_that_training_was_audited(tmp_path):
    audited = named(Forge(), "audited")
    probes = tuple(AuditProbe(name=name, verdict="held", found="0 of 1") for name in PROBES["lanes-and-replay"])
    audited.claim(
        audit=Audit(
            method="lanes-and-replay",
            epsilon_lower_micro=1000,
            confidence_ppm=999_000,
            canaries=20_000,
            steps=60,
            probes=probes,
            code_digest=audited.certificate.environment.code_digest,
        )
    )
    audited.write(tmp_path / "models" / "audited")
    named(audited, "plain").write(tmp_path / "models" / "plain")
    lenient = plan(tmp_path, audited)
    loaded, refused = main._load_models(lenient, "cpu")
    assert {name: model.facts.audited for name, model in loaded.items()} == {"audited": True, "plain": False}
    assert refused == ()
    loaded, refused = main._load_models(msgspec.structs.replace(lenient, require_audit=True), "cpu")
    assert set(loaded) == {"audited"}
    assert [(refusal.name, refusal.reason) for refusal in refused] == [("plain", "audit-missing")]


def versioned(forge: Forge, version: str) -> Forge:
    made = Forge(key=forge.key, manifest=msgspec.structs.replace(a_manifest(), version=version))
    return made.claim(version=version)


def test_versions_are_loaded_side_by_side_where_the_folders_say_so(tmp_path: Path) -> None:
    forge = Forge()
    models = tmp_path / "models"
    for version in ("2", "10"):
        versioned(forge, version).write(models / "toy" / version)
    versioned(forge, "3").write(models / "toy" / "4")
    versioned(forge, "5").write(models / "toy-copy")
    loaded, refused = load(tmp_path, forge)
    assert list(loaded) == ["toy/2", "toy/10"]
    assert refused == {"toy/4": "folder-mismatch", "toy-copy": "name-taken"}
    lookup = LoadedModels(loaded)
    assert lookup.versions("toy") == ("2", "10")
    assert [model.facts.version for model in lookup] == ["2", "10"]
    for asked, found in (("", "10"), ("2", "2"), ("10", "10")):
        model = lookup.find("toy", asked)
        assert model is not None
        assert model.facts.version == found
    assert lookup.find("toy", "3") is None
    assert lookup.find("other", "") is None


def test_only_what_the_plan_names_is_loaded_and_what_takes_too_much_memory_is_not(
    forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(forge, "other").write(tmp_path / "models" / "other")
    one = msgspec.structs.replace(plan(tmp_path, forge), bundles=("toy",))
    with monkeypatch.context() as patch:
        patch.setattr(main, "memory_used", lambda: SimpleNamespace(since=lambda _before: 12_345))
        loaded, refused = main._load_models(one, "cpu")
    assert (list(loaded), refused) == (["toy"], ())
    assert loaded["toy"].memory_bytes == 12_345
    small = msgspec.structs.replace(plan(tmp_path, forge), memory_limits={"toy": 1, "other": 1 << 40})
    loaded, refused = main._load_models(small, "cpu")
    assert list(loaded) == ["other"]
    assert [(one.name, one.reason) for one in refused] == [("toy", "memory-limit")]


def test_memory_that_was_taken_is_seen() -> None:
    before = memory_used()
    held = [bytes(1 << 20) for _ in range(32)]
    took = memory_used().since(before)
    assert 24 << 20 <= took <= 512 << 20
    assert len(held) == 32


def test_a_manifests_own_sizes_are_run_before_a_model_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge = Forge(manifest=msgspec.structs.replace(a_manifest(), warm_up=(3, 4096)))
    forge.write(tmp_path / "models" / "toy")
    seen: set[int] = set()
    predict = LoadedModel.predict

    def watched(self: LoadedModel, inputs: Any) -> Any:
        seen.update(len(values) for values in inputs.values())
        return predict(self, inputs)

    monkeypatch.setattr(LoadedModel, "predict", watched)
    loaded, _ = load(tmp_path, forge)
    assert list(loaded) == ["toy"]
    assert {3, 4096} <= seen


@pytest.mark.parametrize("sizes", [(0,), (4097,), tuple(range(1, 10))], ids=str)
def test_sizes_to_warm_up_with_are_bounded(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    forge = Forge(manifest=msgspec.structs.replace(a_manifest(), warm_up=sizes))
    forge.write(tmp_path / "models" / "toy")
    assert load(tmp_path, forge) == ({}, {"toy": "manifest-inconsistent"})


@pytest.mark.parametrize(
    ("device", "fails", "said"),
    [
        ("cpu", "", "not captured: this worker computes on the cpu, and graphs are for GPUs"),
        ("cuda:0", "a size depends on data\nmore", "not captured, runs as usual: a size depends on data"),
        ("cuda:0", "", "captured for 1, 4, 16, 64, 256 rows"),
    ],
)
def test_what_comes_of_capturing_a_model_is_said_and_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, fails: str, said: str
) -> None:
    """Loaded on the processor all the same: there, capturing runs the model itself, padded."""
    forge = Forge()
    forge.write(tmp_path / "models" / "toy")
    model, _ = load(tmp_path, forge)[0]["toy"], None
    if fails:

        def fail() -> None:
            raise RuntimeError(fails)

        monkeypatch.setattr(model.predictor, "capture_graphs", fail)
    rows = {"features": torch.tensor([[0.1, -0.2, 0.3]] * 3)}
    wanted = model.predict(rows)
    found = captured(model, device=device)
    assert found.graphs == said
    assert all(torch.allclose(values, found.predict(rows)[name]) for name, values in wanted.items())


def test_only_models_that_are_named_are_captured(tmp_path: Path) -> None:
    forge = Forge()
    forge.write(tmp_path / "models" / "toy")
    for names, told in (((), False), (("other",), False), (("toy",), True)):
        wanted = msgspec.structs.replace(plan(tmp_path, forge), cuda_graphs=names)
        loaded, _ = main._load_models(wanted, "cpu")
        assert bool(loaded["toy"].graphs) is told
