"""`sealgate audit report` and `review` as people run them: proven from a bundle, the service's word without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sealgate.cli import build_parser
from sealgate.client.audit import AuditClient
from sealgate.client.audit_reports import cell_text
from sealgate.client.errors import ServiceRefused
from sealgate.client.session import Session
from sealgate.errors import ConfigurationError, DecodeError, LogError, SealgateError
from sealgate.transparency.receipt import verify_receipt
from sealgate.transparency.record import Record
from sealgate.transparency.reports.bundles import report_from_bundle
from sealgate.transparency.reports.catalogue import REPORTS
from sealgate.transparency.reports.form import Column, Report
from sealgate.transparency.reports.question import Question
from sealgate.transparency.reports.reviewing import ReviewStatement
from sealgate.transparency.verifier import LogTrust

TOKEN = "header.payload.signature"
Run = Callable[..., int]


@pytest.fixture
def audit(site: Any, service: Any, tmp_path: Path) -> Run:
    """The command, after three inferences."""
    (tmp_path / "token").write_text(TOKEN + "\n")
    with Session(
        service.trust(), purpose="diagnosis", token=TOKEN, outer=service.transport(), clock=service.clock
    ) as session:
        for _ in range(3):
            session.infer("toy", [[1, 2, 3]])

    def run(*words: object) -> int:
        arguments = build_parser().parse_args(["audit", *map(str, words), "--trust", str(site.trust)])
        arguments.token_file = arguments.token_file or tmp_path / "token"
        return int(arguments._audit_action(arguments))

    return run


@pytest.fixture
def bundle(service: Any, audit: Run, tmp_path: Path) -> Path:
    path = tmp_path / "evidence.zip"
    path.write_bytes(service.bundle(0, len(service.log.leaves) - 1))
    return path


def test_a_report_over_a_bundle_needs_no_service_and_no_credential(
    site: Any, service: Any, bundle: Path, audit: Run, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("sealgate.client.audit_reports.open_client", lambda _: pytest.fail("asked the service"))
    before = len(service.log.leaves)
    for name in REPORTS:
        assert audit("report", name, "--bundle", bundle) == 0
        text = capsys.readouterr().out
        assert f"PROVEN from records 0 to {before - 1} of the {before} of" in text, text
    audit("report", "access", "--bundle", bundle, "--json")
    report = msgspec.json.decode(capsys.readouterr().out, type=Report)
    log_trust = LogTrust(verifiers=service.trust().log_keys)
    assert report == report_from_bundle(bundle, log_trust, name="access", question=Question())
    assert len(service.log.leaves) == before


def test_the_services_own_report_says_that_it_is_its_word(audit: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit("report", "access", "--model", "toy") == 0
    text = capsys.readouterr().out
    assert "NOT PROVEN: the word of the database" in text
    assert text.splitlines()[1].split()[:4] == ["tenant", "actor", "model", "operation"]
    audit("report", "denials")
    assert "requests that were denied: none" in capsys.readouterr().out


def test_a_report_that_finds_something_wrong_exits_with_one(
    service: Any, audit: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.log.append(Record(kind="inference.completed", grant="nothing", intent_seq=0))
    path = tmp_path / "wrong.zip"
    path.write_bytes(service.bundle(0, len(service.log.leaves) - 1))
    assert audit("report", "reconcile", "--bundle", path) == 1
    assert "WRONG: every authorized request has exactly one end" in capsys.readouterr().out


def test_a_bundle_that_does_not_hold_gives_no_report(bundle: Path, audit: Run) -> None:
    damaged = bytearray(bundle.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    bundle.write_bytes(damaged)
    with pytest.raises(LogError, match="proves nothing"):
        audit("report", "access", "--bundle", bundle)
    with pytest.raises(ConfigurationError):
        audit("report", "access", "--bundle", bundle.parent / "none.zip")


@pytest.mark.parametrize(
    "words",
    [
        ("nothing",),
        ("reconcile", "--tenant", "a"),
        ("access", "--since", "1h", "--until", "2h"),
        ("access", "--since", "yesterday"),
        ("completeness", "--first", "5", "--last", "4"),
        ("in-force", "--since", "1h"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_asks_nobody(service: Any, audit: Run, words: tuple[str, ...]) -> None:
    before = service.count("/audit")
    with pytest.raises(ConfigurationError) as failure:
        audit("report", *words)
    assert "\n" not in str(failure.value)
    assert "_us" not in str(failure.value), "options have the names that people typed"
    assert service.count("/audit") == before


@pytest.mark.parametrize(
    "change",
    [
        lambda report: msgspec.structs.replace(report, basis=msgspec.structs.replace(report.basis, proven=True)),
        lambda report: msgspec.structs.replace(report, basis=msgspec.structs.replace(report.basis, source="bundle")),
        lambda report: msgspec.structs.replace(report, name="denials"),
        lambda report: msgspec.structs.replace(
            report, tables=(msgspec.structs.replace(report.tables[0], rows=(("a",),)),)
        ),
        lambda report: msgspec.structs.replace(
            report, tables=(msgspec.structs.replace(report.tables[0], rows=((1,) * 12,)),)
        ),
    ],
)
def test_a_service_cannot_call_its_word_proven(service: Any, audit: Run, meddling: Any, change: Any) -> None:
    def meddle(request: Any, response: Any) -> Any:
        body = msgspec.json.encode(change(msgspec.json.decode(response.read(), type=Report)))
        return meddling.replaced(response, body=body)

    service.meddle = meddle
    with AuditClient(service.trust(), token=TOKEN, outer=service.transport()) as client, pytest.raises(DecodeError):
        client.report("access", Question())


def test_cells_are_written_for_people() -> None:
    assert cell_text(Column("", "epsilon"), 1_500_000) == "1.5"
    assert cell_text(Column("", "epsilon"), 10) == "0.00001"
    assert cell_text(Column("", "epsilon"), 2_000_000) == "2"
    assert cell_text(Column("", "epsilon"), 0) == "0"
    assert cell_text(Column("", "epsilon"), -1_500_000) == "-1.5"
    assert cell_text(Column("", "time"), 1_700_000_000_000_000).startswith("2023-11-14 22:13:20")
    assert cell_text(Column("", "time"), None) == ""
    assert cell_text(Column(""), "x") == "x"


# Reviews --------------------------------------------------------------------------------------------------------------


def test_a_review_names_what_was_looked_at_and_the_report(
    service: Any, bundle: Path, audit: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = len(service.log.leaves)
    audit("report", "access", "--bundle", bundle, "--json")
    text = capsys.readouterr().out
    (tmp_path / "report.json").write_text(text)
    words = ("--note", "monthly look", "--report", tmp_path / "report.json", "--receipt-out", tmp_path / "receipt")
    assert audit("review", "--bundle", bundle, "--finding", "questions", *words) == 0
    assert f"on record as {size}: records 0 to {size - 1} were looked at" in capsys.readouterr().out
    verified = verify_receipt((tmp_path / "receipt").read_bytes(), service.trust().log_keys)
    detail = json.loads(verified.leaf)["detail"]
    assert detail["report_digest"] == msgspec.json.decode(text.encode(), type=Report).digest()
    assert (detail["finding"], detail["note"], detail["report"]) == ("questions", "monthly look", "access")
    assert (detail["first"], detail["last"], detail["size"]) == ("0", str(size - 1), str(size))
    assert audit("report", "review") == 0
    assert "monthly look" in capsys.readouterr().out


def test_what_does_not_verify_can_only_be_found_to_be_a_problem(
    service: Any, audit: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.log.append(Record(kind="inference.completed", grant="nothing", intent_seq=0))
    path = tmp_path / "wrong.zip"
    path.write_bytes(service.bundle(0, len(service.log.leaves) - 1))
    before = len(service.log.leaves)
    with pytest.raises(ConfigurationError, match="a finding of 'problems'"):
        audit("review", "--bundle", path, "--finding", "nothing")
    assert len(service.log.leaves) == before
    assert audit("review", "--bundle", path, "--finding", "problems") == 0
    (tmp_path / "none").write_text("[]")
    with pytest.raises(ConfigurationError, match="no report"):
        audit("review", "--bundle", path, "--finding", "problems", "--report", tmp_path / "none")
    path.write_bytes(b"no bundle")
    with pytest.raises(ConfigurationError, match="nothing to name"):
        audit("review", "--bundle", path, "--finding", "problems")


def test_another_review_than_was_stated_is_noticed(service: Any, audit: Run, meddling: Any) -> None:
    statement = ReviewStatement(first=0, last=1, size=3, root="ab" * 32, finding="nothing")
    with AuditClient(service.trust(), token=TOKEN, outer=service.transport()) as client:
        assert client.review(statement)[0] == len(service.log.leaves) - 1
        service.meddle = lambda request, response: meddling.replaced(response, body=service.log.receipt(0))
        with pytest.raises(LogError):
            client.review(statement)
        service.meddle = lambda request, response: meddling.replaced(response, body=b"nothing")
        with pytest.raises(SealgateError):
            client.review(statement)
        service.meddle = lambda request, response: service.problem(403, "forbidden")
        with pytest.raises(ServiceRefused):
            client.review(statement)
