"""The chart over time: every figure of it is counted from the leaves, however many they are."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from audit.activity import Activity
from gateway.console.chart import BARS, HEIGHT, REQUESTS, chart_of, kinds_of, series_of

FIRST = 20_000  # a day
KINDS = kinds_of(REQUESTS)


def day_name(day: int) -> str:
    return datetime.fromtimestamp(day * 86400, UTC).strftime("%Y-%m-%d")


@settings(max_examples=60, deadline=None)
@given(
    span=st.integers(1, 366),
    counts=st.lists(st.tuples(st.integers(0, 365), st.sampled_from(KINDS), st.integers(1, 10**9)), max_size=40),
)
def test_the_picture_holds_every_figure(span: int, counts: list[tuple[int, str, int]]) -> None:
    sums = Counter[tuple[int, str]]()
    for day, kind, count in counts:
        sums[day % span, kind] += count
    activity = Activity(
        first_day=FIRST,
        last_day=FIRST + span - 1,
        counts=tuple((FIRST + day, kind, count) for (day, kind), count in sums.items()),
    )
    chart = chart_of(activity, REQUESTS)
    assert len(chart.bars) <= BARS
    assert chart.bars[0].since == f"{day_name(FIRST)}T00:00"
    assert chart.bars[-1].until == f"{day_name(FIRST + span)}T00:00"
    assert all(one.until == other.since for one, other in zip(chart.bars, chart.bars[1:], strict=False))
    for place, (_, _, kinds) in enumerate(REQUESTS):
        assert chart.totals[place] == sum(count for (_, kind), count in sums.items() if kind in kinds)
    assert re.fullmatch("[125]0*", str(chart.top))
    assert chart.top >= max(sum(bar.counts) for bar in chart.bars)
    for bar in chart.bars:
        looks = [look for (look, _, _), count in zip(REQUESTS, bar.counts, strict=True) if count]
        if sum(bar.counts) * 2 < chart.top:  # else what is rounded up may have no room left
            assert [piece.look for piece in bar.pieces] == looks
        ground = HEIGHT
        for piece in bar.pieces:
            assert piece.height > 0
            assert piece.y + piece.height == ground
            ground = piece.y
        assert ground >= 0


def test_one_kind_is_drawn_alone_and_in_its_own_colour() -> None:
    assert series_of("inference.aborted") == (("failed", "Cut off", ("inference.aborted",)),)
    assert series_of("key.rotate") == (("change", "Request keys published", ("key.rotate",)),)
    assert series_of("") == REQUESTS


def test_the_page_says_what_is_drawn(consoled: Any) -> None:
    text = consoled.client(certificate="auditor").get("/console").text
    assert text.count('class="bars"') == 1
    said = re.search(r"<desc id=\"activity-said\">(.*?)</desc>", text)
    assert said is not None
    assert "12 answered, 17 denied, 4 failed or cut off, 3 not authenticated" in said[1]
    cells = re.findall(r'<th scope="row"><a href="([^"]*)">(.*?)</a></th>((?:<td class="num">[^<]*</td>)+)', text)
    (link, day, counts) = cells[0]
    assert re.findall(">([0-9,]+)<", counts) == ["12", "17", "4", "3"]
    assert f"from={day}T00%3A00" in link
    assert consoled.client(certificate="auditor").get(link.replace("&amp;", "&")).status_code == 200


def test_an_auditor_of_one_tenant_is_shown_that_tenants_figures(consoled: Any) -> None:
    own = consoled.client(token=consoled.token(tenant="clinic", roles=["auditor"], purposes=[]))
    assert "8 answered, 8 denied, 0 failed or cut off, 0 not authenticated" in own.get("/console").text
    assert 'class="bars"' not in own.get("/console?tenant=laboratory").text


def test_further_pages_and_what_is_not_counted_have_no_picture(consoled: Any) -> None:
    client = consoled.client(certificate="auditor")
    more = re.search(r'href="(/console\?cursor=[^"]*)"', client.get("/console").text)
    assert more is not None
    assert 'class="bars"' not in client.get(more[1].replace("&amp;", "&")).text
    assert 'class="bars"' not in client.get("/console?outcome=failed").text
