"""COSE Receipts for clients: asked for, verified beside the receipt, kept, and verified again offline."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from sealgate.client.audit_commands import AUDIT
from sealgate.client.commands import INFER
from sealgate.client.errors import ReceiptRefused, ServiceRefused, UsageError
from sealgate.client.session import Session
from sealgate.errors import ConfigurationError, ReceiptError
from sealgate.transparency.cose_receipt import reissue, verify_cose_receipt

from .test_commands import TOKEN, run

ROWS = {"features": [[1.0, 2.0, 3.0]]}


def session(service: Any, **more: Any) -> Session:
    given: dict[str, Any] = {
        "purpose": "diagnosis",
        "token": TOKEN,
        "outer": service.transport(),
        "clock": service.clock,
    }
    return Session(service.trust(), **given | more)


def ask(session: Session) -> Any:
    with session:
        name = session.metadata("toy").inputs[0].name
        return session.infer("toy", {name: [[3.0, 1.0, 2.0]]})


def test_an_answer_brings_one_where_it_is_asked_for_and_none_elsewhere(service: Any) -> None:
    assert ask(session(service)).cose_receipt == b""
    assert all("accept-receipt" not in request.headers for request in service.requests)
    result = ask(session(service, cose_receipts=True))
    verified = verify_cose_receipt(result.cose_receipt, result.receipt.leaf, service.trust().log_keys)
    assert (verified.index, verified.record.kind) == (result.receipt.index, "inference.completed")


def test_a_refusal_brings_one_too(service: Any) -> None:
    with pytest.raises(ServiceRefused) as caught, session(service, purpose="marketing", cose_receipts=True) as refused:
        refused.infer("toy", ROWS)
    assert caught.value.receipt is not None
    verified = verify_cose_receipt(caught.value.cose_receipt, caught.value.receipt.leaf, service.trust().log_keys)
    assert verified.record.kind == "inference.denied"


def test_one_that_proves_something_else_is_refused_with_the_answer(service: Any) -> None:
    other = base64.urlsafe_b64encode(reissue(service.log.receipt(0), service.log.signer)).rstrip(b"=").decode()

    def swap(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if "audit-cose-receipt" in response.headers:
            response.headers["audit-cose-receipt"] = other
        return response

    service.meddle = swap
    with pytest.raises(ReceiptRefused, match="COSE"):
        ask(session(service, cose_receipts=True))
    assert ask(session(service)).cose_receipt == b""  # who did not ask looks at none


def test_a_service_that_gives_none_is_not_an_error(service: Any) -> None:
    def drop(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        response.headers.pop("audit-cose-receipt", None)
        return response

    service.meddle = drop
    assert ask(session(service, cose_receipts=True)).cose_receipt == b""


@pytest.fixture
def folder(site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a COSE receipt, its leaf, and the plain receipt of the same answer."""
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.delenv("SEALGATE_TOKEN", raising=False)
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "rows.csv").write_text("area,radius,texture\n3,1,2\n")
    fixed = ("--trust", site.trust, "--token-file", tmp_path / "token", "--model", "toy", "--purpose", "diagnosis")
    kept = ("--cose-out", tmp_path / "r.cose", "--receipt-out", tmp_path / "r.receipt")
    run(INFER, *fixed, "--rows", tmp_path / "rows.csv", *kept)
    return tmp_path


def verify(site: Any, *words: object) -> int:
    return run(AUDIT, "receipt", *words, "--trust", site.trust)


@pytest.mark.parametrize("name", ["r.cose", "r.receipt"])
def test_a_kept_receipt_is_verified_offline(
    site: Any, folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    site.service.requests.clear()
    capsys.readouterr()
    assert verify(site, folder / name, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["record"]["kind"] == "inference.completed"
    assert site.service.log.origin in document["proven"]
    assert document["index"] == len(site.service.log.leaves) - 1
    assert site.service.requests == []


def test_what_does_not_hold_is_refused_in_one_line(site: Any, folder: Path) -> None:
    leaf = folder / "r.cose.leaf"
    moved = leaf.rename(folder / "elsewhere.leaf")
    with pytest.raises(ConfigurationError, match=r"r\.cose\.leaf cannot be read"):
        verify(site, folder / "r.cose")
    assert verify(site, folder / "r.cose", "--leaf", moved) == 0
    moved.write_bytes(site.service.log.leaves[0])
    with pytest.raises(ReceiptError):
        verify(site, folder / "r.cose", "--leaf", moved)
    with pytest.raises(UsageError, match="--leaf"):
        verify(site, folder / "r.receipt", "--leaf", moved)
    (folder / "garbage").write_bytes(b"\xd2 no receipt")
    with pytest.raises(ReceiptError):
        verify(site, folder / "garbage", "--leaf", moved)


def test_a_refused_request_keeps_its_cose_receipt(site: Any, folder: Path) -> None:
    fixed = ("--trust", site.trust, "--token-file", folder / "token", "--model", "toy", "--purpose", "marketing")
    with pytest.raises(ServiceRefused):
        run(INFER, *fixed, "--rows", folder / "rows.csv", "--cose-out", folder / "denied.cose")
    assert verify(site, folder / "denied.cose") == 0


def test_a_place_that_cannot_be_written_is_said_before_anything_is_asked(site: Any, folder: Path) -> None:
    site.service.requests.clear()
    fixed = ("--trust", site.trust, "--token-file", folder / "token", "--model", "toy", "--purpose", "diagnosis")
    with pytest.raises(UsageError, match="--cose-out"):
        run(INFER, *fixed, "--rows", folder / "rows.csv", "--cose-out", folder / "no" / "such")
    assert site.service.requests == []
