"""What a request cost, for its record: rows and processor time as the worker says, and the energy that this stands for.

Energy is known in one of three ways, which the record names:

    rapl       the processor packages' own counter (Linux powercap, energy_uj): what all packages took since the last
               look, divided by the time in which processors were busy, for each second that a request had one
    nvml       likewise a GPU's counter of energy, for the time in which the batch ran; beside rapl or declared
    declared   watts of a busy processor that the operator states: an estimate, and called one

What a record says its caller reads in the receipt, to the microsecond, and the share of a batch depends on everybody's
rows in it: on how long another tenant's text is, for example; that of opening, on how large the requests are that were
opened together. So shared figures are rounded at random to one of the two neighbouring powers of two, each as likely as
keeps the expectation what was measured: one request's figure tells hardly more than its order of magnitude, sums stay
true.

Trusts: the kernel's and the driver's counters, the operator's figure, the worker's word for its time, which nothing
signs. Never: gives energy where none of the three is there; states exactly what others took part in.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealgate.ambient import Entropy, monotonic_ns, random_bytes
from sealgate.protocol.frames import Took

POWERCAP = Path("/sys/class/powercap")
STAT = Path("/proc/stat")
_JIFFIES = os.sysconf("SC_CLK_TCK")
_LOOK_EVERY_NS = 1_000_000_000
_MOST_WATTS = 10_000.0  # of one processor, or one GPU: what a counter says beyond that is a slip of the counter


@dataclass(frozen=True)
class _Looked:
    """Counters at one moment."""

    at_ns: int
    energy_uj: tuple[int, ...]
    busy_s: float
    gpu_mj: int


class EnergyMeter:
    """Watts of a busy processor and of a running GPU, from counters that are looked at about once a second.

    Owned by the host's event loop. `watts_per_cpu` is what the operator declares; counters go before it.
    """

    def __init__(
        self,
        *,
        watts_per_cpu: float,
        powercap: Path = POWERCAP,
        stat: Path = STAT,
        gpu: Callable[[], int] | None = None,
        time: Callable[[], int] = monotonic_ns,
    ) -> None:
        self._stat = stat
        self._time = time
        self._gpu = gpu
        self._zones = _packages(powercap) if _readable(stat) else ()
        self._watts = watts_per_cpu
        self._gpu_watts = 0.0
        processor = "rapl" if self._zones else ("declared" if watts_per_cpu else "")
        self.source = "+".join(name for name in (processor, "nvml" if gpu is not None else "") if name)
        if self._zones:
            self._watts = 0.0  # until there are two looks
        self._last = self._look()

    def _look(self) -> _Looked:
        energy = tuple(_number(zone / "energy_uj") for zone in self._zones)
        busy_s = _busy_s(self._stat) if self._zones else 0.0
        return _Looked(self._time(), energy, busy_s, self._gpu() if self._gpu is not None else 0)

    def tick(self) -> None:
        """Look at the counters, if it is time."""
        if not (self._zones or self._gpu) or self._time() - self._last.at_ns < _LOOK_EVERY_NS:
            return
        last, now = self._last, self._look()
        self._last = now
        passed_s = (now.at_ns - last.at_ns) / 1e9
        joules = sum(later - sooner for later, sooner in zip(now.energy_uj, last.energy_uj, strict=True)) / 1e6
        busy_s = now.busy_s - last.busy_s
        # A counter that began anew, or an idle moment, says nothing: the last figure stands.
        if joules > 0 and busy_s > 0 and joules / busy_s < _MOST_WATTS:
            self._watts = joules / busy_s
        gpu_watts = (now.gpu_mj - last.gpu_mj) / 1e3 / passed_s
        if 0 <= gpu_watts < _MOST_WATTS:
            self._gpu_watts = gpu_watts

    def microjoules(self, took: Took) -> int:
        """Of one request: watts times microseconds. Its batch had the GPU to itself, so it has its share by rows."""
        energy = took.cpu_us * self._watts
        if self._gpu_watts and took.batch_rows:
            energy += took.run_us * self._gpu_watts * took.rows / took.batch_rows
        return round(energy)


class Metering:
    """The detail of an end's record."""

    def __init__(self, energy: EnergyMeter | None, *, entropy: Entropy = random_bytes) -> None:
        """None: nothing is stated."""
        self._energy = energy
        self._entropy = entropy

    def detail(self, took: Took | None) -> dict[str, str]:
        """What stands in the record; nothing where the worker said nothing."""
        if took is None or self._energy is None:
            return {}
        # One draw for both: two would tell more of the one thing that they come from.
        shared = took.batch_rows > took.rows or took.together > 1
        drawn = int.from_bytes(self._entropy(4), "big") if shared else None
        stated = {"rows": str(took.rows), "cpu_us": str(_blurred(took.cpu_us, drawn))}
        if self._energy.source:
            stated["energy_uj"] = str(_blurred(self._energy.microjoules(took), drawn))
            stated["energy_by"] = self._energy.source
        return stated

    def tick(self) -> None:
        """About once a second."""
        if self._energy is not None:
            self._energy.tick()


def _blurred(measured: int, drawn: int | None) -> int:
    """The power of two at or below what was measured, or the next one; `drawn` is of 2**32, None leaves it as it is."""
    if drawn is None or measured <= 0:
        return measured
    below = 1 << (measured.bit_length() - 1)
    return 2 * below if drawn * below < (measured - below) << 32 else below


def open_metering(*, meter: bool, watts_per_cpu: float, device: str = "cpu") -> Metering:
    """By the deployment's settings; a GPU's counter is asked where NVML (nvidia-ml-py) and a GPU are there."""
    if not meter:
        return Metering(None)
    return Metering(EnergyMeter(watts_per_cpu=watts_per_cpu, gpu=None if device == "cpu" else _gpu_counter()))


def _gpu_counter() -> Callable[[], int] | None:
    """Millijoules of all GPUs since the driver was loaded; None where that cannot be asked."""
    try:
        import pynvml  # type: ignore[import-not-found,unused-ignore]  # of nvidia-ml-py, which only a GPU needs
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        found: list[Any] = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]

        def counter() -> int:
            return sum(int(pynvml.nvmlDeviceGetTotalEnergyConsumption(one)) for one in found)

        return counter if found and counter() >= 0 else None
    except pynvml.NVMLError:
        return None


def _packages(powercap: Path) -> tuple[Path, ...]:
    """The zones of whole processor packages whose counter this process may read (since 2020: root, as a rule)."""
    with contextlib.suppress(OSError):
        zones = sorted(powercap.glob("intel-rapl:*"))
        return tuple(zone for zone in zones if zone.name.count(":") == 1 and _readable(zone / "energy_uj"))
    return ()


def _readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _busy_s(stat: Path) -> float:
    """Seconds that all processors together were busy since the machine began: all but idle and waiting for disks."""
    try:
        fields = [int(text) for text in stat.read_text().partition("\n")[0].split()[1:9]]
    except (OSError, ValueError):
        return 0.0
    return (sum(fields) - sum(fields[3:5])) / _JIFFIES
