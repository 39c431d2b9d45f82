"""What operators owe to the people in the log, over the real processes: a report, a hold, an erasure, a pruning."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.live import MODEL, Live, run_sealgate

WHO = ("--tenant", "clinic", "--subject", "dr-okafor")


def test_somebody_asks_what_is_known_is_held_and_then_erased(live: Live, tmp_path: Path) -> None:
    with live.session(token=live.token(subject="dr-okafor")) as session:
        session.infer(MODEL, live.rows[:1])
        session.infer(MODEL, live.rows[:2])
        out = tmp_path / "report.json"
        said = run_sealgate("privacy", "subject", live.root, *WHO, "--note", "letter 1", "--out", out).stdout
        assert "dr-okafor" in said
        report = json.loads(out.read_text())
        kinds = [item["record"]["kind"] for item in report["records"]]
        assert kinds == ["inference.authorized", "inference.completed"] * 3 + ["subject.report"]  # the statement too
        assert [use["model"] for use in report["uses"]] == ["", MODEL]
        assert all(item["record"]["actor"] == report["pseudonym"] for item in report["records"])
        assert report["models"][0]["model"] == MODEL
        receipt = tmp_path / "receipt"
        receipt.write_text(report["records"][1]["receipt"])
        shown = run_sealgate("audit", "show", "--receipt", receipt, "--trust", live.trust.parent).stdout
        assert report["pseudonym"] in shown

        run_sealgate("privacy", "hold", live.root, "case-7", *WHO, "--note", "court order")
        refused = run_sealgate("privacy", "erase", live.root, *WHO, "--ground", "objection", check=False)
        assert refused.returncode == 1
        assert "a legal hold keeps this name" in refused.stderr
        run_sealgate("privacy", "release", live.root, "case-7")
        erased = run_sealgate("privacy", "erase", live.root, *WHO, "--ground", "objection", "--note", "letter 2")
        assert "The name is deleted" in erased.stdout
        again = run_sealgate("privacy", "subject", live.root, *WHO, check=False)
        assert "knows nobody of this name" in again.stderr
        session.infer(MODEL, live.rows[:1])

    records = live.records()
    mine = [record for record in records if record.actor == report["pseudonym"]]
    assert [record.kind for record in mine[7:]] == [
        "hold.placed",
        "erasure.refused",
        "hold.released",
        "erasure.completed",
    ]
    assert {record.detail["by"] for record in mine[6:]} == {f"uid:{os.geteuid()}"}
    assert records[-1].kind == "inference.completed"
    assert records[-1].actor != report["pseudonym"]
    assert not [record for record in records if "dr-okafor" in str(record)]


def test_nothing_of_today_is_pruned(live: Live) -> None:
    assert "treatment" in run_sealgate("privacy", "retention", live.root).stdout
    done = json.loads(run_sealgate("privacy", "prune", live.root, "--json").stdout)
    assert done == {"pruned": 0, "announced_by": [], "forgotten": 0}
