"""What this machine has for models to compute on, and what they would use: read from files, so torch is not imported.

Trusts: the kernel's /proc and /dev, and the installed package's own words. Never: opens a device.
"""

from __future__ import annotations

import ast
import os
import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from secure_runtime.limits import MAX_GPUS, MAX_PROC_BYTES

_PROC, _DEV = Path("/proc"), Path("/dev")
_GPU = re.compile(r"nvidia[0-9]{1,3}\Z")
_CUDA = re.compile(r"^cuda(?:\s*:[^=]+)?\s*=\s*(.+)$", re.MULTILINE)
_WHOLE = (("amx_int8", "AMX"), ("avx512_vnni", "AVX-512 VNNI"), ("avx_vnni", "AVX VNNI"))


def gpu_nodes(device: str, *, dev: Path = _DEV) -> tuple[str, ...]:
    """The device nodes that a worker needs for a GPU: all of the machine's, because CUDA counts them by its own order.

    () where models run on the CPU: `device` says so, torch was not built for CUDA, or the machine has no whole set.
    """
    if device == "cpu" or not _cuda_of_torch():
        return ()
    gpus = [dev / name for name in _gpus(dev)]
    control, tools = (dev / "nvidiactl", dev / "nvidia-uvm"), dev / "nvidia-uvm-tools"
    if not gpus or not all(node.is_char_device() for node in (*control, *gpus)):
        return ()
    return tuple(map(str, (*control, *((tools,) if tools.is_char_device() else ()), *gpus)))


def machine_facts(*, proc: Path = _PROC, dev: Path = _DEV) -> dict[str, str]:
    """Names and words, for `sealgate doctor`."""
    gpus, built = _gpus(dev), _cuda_of_torch()
    return {
        "torch": _torch(built),
        "processors": str(len(os.sched_getaffinity(0))),
        "memory": _memory(proc),
        "whole-number layers (int8)": _whole_numbers(proc),
        "gpus": _gpu_words(gpus, _driver(proc), built),
        "device": _used(gpu_nodes("auto", dev=dev)),
    }


def _torch(built: str) -> str:
    try:
        return f"{version('torch')} ({f'built for CUDA {built}' if built else 'built for processors alone'})"
    except PackageNotFoundError:
        return "not installed; a runtime needs it: pip install '.[server]' in a checkout of Sealgate"


def _cuda_of_torch() -> str:
    """The version of CUDA that torch was built for; "" for none. torch/version.py says it in a line."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    found = _CUDA.search(_read(Path(spec.origin).with_name("version.py")))
    try:
        value = ast.literal_eval(found.group(1).strip()) if found else None
    except (ValueError, SyntaxError):
        return ""
    return value if isinstance(value, str) else ""


def _memory(proc: Path) -> str:
    found = re.search(r"^MemTotal:\s+([0-9]+) kB$", _read(proc / "meminfo"), re.MULTILINE)
    return f"{int(found.group(1)) / 1024 / 1024:.1f} GiB" if found else "unknown"


def _whole_numbers(proc: Path) -> str:
    found = re.search(r"^flags\s*:(.*)$", _read(proc / "cpuinfo"), re.MULTILINE)
    flags = set(found.group(1).split()) if found else set()
    named = next((name for flag, name in _WHOLE if flag in flags), "")
    return f"fast: {named}" if named else "slow: the processor names no instruction for them; bf16 costs nothing"


def _gpus(dev: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(dev) if _GPU.match(name))[:MAX_GPUS]
    except OSError:
        return []


def _driver(proc: Path) -> str:
    found = re.search(r"Kernel Module(?: for \S+)?\s+([0-9.]+)", _read(proc / "driver" / "nvidia" / "version"))
    return found.group(1) if found else ""


def _gpu_words(gpus: list[str], driver: str, built: str) -> str:
    if not gpus:
        if driver:
            return f"driver {driver} without a device: pass /dev/nvidia* into this container"
        return "none"
    named = f"{', '.join(gpus)}, driver {driver or 'unknown'}"
    return named if built else f"{named}; torch cannot use them: install a build of torch for CUDA"


def _used(nodes: tuple[str, ...]) -> str:
    if nodes:
        return f'a GPU (device = "auto"): workers are shown {", ".join(nodes)}, and the layer no-gpu-driver is off'
    return "cpu"


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_PROC_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
