"""What a client makes of duties inside the seal, and of budgets that are used up."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from sealgate.client.errors import BudgetSpent, ReceiptRefused, ServiceRefused, UnsealedAnswer
from sealgate.client.problems import read_problem
from sealgate.client.session import Session
from sealgate.errors import DecodeError
from sealgate.protocol.frames import Obligations
from sealgate.transparency.record import Record

TOKEN = "header.payload.signature"
ROWS = [[1, 2, 3], [10.5, 20, 30]]
RENEWS = datetime(2030, 1, 1, tzinfo=UTC)


def ask(service: Any) -> Any:
    with Session(
        service.trust(),
        purpose="diagnosis",
        token=TOKEN,
        outer=service.transport(),
        clock=service.clock,
        trust_env=False,
    ) as session:
        return session.infer("toy", ROWS)


# Inside the seal ------------------------------------------------------------------------------------------------------


def test_results_say_what_was_done_to_them(service: Any) -> None:
    assert ask(service).obligations == Obligations()
    service.obligations = "round-digits=6, top-k=1, receipt-required"
    result = ask(service)
    assert result.obligations == Obligations(round_digits=6, top_k=1, receipt_required=True)
    shown = {check.name: check.detail for check in result.transcript}
    assert shown["obligations"] == "round-digits=6, top-k=1, receipt-required"


@pytest.mark.parametrize("said", ["keep-secret", "receipt-required, receipt-required", "round-digits"])
def test_a_duty_that_is_not_known_is_no_answer(service: Any, said: str) -> None:
    service.obligations = said
    with pytest.raises(DecodeError, match="Obligations"):
        ask(service)


@pytest.mark.parametrize(
    ("said", "eps_micro"),
    [
        ('noise-epsilon="0.5"', 0),
        ('noise-epsilon="0.5"', 750_000),
        ('noise-epsilon="0.5"', 250_000),
        ("", 500_000),
        ("round-digits=2", 500_000),
    ],
)
def test_noise_that_the_record_contradicts_is_no_answer(service: Any, said: str, eps_micro: int) -> None:
    service.obligations, service.eps_micro = said, eps_micro
    service.inner_response = service.infer(_infer_request())
    with pytest.raises(ReceiptRefused, match="noise") as caught:
        ask_tensors(service)
    assert caught.value.code == "obligations"


def test_a_noised_answer_with_its_record(service: Any) -> None:
    service.obligations, service.eps_micro = 'noise-epsilon="0.5", receipt-required', 1_000_000
    result = ask_tensors(service)
    assert result.obligations == Obligations(noise_epsilon_micro=500_000, receipt_required=True)
    assert result.receipt.record.eps_micro == 1_000_000


@pytest.mark.parametrize("drop", ["missing", "of another"])
def test_an_answer_that_requires_a_receipt_is_not_opened_without_one(service: Any, meddling: Any, drop: str) -> None:
    service.obligations = "receipt-required"
    earlier: list[bytes] = []

    def meddle(request: Any, response: Any) -> Any:
        if not request.url.path.startswith("/sealed/") or response.status_code != 200:
            return response
        earlier.append(meddling.receipt_of(response))
        return meddling.replaced(response, receipt=b"" if drop == "missing" else earlier[0])

    if drop == "of another":
        service.meddle = meddle
        earlier.clear()
        with pytest.raises(ReceiptRefused):
            ask(service)  # the metadata come first: their receipt stands under the answer
        assert len(earlier) == 2
        return
    service.meddle = meddle
    with pytest.raises((ReceiptRefused, UnsealedAnswer)):
        ask(service)


def _infer_request() -> Any:
    from sealgate.protocol import bhttp, inference

    fields, body = inference.encode_infer_request(inference.InferRequest(inputs=tensors()), binary=True)
    return bhttp.Request("POST", "https", "x", "/v2/models/toy/infer", tuple(fields), bytes(body))


def tensors() -> Any:
    from sealgate.protocol.inference import tensor_from_list

    return (tensor_from_list("features", "FP32", (2, 3), [value for row in ROWS for value in row]),)


def ask_tensors(service: Any) -> Any:
    """One request alone: with tensors, no metadata are read first."""
    with Session(
        service.trust(),
        purpose="diagnosis",
        token=TOKEN,
        outer=service.transport(),
        clock=service.clock,
        trust_env=False,
    ) as session:
        return session.infer("toy", list(tensors()))


# Budgets --------------------------------------------------------------------------------------------------------------


def refuse(service: Any, status: int, code: str, *, record: Record | None, **members: Any) -> None:
    def meddle(request: Any, response: Any) -> Any:
        if not request.url.path.startswith("/sealed/"):
            return response
        return service.problem(status, code, record, **members)

    service.meddle = meddle


def denial(budget: str = "clinic-day", renews_us: str = "1893456000000000") -> Record:
    return Record(
        kind="inference.denied", tenant="clinic", model="toy", purpose="diagnosis", operation="infer",
        reason="budget-exhausted", detail={"budget": budget, "renews_us": renews_us},
    )  # fmt: skip


def test_an_exhausted_budget_is_named_with_its_renewal(service: Any) -> None:
    refuse(service, 429, "budget-exhausted", record=denial(), budget="clinic-day", renews="2030-01-01T00:00:00Z")
    with pytest.raises(BudgetSpent) as caught:
        ask_tensors(service)
    refused = caught.value
    assert (refused.budget, refused.renews, refused.status, refused.code) == (
        "clinic-day",
        RENEWS,
        429,
        "budget-exhausted",
    )
    assert refused.receipt is not None
    assert isinstance(refused, ServiceRefused)
    assert str(refused) == (
        "the service refused (429 budget-exhausted): the budget 'clinic-day' has too little left "
        "for this request; it renews at 2030-01-01 00:00:00 UTC"
    )


def test_the_record_is_believed_before_the_gateway(service: Any) -> None:
    refuse(
        service,
        403,
        "privacy-budget-exhausted",
        record=denial("patients", "0"),
        budget="lies",
        renews="2030-01-01T00:00:00Z",
    )
    with pytest.raises(BudgetSpent) as caught:
        ask_tensors(service)
    assert (caught.value.budget, caught.value.renews) == ("patients", None)
    assert "does not renew" in str(caught.value)


def test_without_a_record_the_gateways_word_is_passed_on_as_its_own(service: Any) -> None:
    refuse(service, 403, "privacy-budget-exhausted", record=None, budget="pa\x1btients", renews=None)
    with pytest.raises(BudgetSpent) as caught:
        ask_tensors(service)
    assert (caught.value.budget, caught.value.renews, caught.value.receipt) == ("pa?tients", None, None)


@pytest.mark.parametrize(
    ("members", "budget", "renews"),
    [
        ('"budget":"b","renews":"2030-01-01T00:00:00Z"', "b", RENEWS),
        ('"budget":"b","renews":null', "b", None),
        ('"budget":"b","renews":"tomorrow"', "b", None),
        ('"budget":"b"', "b", None),
        ('"renews":"2030-01-01T00:00:00Z"', "", None),
    ],
)
def test_members_of_a_problem(members: str, budget: str, renews: Any) -> None:
    body = f'{{"type":"urn:sealgate:problem:budget-exhausted","title":"t",{members}}}'.encode()
    problem = read_problem(429, "application/problem+json", "60", body)
    assert (problem.code, problem.budget, problem.renews) == ("budget-exhausted", budget, renews)


@pytest.mark.parametrize("member", ['"budget":5', '"budget":"b","renews":17', '"budget":["b"]'])
def test_members_of_a_wrong_type_make_it_no_document(member: str) -> None:
    body = f'{{"type":"urn:sealgate:problem:budget-exhausted",{member}}}'.encode()
    assert read_problem(429, "application/problem+json", "", body).code == "http-429"


def test_a_budget_stands_in_no_other_refusal() -> None:
    body = b'{"type":"urn:sealgate:problem:forbidden","budget":"b","renews":null}'
    assert read_problem(403, "application/problem+json", "", body).budget == ""


@pytest.mark.parametrize(
    ("operation", "says"),
    [
        ("explain", "an action of its own"),
        ("infer", "allow this model"),
        ("audit", "allow this credential to read that of the log"),
    ],
)
def test_a_refusal_says_what_was_not_permitted(operation: str, says: str) -> None:
    body = b'{"type":"urn:sealgate:problem:forbidden"}'
    assert says in read_problem(403, "application/problem+json", "", body, operation=operation).text
