"""Energy and processor time of a request: from counters as Linux gives them, or as the operator declares, or not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sealgate.protocol.frames import Took
from secure_runtime.host.metering import EnergyMeter, Metering, open_metering

TOOK = Took(open_us=100, run_us=2_000, seal_us=50, cpu_us=1_000, rows=2, batch_rows=8)
ALONE = Took(open_us=100, run_us=2_000, seal_us=50, cpu_us=1_000, rows=2, batch_rows=2)


class Machine:
    """A folder like /sys/class/powercap, a file like /proc/stat, and a clock that stands still."""

    def __init__(self, folder: Path, *, packages: int = 2) -> None:
        self.powercap, self.stat, self.now_ns = folder / "powercap", folder / "stat", 0
        for number in range(packages):
            (self.powercap / f"intel-rapl:{number}").mkdir(parents=True)
            (self.powercap / f"intel-rapl:{number}:0").mkdir()  # a part of a package: not counted twice
            (self.powercap / f"intel-rapl:{number}:0" / "energy_uj").write_text("999999999999")
        self.at(joules=0.0, busy_s=0.0, seconds=0)

    def at(self, *, joules: float, busy_s: float, seconds: float) -> None:
        zones = [zone for zone in self.powercap.glob("*") if zone.name.count(":") == 1]
        for zone in zones:
            (zone / "energy_uj").write_text(f"{round(joules * 1e6 / len(zones))}\n")
        jiffies = round(busy_s * 100)
        self.stat.write_text(f"cpu  {jiffies} 0 0 {10**9} 5000 0 0 0 0 0\ncpu0 1 2 3 4\n")
        self.now_ns = round(seconds * 1e9)

    def meter(self, **more: float) -> EnergyMeter:
        return EnergyMeter(
            watts_per_cpu=more.get("watts", 0.0), powercap=self.powercap, stat=self.stat, time=lambda: self.now_ns
        )


def test_the_processors_counter_gives_joules_for_a_busy_second(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    meter = machine.meter(watts=99.0)
    assert meter.source == "rapl"
    assert meter.microjoules(TOOK) == 0  # nothing is known yet
    machine.at(joules=60.0, busy_s=4.0, seconds=5)
    meter.tick()
    assert meter.microjoules(TOOK) == 15_000  # 1 ms of 15 W


@pytest.mark.parametrize(("joules", "busy_s"), [(10.0, 6.0), (60.0, 4.0), (10**9, 5.0)])
def test_a_counter_that_began_anew_or_says_nonsense_changes_nothing(
    tmp_path: Path, joules: float, busy_s: float
) -> None:
    machine = Machine(tmp_path)
    meter = machine.meter()
    machine.at(joules=60.0, busy_s=4.0, seconds=5)
    meter.tick()
    machine.at(joules=joules, busy_s=busy_s, seconds=10)
    meter.tick()
    assert meter.microjoules(TOOK) == 15_000


def test_counters_are_looked_at_about_once_a_second(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    meter = machine.meter()
    machine.at(joules=60.0, busy_s=4.0, seconds=0.9)
    meter.tick()
    assert meter.microjoules(TOOK) == 0


def test_declared_watts_are_called_declared(tmp_path: Path) -> None:
    machine = Machine(tmp_path, packages=0)
    meter = machine.meter(watts=12.5)
    meter.tick()
    detail = Metering(meter).detail(ALONE)
    assert detail == {"rows": "2", "cpu_us": "1000", "energy_uj": "12500", "energy_by": "declared"}


def test_without_a_counter_or_a_declaration_no_energy_is_stated(tmp_path: Path) -> None:
    machine = Machine(tmp_path, packages=0)
    assert Metering(machine.meter()).detail(ALONE) == {"rows": "2", "cpu_us": "1000"}
    assert Metering(machine.meter()).detail(None) == {}
    assert Metering(None).detail(TOOK) == {}
    assert open_metering(meter=False, watts_per_cpu=5.0).detail(TOOK) == {}


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2**40), st.integers(2, 9))
@example(2**34 - 1, 2)  # so close to the next power that every draw rounds up
@example(2**34, 2)
def test_a_record_of_a_shared_batch_says_an_order_of_magnitude_and_its_expectation_is_what_was_measured(
    cpu_us: int, batch_rows: int
) -> None:
    meter = EnergyMeter(watts_per_cpu=1.0, powercap=Path("/nonexistent"), stat=Path("/nonexistent"))
    took = Took(run_us=1, cpu_us=cpu_us, rows=1, batch_rows=batch_rows)
    below = 1 << (cpu_us.bit_length() - 1)
    rising = -(-((cpu_us - below) << 32) // below)  # so many of all draws round up
    assert 0 <= below * (2**32 + rising) - (cpu_us << 32) < below, "their mean is what was measured, to one draw"
    for drawn in (0, max(rising - 1, 0), min(rising, 2**32 - 1), 2**32 - 1):
        detail = Metering(meter, entropy=lambda count, drawn=drawn: drawn.to_bytes(count, "big")).detail(took)
        said = 2 * below if drawn < rising else below
        assert detail["cpu_us"] == detail["energy_uj"] == str(said)


def test_a_gpus_counter_counts_while_the_batch_ran_by_rows(tmp_path: Path) -> None:
    machine = Machine(tmp_path, packages=0)
    used_mj = [0]
    meter = EnergyMeter(
        watts_per_cpu=10.0,
        powercap=machine.powercap,
        stat=machine.stat,
        gpu=lambda: used_mj[0],
        time=lambda: machine.now_ns,
    )
    assert meter.source == "declared+nvml"
    machine.now_ns, used_mj[0] = 2_000_000_000, 400_000
    meter.tick()
    assert meter.microjoules(TOOK) == 10_000 + 200 * 2_000 * 2 // 8


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=20), st.integers(0, 10**7))
def test_the_shares_of_a_batch_add_up_to_the_batch(rows: list[int], cpu_us: int) -> None:
    meter = EnergyMeter(watts_per_cpu=7.0, powercap=Path("/nonexistent"), stat=Path("/nonexistent"))
    total = sum(rows)
    parts = [Took(0, 0, 0, cpu_us * one // total, one, total) for one in rows]
    whole = Took(0, 0, 0, cpu_us, total, total)
    assert 0 <= meter.microjoules(whole) - sum(map(meter.microjoules, parts)) <= 7 * len(rows)
