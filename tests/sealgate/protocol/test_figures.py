"""Figures: counted as told, bounded whatever labels come, and added up the same however they were cut into parts."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecodeError
from sealgate.limits import MAX_FIGURES, MAX_SERIES
from sealgate.protocol import figures
from sealgate.protocol.figures import FAMILIES, OTHER, STEPS, Figures

REQUESTS = "sealgate_gateway_requests_total"
TIMES = "sealgate_gateway_request_seconds"

happening = st.one_of(
    st.tuples(st.just(REQUESTS), st.tuples(st.sampled_from(["/a", "/b"]), st.sampled_from(["200", "403"])), st.just(1)),
    st.tuples(st.just(TIMES), st.tuples(st.sampled_from(["/a", "/b"])), st.integers(0, 10_000_000)),
    st.tuples(st.just("sealgate_units_total"), st.just(()), st.integers(0, 1000)),
)


def count(into: Figures, name: str, labels: tuple[str, ...], value: int) -> None:
    (into.observe if FAMILIES[name].kind == "histogram" else into.add)(name, labels, value)


@settings(max_examples=40, deadline=None)
@given(st.lists(happening, max_size=60), st.lists(st.integers(0, 59), max_size=6))
def test_parts_that_were_told_add_up_to_what_was_counted(happened: list[tuple], cuts: list[int]) -> None:
    whole, told, total = Figures(), Figures(), {}
    for place, one in enumerate(happened):
        count(whole, *one)
        count(told, *one)
        if place in cuts:
            total = figures.add_up([total, figures.decode(figures.encode(told.take()))])
    total = figures.add_up([total, told.take()])
    assert total == whole.snapshot()
    assert told.take() == {}


def test_a_histogram_counts_each_value_in_the_bucket_whose_bound_it_does_not_pass() -> None:
    made = Figures()
    bounds = FAMILIES[TIMES].bounds
    for value in (0, bounds[0], bounds[0] + 1, bounds[-1], bounds[-1] + 1):
        made.observe(TIMES, ("/a",), value)
    numbers = made.snapshot()[TIMES][("/a",)]
    assert numbers == (2, 1, *[0] * (len(bounds) - 3), 1, 1, 2 * bounds[0] + 1 + 2 * bounds[-1] + 1)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=200), min_size=1, max_size=50))
def test_no_label_is_anything_but_a_short_name(texts: list[str]) -> None:
    made = Figures()
    for text in texts:
        made.add("sealgate_request_failures_total", (text,))
    series = made.snapshot()["sealgate_request_failures_total"]
    assert sum(number for (number,) in series.values()) == len(texts)
    for (label,) in series:
        assert label == OTHER or (len(label) <= 128 and label.isascii() and label.isprintable() and '"' not in label)


def test_more_labels_than_there_may_be_are_counted_together() -> None:
    made = Figures()
    for number in range(3 * MAX_SERIES):
        made.add("sealgate_request_failures_total", (f"reason-{number}",))
    series = made.snapshot()["sealgate_request_failures_total"]
    assert len(series) == MAX_SERIES + 1
    assert series[(OTHER,)] == (2 * MAX_SERIES,)
    twice = figures.add_up(
        [made.snapshot(), {"sealgate_request_failures_total": {(f"more-{n}",): (1,) for n in range(MAX_SERIES)}}]
    )
    assert len(twice["sealgate_request_failures_total"]) <= MAX_SERIES + 1


@pytest.mark.parametrize(
    "rows",
    [
        [("no_such_metric", (), (1,))],
        [(REQUESTS, ("/a",), (1,))],
        [(REQUESTS, ("/a", "200"), (1, 2))],
        [(REQUESTS, ('/a"} 1\nevil', "200"), (1,))],
        [(TIMES, ("/a",), (1, 2, 3))],
    ],
)
def test_what_does_not_fit_the_list_is_left_out(rows: list) -> None:
    decoded = figures.decode(msgspec.msgpack.encode(rows))
    assert not any(decoded.values())


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 10, msgspec.msgpack.encode([(REQUESTS, ("/a", "200"), (-1,))]), b"\x00" * (MAX_FIGURES + 1)]
)
def test_what_are_no_figures_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        figures.decode(data)


@pytest.mark.parametrize("number", [2**53, 2**53 + 1, 2**64, 2**200, -1])
def test_a_number_beyond_all_bounds_does_not_keep_the_others_from_being_read(number: int) -> None:
    made = Figures()
    made.add("sealgate_model_cpu_seconds_total", ("m",), number)  # a worker's word
    made.put("sealgate_request_key_age_seconds", (), number)  # a clock that was put back
    made.observe(TIMES, ("/a",), number)
    made.add("sealgate_units_total", (), 7)
    read = figures.decode(figures.encode(figures.add_up([made.snapshot(), made.snapshot()])))
    assert read["sealgate_units_total"] == {(): (14,)}
    assert read["sealgate_model_cpu_seconds_total"] == {("m",): (2**53 if number > 0 else 0,)}
    assert read[TIMES][("/a",)][-1] == read["sealgate_request_key_age_seconds"][()][0] == (2**53 if number > 0 else 0)


def test_names_are_as_prometheus_wants_them() -> None:
    for name, family in FAMILIES.items():
        assert name.startswith("sealgate_")
        assert name.endswith("_total") == (family.kind == "counter"), name
        assert bool(family.bounds) == (family.kind == "histogram")
        assert list(family.bounds) == sorted(set(family.bounds))
        assert family.help.endswith(".")
        assert not {"tenant", "subject", "actor", "purpose"} & set(family.labels)
        if family.per != 1 and family.kind != "counter":
            assert "_seconds" in name
    assert FAMILIES["sealgate_step_seconds"].series_max >= len(STEPS)


def test_what_stands_is_told_apart_from_what_is_counted() -> None:
    made = Figures()
    made.add(REQUESTS, ("/a", "200"))
    made.put("sealgate_gateway_requests_in_flight", (), 3)
    made.put("sealgate_process_cpu_seconds_total", ("gateway",), 7)
    counts, standing = figures.parted(made.snapshot())
    assert set(counts) == {REQUESTS}
    assert set(standing) == {"sealgate_gateway_requests_in_flight", "sealgate_process_cpu_seconds_total"}
