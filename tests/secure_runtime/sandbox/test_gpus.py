"""A worker that is shown a GPU: what its driver needs works in every situation, and nothing else does.

Stand-ins for a GPU's nodes are two devices that every machine has: they are opened, mapped and asked as NVIDIA's are,
and answer every ioctl that reaches them with ENOTTY. A filter's denial reads EPERM.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sealgate.protocol.frames import BootFailed
from tests.secure_runtime.sandbox import test_red_team as red

NODES = ["/dev/zero", "/dev/full"]
SITUATIONS = ["here", "user", "user-no-namespaces", "root-no-admin", "root-no-namespaces"]
MEMORY = 1 << 30

context = red.context  # the red team's targets

DRIVER = """
import ctypes, errno, fcntl, mmap, os, threading
from secure_runtime.worker import sandbox

def tried(call):
    try:
        return f"reached {call()}"
    except OSError as error:
        return errno.errorcode[error.errno]

def name_a_thread():
    hold = threading.Event()
    thread = threading.Thread(target=hold.wait)
    thread.start()
    try:
        with open(f"/proc/self/task/{thread.native_id}/comm", "r+") as file:
            file.write("cuda-EvtHandlr")
    finally:
        hold.set()
        thread.join()

def memory_file():
    descriptor = os.memfd_create("shared")
    os.ftruncate(descriptor, 4096)
    return os.write(descriptor, b"x")

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p

def mapped(node):  # Python's mmap would duplicate the descriptor
    place = libc.mmap(None, ctypes.c_size_t(4096), 3, mmap.MAP_SHARED, node, ctypes.c_long(0))
    if place == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    return 4096

def private(size, **how):
    return len(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, **how))

def all_of_it():
    node = os.open("/dev/zero", os.O_RDWR)
    return {
        "map": tried(lambda: mapped(node)),
        "control": tried(lambda: fcntl.ioctl(node, 0xC020462A, bytes(32))),
        "initialize": tried(lambda: fcntl.ioctl(node, 0x30000001, bytes(32))),
        "uvm": tried(lambda: fcntl.ioctl(node, 37, bytes(32))),
        "name": tried(name_a_thread),
        "memory file": tried(memory_file),
        "reserve": tried(lambda: private(1 << 40, prot=0)),
        "take over limit": tried(lambda: private(1 << 31)),
        "terminal": tried(lambda: fcntl.ioctl(node, 0x5412, b"x")),
        "loop device": tried(lambda: fcntl.ioctl(node, 0x4C00, bytes(32))),
        "another node": tried(lambda: os.open("/dev/null", os.O_RDWR)),
        "a new file": tried(lambda: os.open("/dev/shm/x", os.O_RDWR | os.O_CREAT)),
        "own memory": tried(lambda: os.open("/proc/self/mem", os.O_RDWR)),
        "another process": tried(lambda: os.open(f"/proc/{os.getppid()}/cmdline", os.O_RDONLY)),
        "all processes": tried(lambda: os.listdir("/proc")),
        "own score": tried(lambda: os.open("/proc/self/oom_score_adj", os.O_RDWR)),
        "a model": tried(lambda: os.open(plan["models_dir"] + "/weights", os.O_RDWR)),
    }
"""
WORKS = {
    "map": "reached 4096",
    "control": "ENOTTY",
    "initialize": "ENOTTY",
    "uvm": "ENOTTY",
    "name": "reached None",
    "memory file": "reached 1",
    "reserve": f"reached {1 << 40}",
}
TELL_BOTH = (
    DRIVER
    + """
loading = all_of_it()
kept, stray = os.open("/dev/full", os.O_RDWR), os.open("/dev/urandom", os.O_RDONLY)
sandbox.seal(report)
still = [tried(lambda: os.fstat(one).st_size) for one in (kept, stray)]
tell([loading, all_of_it(), still, report.layers, report.probes])
"""
)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_driver_works_and_nothing_else_does(
    boot_as: Callable[..., Any], shared_folder: Path, situation: str
) -> None:
    profile = "container" if situation.endswith("no-namespaces") else "strict"
    ended = boot_as(situation, TELL_BOTH, profile=profile, gpus=NODES, memory_limit_bytes=MEMORY,
                    models_dir=str(shared_folder / "models"))  # fmt: skip
    loading, serving, still, layers, probes = ended.must()
    for told in (loading, serving):
        assert {name: told[name] for name in WORKS} == WORKS
        assert told["take over limit"] == "ENOMEM"
        assert {told["terminal"], told["loop device"]} == {"EPERM"}
        denied = {told[name] for name in told if name not in WORKS and name != "take over limit"}
        assert denied <= {"EPERM", "EACCES", "ENOENT", "EROFS"}
    assert still == ["reached 0", "EBADF"]  # what is open to the driver stays, what is not is closed
    assert layers["no-gpu-driver"] == {
        "state": "disabled",
        "detail": "models run on a GPU, whose driver the worker speaks to by /dev/zero, /dev/full",
    }
    not_denied = {name for name, probe in probes.items() if probe["state"] != "on"}
    assert not_denied == {"stat-file", "map-file", "memory-file"}
    assert {probes[name]["state"] for name in not_denied} == {"disabled"}


MAY = {
    "memory_file": "the driver shares memory with itself",
    "allocate_over_limit": "what is shared is bounded by a control group alone",
}


@pytest.mark.parametrize("situation", ["here", "user-no-namespaces"])
def test_an_attacker_gets_no_further(boot_as: Callable[..., Any], context: dict[str, Any], situation: str) -> None:
    """Every quiet attempt of the red team, after the seal."""
    source = red.SOURCE.read_text().split('if __name__ == "__main__"')[0]
    seal = "\nfrom secure_runtime.worker import sandbox\nsandbox.seal(report)\n"
    payload = f"{source}{seal}tell(run({red.QUIET!r}, {context!r}))"
    told = boot_as(situation, payload, gpus=NODES, memory_limit_bytes=MEMORY,
                   models_dir=str(Path(context["model"]).parent)).must()  # fmt: skip
    through = {name: words for name, words in told.items() if not words.startswith("refused")}
    assert set(through) == set(MAY), through


def test_without_a_gpu_the_layer_is_on(boot: Callable[..., Any]) -> None:
    layers = boot("tell(report.layers)").must()
    assert layers["no-gpu-driver"]["state"] == "on"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpus": ["/dev/nvidia-that-is-not"]}, "cannot be shown to the worker: No such file or directory"),
        ({"gpus": ["/etc/hostname"]}, "/etc/hostname cannot be shown to the worker: it is no device"),
        ({"gpus": NODES, "single_use": True}, "a fork has no GPU"),
    ],
)
def test_a_plan_that_cannot_be_met_is_refused(boot: Callable[..., Any], changes: dict[str, Any], words: str) -> None:
    refusal = boot("tell(1)", **changes).refusal
    assert isinstance(refusal, BootFailed)
    assert refusal.reason == "sandbox-refused"
    assert words in refusal.detail
