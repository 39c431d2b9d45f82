"""What a worker is bounded to, with torch for the CPU and with torch for CUDA."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from secure_runtime.host import spawn
from secure_runtime.host.spawn import memory_limit, torch_for_cuda
from secure_runtime.limits import CUDA_LIBRARIES_BYTES


def test_the_installed_torch_is_told_right() -> None:
    assert torch_for_cuda() == (torch.version.cuda is not None)


@pytest.mark.parametrize(("library", "cuda"), [("libtorch_cuda.so", True), ("libtorch_cpu.so", False)])
def test_what_libraries_for_cuda_take_is_no_room_for_requests(
    library: str, cuda: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / library).touch()
    found = ModuleSpec("torch", None, is_package=True)
    found.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(spawn.importlib.util, "find_spec", {"torch": found}.get)
    assert memory_limit(4096, gpus=()) == (4 << 30) + (CUDA_LIBRARIES_BYTES if cuda else 0)
    assert memory_limit(4096, gpus=("/dev/nvidia0",)) == 4 << 30, "beside a GPU memory is bounded, not addresses"


def test_without_torch_nothing_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn.importlib.util, "find_spec", lambda name: None)
    assert memory_limit(1, gpus=()) == 1 << 20
