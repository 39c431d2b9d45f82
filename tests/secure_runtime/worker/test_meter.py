"""What requests of a sweep took: shared evenly and by rows, so that the shares add up to what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_runtime.host.metering import EnergyMeter, Metering
from secure_runtime.worker.engine.answers import Share
from secure_runtime.worker.meter import SweepMeter


class Hands:
    """Two clocks that a test moves, in nanoseconds."""

    def __init__(self) -> None:
        self.time_ns = self.cpu_ns = 0

    def pass_us(self, time: int, cpu: int) -> None:
        self.time_ns += time * 1000
        self.cpu_ns += cpu * 1000

    def meter(self) -> SweepMeter:
        return SweepMeter(time=lambda: self.time_ns, cpu=lambda: self.cpu_ns)


def test_opening_is_shared_evenly_and_a_batch_by_rows() -> None:
    hands = Hands()
    meter = hands.meter()
    hands.pass_us(900, 600)
    meter.opened(3)
    hands.pass_us(5_000, 4_000)  # the engine's, which it shares out itself
    meter.seals()
    hands.pass_us(40, 35)
    took = meter.took(Share(rows=2, batch_rows=8, run_us=5_000, cpu_us=1_000))
    assert (took.open_us, took.run_us, took.seal_us) == (300, 5_000, 40)
    assert took.cpu_us == 200 + 1_000 + 40
    assert (took.rows, took.batch_rows) == (2, 8)
    refused = meter.refused()
    assert (refused.open_us, refused.cpu_us, refused.rows) == (300, 200, 0)


def test_where_nothing_ran_only_the_rest_is_counted() -> None:
    hands = Hands()
    meter = hands.meter()
    hands.pass_us(50, 50)
    meter.opened(1)
    meter.seals()
    hands.pass_us(10, 10)
    took = meter.took(None)
    assert (took.open_us, took.run_us, took.seal_us, took.cpu_us, took.rows) == (50, 0, 10, 60, 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 500), st.integers(0, 10**7), st.integers(0, 10**7))
def test_no_more_is_shared_out_than_was_measured(requests: int, time_us: int, cpu_us: int) -> None:
    hands = Hands()
    meter = hands.meter()
    hands.pass_us(time_us, cpu_us)
    meter.opened(requests)
    each = meter.refused()
    assert time_us - requests < each.open_us * requests <= time_us
    assert cpu_us - requests < each.cpu_us * requests <= cpu_us


def test_an_empty_sweep_is_no_error() -> None:
    meter = Hands().meter()
    meter.opened(0)
    assert meter.refused().open_us == 0


@pytest.mark.parametrize("share", [None, Share(rows=2, batch_rows=2, run_us=0, cpu_us=0)])
def test_what_it_took_to_open_others_requests_is_stated_as_what_their_rows_took(share: Share | None) -> None:
    """Who asks about another model, or reads what a model states, shares no batch, and yet the cost of opening."""
    hands = Hands()
    meter = hands.meter()
    hands.pass_us(100_001, 100_001)  # nearly all of it for somebody's hundred megabytes
    meter.opened(2)
    meter.seals()
    nothing = Path("/nonexistent")
    metering = Metering(EnergyMeter(watts_per_cpu=1.0, powercap=nothing, stat=nothing))
    for took in (meter.took(share), meter.refused()):
        detail = metering.detail(took)
        assert detail["cpu_us"] == detail["energy_uj"]
        assert int(detail["cpu_us"]) in (32_768, 65_536)
