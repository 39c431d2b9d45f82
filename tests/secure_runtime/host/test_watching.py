"""What the host tells of a request's way: spans that lie within each other, and figures that count each end once."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.protocol.completion import Completion, Statement
from sealgate.protocol.figures import Figures
from sealgate.protocol.frames import Answer, Caller, Decision, Done, Recorded, Submit, Took
from sealgate.protocol.tracing import TraceParent
from sealgate.transparency.record import Record
from secure_runtime.host.watching import NOTHING, Watcher

PARENT = TraceParent(b"t" * 16, b"s" * 8)
SUBMIT = Submit(
    model="wine",
    operation="infer",
    purpose="treatment",
    media_type="message/ohttp-req",
    caller=Caller(tenant="clinic", subject="alice", authn="jwt", credential_binding="b"),
    decision=Decision(policy_digest="d" * 64),
    trace=PARENT.line(),
)
STATEMENT = Statement(
    instance="i",
    seq=1,
    grant="g",
    outcome="completed",
    reason="",
    model="wine",
    model_digest="a" * 64,
    certificate_digest="b" * 64,
    units=3,
    req_commit="",
    resp_commit="",
)
INTENT = Record(kind="inference.authorized", operation="infer", model="wine", id="g")
ANSWER = Answer(media_type="message/ohttp-res", log="l", record=1, receipt=b"")


class Ticking:
    """Clocks and randomness that a test moves."""

    def __init__(self) -> None:
        self.ns = 10**12
        self.count = 0

    def time(self) -> int:
        return self.ns

    def clock(self) -> int:
        return 1_700_000_000_000_000

    def entropy(self, count: int) -> bytes:
        self.count += 1
        return self.count.to_bytes(count, "big")

    def watcher(self, figures: Figures | None, *, traced: bool = True) -> Watcher:
        return Watcher(figures, traced=traced, clock=self.clock, entropy=self.entropy, time=self.time)


def ended(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "kind": "inference.completed",
        "operation": "infer",
        "outcome": "completed",
        "model": "wine",
        "model_digest": "a" * 64,
        "grant": "g",
        "units": 3,
        "eps_micro": 500_000,
        "detail": {"rows": "3", "cpu_us": "700", "energy_uj": "7000", "energy_by": "declared"},
    }
    return Record(**(values | changes))


def done(took: Took | None) -> Done:
    return Done(completion=Completion(statement=STATEMENT, signature=""), took=took)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 10**9), min_size=3, max_size=3),
    st.builds(Took, *[st.integers(0, 2_000_000)] * 4, st.integers(0, 9), st.integers(0, 9)),
)
def test_spans_lie_within_each_other_whatever_the_worker_says(passed_ns: list[int], took: Took) -> None:
    ticking = Ticking()
    journey = ticking.watcher(None).begin(SUBMIT)
    ticking.ns += passed_ns[0]
    journey.authorised(INTENT)
    ticking.ns += passed_ns[1]
    journey.ran(done(took))
    ticking.ns += passed_ns[2]
    journey.ended(ended())
    told = journey.told(ANSWER)
    assert isinstance(told, Answer)
    spans = {span.name: span for span in told.spans}
    assert list(spans) == ["authorise", "worker", "open", "run", "seal", "record"]
    assert len({span.span_id for span in told.spans}) == len(spans)
    worker = spans["worker"]
    for name in ("authorise", "worker", "record"):
        assert (spans[name].process, spans[name].parent_id) == ("host", PARENT.span_id)
    at = worker.start_us
    for name in ("open", "run", "seal"):
        span = spans[name]
        assert (span.process, span.parent_id) == ("worker", worker.span_id)
        assert at <= span.start_us <= span.end_us <= worker.end_us
        at = span.end_us
    assert spans["authorise"].end_us <= worker.start_us
    assert worker.end_us <= spans["record"].start_us
    assert worker.facts == {"sealgate.batch_rows": took.batch_rows}


def test_ends_are_counted_once_with_what_they_cost() -> None:
    figures, ticking = Figures(), Ticking()
    journey = ticking.watcher(figures, traced=False).begin(SUBMIT)
    journey.authorised(INTENT)
    ticking.ns += 10_000_000
    journey.ran(done(Took(100, 2_000, 50, 700, 3, 8)))
    journey.ended(ended())
    assert journey.told(ANSWER) is ANSWER
    seen = figures.snapshot()
    assert seen["sealgate_requests_total"] == {("infer", "completed"): (1,)}
    assert seen["sealgate_units_total"] == {(): (3,)}
    assert seen["sealgate_epsilon_total"] == {(): (500_000,)}
    assert seen["sealgate_model_rows_total"] == {("wine",): (3,)}
    assert seen["sealgate_model_cpu_seconds_total"] == {("wine",): (700,)}
    assert seen["sealgate_energy_joules_total"] == {("declared",): (7000,)}
    assert seen["sealgate_batch_rows"][()][-1] == 8
    sums = {step: numbers[-1] for (step,), numbers in seen["sealgate_step_seconds"].items()}
    assert (sums["open"], sums["run"], sums["seal"], sums["queue"]) == (100, 2_000, 50, 10_000 - 2_150)


def test_a_denial_is_counted_by_its_reason_and_as_a_budgets_if_it_was() -> None:
    figures, ticking = Figures(), Ticking()
    watcher = ticking.watcher(figures)
    denied = Record(kind="inference.denied", operation="infer", model="any", reason="budget-exhausted")
    watcher.begin(SUBMIT).authorised(denied)
    watcher.denied(Record(kind="inference.denied", operation="infer", reason="no-matching-permit"))
    watcher.denied(Record(kind="audit.query", reason="not one of these"))
    seen = figures.snapshot()
    assert seen["sealgate_requests_total"] == {("infer", "denied"): (2,)}
    assert set(seen["sealgate_request_failures_total"]) == {("budget-exhausted",), ("no-matching-permit",)}
    assert seen["sealgate_budget_refusals_total"] == {("budget-exhausted",): (1,)}
    assert "sealgate_model_requests_total" not in seen


def test_a_model_that_a_caller_made_up_gets_no_series() -> None:
    figures, ticking = Figures(), Ticking()
    journey = ticking.watcher(figures).begin(SUBMIT)
    journey.authorised(INTENT)
    journey.ran(done(Took(1, 0, 1, 2)))
    journey.ended(ended(model="made-up", model_digest="", outcome="refused", kind="inference.failed", units=0))
    assert "sealgate_model_requests_total" not in figures.snapshot()


def test_where_nothing_is_watched_nothing_is_done() -> None:
    ticking = Ticking()
    assert ticking.watcher(None, traced=False).begin(SUBMIT) is NOTHING
    untraced = Submit(**{name: getattr(SUBMIT, name) for name in SUBMIT.__struct_fields__ if name != "trace"})
    assert ticking.watcher(None).begin(untraced) is NOTHING
    malformed = Submit(
        **{name: getattr(SUBMIT, name) for name in SUBMIT.__struct_fields__ if name != "trace"}, trace="00-zz"
    )
    assert ticking.watcher(None).begin(malformed) is NOTHING
    assert NOTHING.told(ANSWER) is ANSWER
    recorded = Recorded(log="l", record=1, receipt=b"")
    journey = ticking.watcher(None).begin(SUBMIT)
    journey.authorised(INTENT)
    assert journey.told(recorded) is recorded
