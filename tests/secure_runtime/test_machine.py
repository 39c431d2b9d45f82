"""What `sealgate doctor` says of processors and GPUs, from made-up machines and from this one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from secure_runtime import machine


def made_up(folder: Path, *, flags: str = "", gpus: tuple[str, ...] = (), driver: str = "") -> dict[str, str]:
    proc, dev = folder / "proc", folder / "dev"
    (proc / "driver" / "nvidia").mkdir(parents=True)
    dev.mkdir()
    (proc / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n")
    (proc / "meminfo").write_text("MemTotal:       16777216 kB\n")
    for name in (*gpus, "nvidiactl", "null"):
        (dev / name).touch()
    if driver:
        (proc / "driver" / "nvidia" / "version").write_text(
            f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}\n"
        )
    return machine.machine_facts(proc=proc, dev=dev)


def test_a_machine_without_a_gpu(tmp_path):
    found = made_up(tmp_path, flags="avx2 avx512_vnni amx_int8")
    assert (found["gpus"], found["device"], found["memory"]) == ("none", "cpu", "16.0 GiB")
    assert found["whole-number layers (int8)"] == "fast: AMX"


def test_a_processor_without_whole_number_instructions(tmp_path):
    assert made_up(tmp_path, flags="avx2")["whole-number layers (int8)"].startswith("slow")


@pytest.mark.parametrize(
    ("built", "said"), [("", "install a build of torch"), ("12.8", "nvidia0, nvidia1, driver 570.1")]
)
def test_gpus_and_what_torch_lacks_for_them(tmp_path, monkeypatch, built, said):
    monkeypatch.setattr(machine, "_cuda_of_torch", lambda: built)
    found = made_up(tmp_path, gpus=("nvidia0", "nvidia1"), driver="570.1")
    assert said in found["gpus"]
    assert found["device"] == "cpu"  # files are no devices
    assert ("CUDA 12.8" in found["torch"]) == bool(built)


@pytest.fixture
def dev(tmp_path, monkeypatch):
    """Links to devices stand for devices."""
    monkeypatch.setattr(machine, "_cuda_of_torch", lambda: "12.8")
    folder = tmp_path / "nodes"
    folder.mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"):
        (folder / name).symlink_to("/dev/null")
    return folder


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_a_worker_is_shown_all_nodes_of_all_gpus(dev, device):
    names = [Path(node).name for node in machine.gpu_nodes(device, dev=dev)]
    assert names == ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia0", "nvidia1"]
    assert "no-gpu-driver is off" in machine.machine_facts(dev=dev)["device"]


def test_a_worker_on_the_processor_is_shown_none(dev, monkeypatch):
    assert machine.gpu_nodes("cpu", dev=dev) == ()
    monkeypatch.setattr(machine, "_cuda_of_torch", lambda: "")
    assert machine.gpu_nodes("auto", dev=dev) == ()


@pytest.mark.parametrize("lacking", ["nvidiactl", "nvidia-uvm"])
def test_a_set_of_nodes_that_is_not_whole_is_none(dev, lacking):
    (dev / "nvidia-uvm-tools").unlink()
    assert len(machine.gpu_nodes("auto", dev=dev)) == 4
    (dev / lacking).unlink()
    (dev / lacking).touch()
    assert machine.gpu_nodes("auto", dev=dev) == ()


def test_a_driver_whose_devices_were_not_passed_on(tmp_path):
    assert "pass /dev/nvidia*" in made_up(tmp_path, driver="570.1")["gpus"]


def test_this_machine_as_torch_itself_sees_it():
    found = machine.machine_facts()
    assert found["processors"] == str(len(os.sched_getaffinity(0)))
    assert torch.__version__.split("+")[0] in found["torch"]
    assert machine._cuda_of_torch() == (torch.version.cuda or "")


def test_what_cannot_be_read_is_unknown(tmp_path):
    found = machine.machine_facts(proc=tmp_path / "none", dev=tmp_path / "none")
    assert (found["memory"], found["gpus"]) == ("unknown", "none")
