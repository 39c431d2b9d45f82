"""Ten thousand bad tokens over real TLS: one answer, bounded memory and log, and others are served meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psutil

from tests.live import MODEL, Live

TOKENS = 10_000
FLOODERS = 4
MIB = 1024 * 1024


def test_ten_thousand_bad_tokens_cost_nothing_that_lasts_while_others_are_served(fresh: Callable[[], Live]) -> None:
    live = fresh()
    live.start()
    live.ready()
    answers: set[tuple[int, bytes]] = set()
    done = [0] * FLOODERS

    def flood(which: int) -> None:
        with live.http() as client:
            for number in range(TOKENS // FLOODERS):
                token = f"{'x' * 7000}.{which}.{number}"  # each another one: no cache may keep them
                answer = client.post(
                    f"/sealed/{MODEL}", content=b"x", headers={"authorization": f"Bearer {token}", "purpose": "p"}
                )
                answers.add((answer.status_code, answer.content))
                done[which] += 1

    with live.session() as session:
        session.infer(MODEL, live.rows[:1])
        gateway, host = (psutil.Process(live.processes[name].pid) for name in ("gateway", "runtime"))
        before = gateway.memory_info().rss, host.memory_info().rss
        threads = [threading.Thread(target=flood, args=(which,)) for which in range(FLOODERS)]
        for thread in threads:
            thread.start()
        served_meanwhile = 0
        while any(thread.is_alive() for thread in threads):
            assert session.infer(MODEL, live.rows[:1]).labels
            served_meanwhile += sum(done) < TOKENS
        for thread in threads:
            thread.join()
        after = gateway.memory_info().rss, host.memory_info().rss
    assert sum(done) == TOKENS
    assert served_meanwhile >= 20
    assert len(answers) == 1
    assert next(iter(answers))[0] == 401
    assert after[0] - before[0] < 32 * MIB, "tokens that were kept would be 70 MiB"
    assert after[1] - before[1] < 32 * MIB
    live.stop()
    failures = [record for record in live.records() if record.kind == "auth.failed"]
    assert 1 <= len(failures) <= 10
    assert sum(int(record.detail["count"]) for record in failures) == TOKENS
