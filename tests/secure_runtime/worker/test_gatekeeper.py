"""Step 7: each of the ten checks refuses alone, the public code is uniform, and a good request passes once."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_runtime.errors import TurnedAway
from secure_runtime.worker import gatekeeper
from secure_runtime.worker.gatekeeper import Admitted, admission, parse_target

AUDIENCE = "gateway.test:8443"


def knock(bench: Any, raw: bytes, media_type: str, grant: Any = None, keys: Any = None) -> Admitted:
    steps = admission(
        grant or bench.grant(),
        raw,
        media_type,
        keys=keys or bench.keys,
        audience=AUDIENCE,
        now_us=bench.now_us,
        date_window_s=120,
    )
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            return ended.value  # type: ignore[no-any-return]


def refused(bench: Any, raw: bytes, media_type: str, **rest: Any) -> TurnedAway:
    with pytest.raises(TurnedAway) as caught:
        knock(bench, raw, media_type, **rest)
    return caught.value


@pytest.mark.parametrize("which", [0, 1], ids=["post-quantum", "x25519"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_good_request_is_admitted_and_its_answer_opens(bench: Any, which: int, chunked: bool) -> None:
    raw, media_type, opener = bench.seal(bench.inner(body=b'{"x":1}'), which=which, chunked=chunked)
    admitted = knock(bench, raw, media_type)
    assert bytes(admitted.request.body) == b'{"x":1}'
    assert (admitted.target.operation, admitted.target.model, admitted.target.version) == ("infer", "tumour", "")
    sealed, answer_type = admitted.sealer.seal(b"the answer")
    assert opener.open(sealed, answer_type) == b"the answer"


def test_the_second_submission_is_a_replay(bench: Any) -> None:
    raw, media_type, _ = bench.seal(bench.inner())
    knock(bench, raw, media_type)
    assert refused(bench, raw, media_type).code == "replayed"


def test_garbage_under_a_copied_encapsulation_does_not_burn_the_true_request(bench: Any) -> None:
    raw, media_type, _ = bench.seal(bench.inner())
    altered = raw[:-1] + bytes([raw[-1] ^ 1])
    assert refused(bench, altered, media_type).code == "cannot-open"
    assert knock(bench, raw, media_type).grant.id == "grant-1"


def test_a_full_replay_set_refuses_and_never_forgets(bench: Any) -> None:
    bench.keys = bench.ring(replay_max=1)
    first, media_type, _ = bench.seal(bench.inner())
    knock(bench, first, media_type)
    second, _, _ = bench.seal(bench.inner())
    full = refused(bench, second, media_type)
    assert (full.code, full.problem) == ("replay-set-full", "busy")
    assert refused(bench, first, media_type).code == "replayed"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fields": {"purpose": "marketing"}}, "purpose-mismatch"),
        ({"drop": ("purpose",)}, "purpose-mismatch"),
        ({"extra": (("purpose", "treatment"),)}, "field-repeated"),
        ({"fields": {"credential-binding": "someone else"}}, "credential-mismatch"),
        ({"drop": ("credential-binding",)}, "credential-unbound"),
        ({"drop": ("date",)}, "date-missing"),
        ({"fields": {"date": "yesterday"}}, "date-missing"),
        ({"fields": {"date": "Fri, 31 Dec 9999 23:59:59 -2359"}}, "date-outside-window"),
        ({"path": "/v2/models/other/infer"}, "model-mismatch"),
        ({"path": "/v2/models/tumour"}, "target-unknown"),
        ({"path": "/v2/models/tumour", "method": "GET"}, "operation-mismatch"),
        ({"path": "/v2/models/tumour/infer?x=1"}, "target-unknown"),
        ({"path": "/v2/models/tumour/../other/infer"}, "target-unknown"),
        ({"path": "/v1/chat/completions"}, "target-unknown"),
        ({"authority": "elsewhere.test"}, "audience-mismatch"),
        ({"scheme": "http"}, "audience-mismatch"),
    ],
)
def test_each_check_refuses_alone_with_one_public_code(bench: Any, change: dict[str, Any], reason: str) -> None:
    raw, media_type, _ = bench.seal(bench.inner(**change))
    why = refused(bench, raw, media_type)
    assert why.code == reason
    assert why.problem == "sealed-request-refused"
    assert str(why) == "the sealed request was refused"


@pytest.mark.parametrize(("offset_s", "fresh"), [(-119, True), (119, True), (-121, False), (121, False)])
def test_the_date_window_has_two_sides(bench: Any, offset_s: int, fresh: bool) -> None:
    raw, media_type, _ = bench.seal(bench.inner(fields={"date": bench.date(offset_s)}))
    if fresh:
        assert knock(bench, raw, media_type)
    else:
        assert refused(bench, raw, media_type).code == "date-outside-window"


def test_an_expired_grant_opens_nothing(bench: Any) -> None:
    raw, media_type, _ = bench.seal(bench.inner())
    assert refused(bench, raw, media_type, grant=bench.grant(expires_us=bench.now_us)).problem == "timed-out"
    assert knock(bench, raw, media_type)


def test_a_key_of_another_worker_is_unknown(bench: Any) -> None:
    raw, media_type, _ = bench.seal(bench.inner())
    other = bench.ring(avoid_ids=[raw[0]])
    assert refused(bench, raw, media_type, keys=other).problem == "unknown-key"


def test_a_truncated_stream_is_refused(bench: Any) -> None:
    inner = bench.inner(body=b"x" * 40_000)
    raw, media_type, _ = bench.seal(inner, chunked=True)
    assert refused(bench, raw[: len(raw) // 2], media_type).code in ("truncated", "cannot-open", "malformed")
    assert refused(bench, b"", media_type).code == "malformed"


@pytest.mark.parametrize(
    ("method", "path", "operation", "what", "model", "version"),
    [
        ("POST", "/v2/models/m/infer", "infer", "infer", "m", ""),
        ("POST", "/v2/models/m/versions/3/infer", "infer", "infer", "m", "3"),
        ("GET", "/v2/models/m", "read-model", "metadata", "m", ""),
        ("GET", "/v2/models/m/versions/3", "read-model", "metadata", "m", "3"),
        ("GET", "/v2/models/m/ready", "read-model", "ready", "m", ""),
        ("GET", "/v2/models/a%20b/ready", "read-model", "ready", "a b", ""),
        ("POST", "/v2/models/m/explain", "explain", "explain", "m", ""),
        ("POST", "/v2/models/m/versions/2/explain", "explain", "explain", "m", "2"),
        ("GET", "/v2/models/m/stats", "read-model", "stats", "m", ""),
        ("GET", "/v2/models/m/versions/2/stats", "read-model", "stats", "m", "2"),
        ("GET", "/v2", "read-model", "server", "", ""),
        ("GET", "/v2/health/live", "read-model", "live", "", ""),
        ("GET", "/v2/health/ready", "read-model", "server-ready", "", ""),
    ],
)
def test_targets(method: str, path: str, operation: str, what: str, model: str, version: str) -> None:
    target = parse_target(method, path)
    assert (target.operation, target.what, target.model, target.version) == (operation, what, model, version)


@pytest.mark.parametrize("path", ["", "/", "/v2/models/", "/v2/models//infer", "/v2/models/m/infer/", "x/v2/models/m"])
def test_other_targets_are_refused(path: str) -> None:
    with pytest.raises(TurnedAway):
        parse_target("POST", path)


@settings(max_examples=200, deadline=None)
@given(
    second=st.integers(0, 10**11),
    age_s=st.integers(-300, 300),
    at=st.integers(0, 28),
    other=st.sampled_from(["", "x", " ", "\n", "9", "6", "-", "é", "٣"]),
)
def test_a_date_is_within_the_window_or_turned_away(second: int, age_s: int, at: int, other: str) -> None:
    date = format_datetime(datetime.fromtimestamp(second, UTC), usegmt=True)
    now_us = (second + age_s) * 1_000_000

    def reason(date: str) -> str | None:
        try:
            gatekeeper._require_fresh(date, now_us=now_us, window_s=120)
        except TurnedAway as why:  # and nothing else is ever raised
            return why.code
        return None

    assert reason(date) == (None if abs(age_s) <= 120 else "date-outside-window")
    assert reason(date[:at] + other + date[at + 1 :]) in (None, "date-missing", "date-outside-window")
