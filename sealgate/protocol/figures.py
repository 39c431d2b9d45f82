"""Figures of how a deployment runs: which there are, how they are counted, and their form between our processes.

Counters, gauges and histograms of whole numbers, by names of a fixed list (FAMILIES) and labels of which each family
has few. Every process counts its own; a gateway tells the host, the host adds them up and gives all of them to the
gateway that is asked (gateway.metrics). Cheap: counting is one look into a dictionary. Pure, no I/O.

Trusts: nobody with a label: of one family no more than `series_max` series are made, the rest is counted as "other", as
is text that is no short name. Never: has a label of a tenant, a caller or anything inside a seal.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from sealgate.errors import DecodeError
from sealgate.limits import MAX_FIGURES, MAX_SERIES
from sealgate.protocol.frames import Amount

MICRO = 1_000_000
OTHER = "other"
_MOST = 2**53  # of frames.Amount
_LABEL = re.compile(r"[A-Za-z0-9/._{}:+-]{1,128}\Z")
_TIMES_US = (100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1_024, 4_096)

Snapshot = dict[str, dict[tuple[str, ...], tuple[int, ...]]]
"""By family and labels: one number, or of a histogram its buckets (the last without bound) and its sum."""

STEPS = {
    "authenticate": "3, in the gateway",
    "parse": "4, in the gateway: the caller's body is awaited in it",
    "decide": "5, in the gateway",
    "authorise": "6, in the host: until it is on the disk",
    "queue": "between 6 and 7: until the worker begins, and what reaches the host late",
    "open": "7, in the worker: its share of the sweep's",
    "run": "8, in the worker: its batch's",
    "seal": "9, in the worker",
    "record": "10, in the host: until it is on the disk",
    "release": "11, in the gateway: until the answer is handed to the connection",
}
"""Of the twelve steps of a request those that happen here, with where."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One metric. `per`: how many of what is counted make one of the unit in its name. `bounds`: a histogram's, as
    counted, the last bucket aside."""

    kind: str  # "counter", "gauge" or "histogram"
    help: str
    labels: tuple[str, ...] = ()
    per: int = 1
    bounds: tuple[int, ...] = ()
    series_max: int = MAX_SERIES


def _counter(help_: str, *labels: str, per: int = 1) -> Family:
    return Family(kind="counter", help=help_, labels=labels, per=per)


def _gauge(help_: str, *labels: str, per: int = 1) -> Family:
    return Family(kind="gauge", help=help_, labels=labels, per=per)


def _times(help_: str, *labels: str) -> Family:
    return Family(kind="histogram", help=help_, labels=labels, per=MICRO, bounds=_TIMES_US)


FAMILIES: dict[str, Family] = {
    # The gateway's
    "sealgate_gateway_requests_total": _counter("Requests answered, by route and HTTP status.", "route", "status"),
    "sealgate_gateway_request_seconds": _times("Time from the head of a request to the end of its answer.", "route"),
    "sealgate_gateway_requests_in_flight": _gauge("Sealed requests being read or in flight."),
    "sealgate_gateway_body_bytes": _gauge("Bytes of their bodies."),
    "sealgate_gateway_authentication_failures_total": _counter("Callers that were nobody, by reason.", "reason"),
    "sealgate_gateway_denials_total": _counter("What the policy refused, by reason.", "reason"),
    "sealgate_step_seconds": _times("Time that a step of a sealed request took.", "step"),
    # The host's
    "sealgate_requests_total": _counter("Sealed requests that came to an end.", "operation", "outcome"),
    "sealgate_request_failures_total": _counter("Those that failed or were refused, by reason.", "reason"),
    "sealgate_budget_refusals_total": _counter("Requests that a budget refused, by reason.", "reason"),
    "sealgate_requests_in_flight": _gauge("Requests that the host works on: the depth of the queue."),
    "sealgate_request_bytes_in_flight": _gauge("Bytes of these requests."),
    "sealgate_units_total": _counter("Units that answers cost."),
    "sealgate_epsilon_total": _counter("Epsilon that noised answers spent.", per=MICRO),
    "sealgate_batch_rows": Family(kind="histogram", help="Rows of the batch that a request was in.", bounds=_ROWS),
    "sealgate_model_requests_total": _counter("Requests that a model ran, by its name.", "model"),
    "sealgate_model_rows_total": _counter("Rows that a model ran.", "model"),
    "sealgate_model_cpu_seconds_total": _counter("Processor time of its requests in workers.", "model", per=MICRO),
    "sealgate_energy_joules_total": _counter("Energy of requests in workers, by how it is known.", "source", per=MICRO),
    "sealgate_runtime_ready": _gauge("1 while inference is served."),
    "sealgate_runtime_degraded": _gauge("1 while a worker runs with profile dev."),
    "sealgate_worker_up": _gauge("Workers that are live."),
    "sealgate_worker_starts_total": _counter("Workers that went live."),
    "sealgate_models_loaded": _gauge("Models that are served."),
    "sealgate_models_refused": _gauge("Bundles that were not loaded."),
    "sealgate_request_keys": _gauge("Request keys that are published."),
    "sealgate_request_key_age_seconds": _gauge("Age of what is published: since it last changed.", per=MICRO),
    "sealgate_sandbox_layer_on": _gauge(
        "1 for a layer of isolation that the host itself reads as on in every worker.", "layer"
    ),
    "sealgate_log_records": _gauge("Records in the log's newest tree."),
    "sealgate_log_ok": _gauge("1 while the log writes."),
    "sealgate_log_allows_inference": _gauge("1 while the log has room for new inference."),
    "sealgate_log_witnesses_ok": _gauge("0 while something keeps witnesses from cosigning; 1 where none is asked too."),
    "sealgate_process_resident_memory_bytes": _gauge("Memory of a process, counted by its pages.", "process"),
    "sealgate_process_cpu_seconds_total": _counter("Processor time of a process since it began.", "process", per=MICRO),
}
"""Every metric that there is."""


class Figures:
    """The tallies of one process. Owned by its event loop."""

    def __init__(self) -> None:
        self._series: dict[str, dict[tuple[str, ...], list[int]]] = {name: {} for name in FAMILIES}

    def add(self, name: str, labels: tuple[str, ...] = (), amount: int = 1) -> None:
        """Count."""
        found = self._series[name].get(labels)
        if found is None:
            found = self._begin(name, labels)
        found[0] += amount

    def put(self, name: str, labels: tuple[str, ...], value: int) -> None:
        """Say what a gauge, or a counter that somebody else counts, stands at."""
        found = self._series[name].get(labels)
        if found is None:
            found = self._begin(name, labels)
        found[0] = value

    def observe(self, name: str, labels: tuple[str, ...], value: int) -> None:
        """Count in a histogram."""
        found = self._series[name].get(labels)
        if found is None:
            found = self._begin(name, labels)
        found[bisect_left(FAMILIES[name].bounds, value)] += 1
        found[-1] += value

    def drop(self, name: str) -> None:
        """Forget a family's series, before what is true of now is put."""
        self._series[name].clear()

    def _begin(self, name: str, labels: tuple[str, ...]) -> list[int]:
        family, series = FAMILIES[name], self._series[name]
        labels = tuple(text if _LABEL.match(text) else OTHER for text in labels)
        if labels not in series and len(series) >= family.series_max:
            labels = (OTHER,) * len(labels)
        return series.setdefault(labels, [0] * _width(family))

    def snapshot(self) -> Snapshot:
        """What is counted now."""
        return {
            name: {labels: tuple(numbers) for labels, numbers in series.items()}
            for name, series in self._series.items()
            if series
        }

    def take(self) -> Snapshot:
        """What came since this was called last, and how things stand: for who adds it up."""
        snapshot = self.snapshot()
        for name, series in self._series.items():
            if not _stands(FAMILIES[name]):
                series.clear()
        return snapshot


def _width(family: Family) -> int:
    return len(family.bounds) + 2 if family.kind == "histogram" else 1


def encode(snapshot: Snapshot) -> bytes:
    """For another of our processes. What would be beyond its bounds is told as the bound: one number that a worker
    made up, or a clock that was put back, must not keep all others from being read."""
    rows = [
        (name, labels, tuple(min(max(number, 0), _MOST) for number in numbers))
        for name, series in snapshot.items()
        for labels, numbers in series.items()
    ]
    return msgspec.msgpack.encode(rows)


def decode(data: bytes) -> Snapshot:
    """What another process counted, as far as it is known here and within bounds; raises DecodeError."""
    if len(data) > MAX_FIGURES:
        raise DecodeError("too many figures", code="too-large")
    try:
        rows = msgspec.msgpack.decode(data, type=list[tuple[str, tuple[str, ...], tuple[Amount, ...]]])
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise DecodeError("these are no figures") from error
    snapshot: Snapshot = {}
    for name, labels, numbers in rows:
        family = FAMILIES.get(name)
        if family is None or len(labels) != len(family.labels) or len(numbers) != _width(family):
            continue
        series = snapshot.setdefault(name, {})
        if len(series) <= family.series_max and all(_LABEL.match(text) for text in labels):
            series[labels] = numbers
    return snapshot


def add_up(snapshots: Iterable[Snapshot]) -> Snapshot:
    """One of several."""
    total: Snapshot = {}
    for snapshot in snapshots:
        for name, series in snapshot.items():
            into = total.setdefault(name, {})
            for labels, numbers in series.items():
                before = into.get(labels)
                if before is None and len(into) > FAMILIES[name].series_max:
                    labels = (OTHER,) * len(labels)
                    before = into.get(labels)
                into[labels] = numbers if before is None else tuple(map(sum, zip(before, numbers, strict=True)))
    return total


def parted(snapshot: Snapshot) -> tuple[Snapshot, Snapshot]:
    """What was counted, which can be added to what was counted before; and how things stand, which takes its place."""
    counts: Snapshot = {}
    standing: Snapshot = {}
    for name, series in snapshot.items():
        (standing if _stands(FAMILIES[name]) else counts)[name] = series
    return counts, standing


def _stands(family: Family) -> bool:
    """The kernel counts a process's own time, from that process's beginning."""
    return family.kind == "gauge" or family.labels == ("process",)
