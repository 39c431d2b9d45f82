"""The gateway, or whoever stands between, as the attacker: every lie is a typed error and nothing is opened."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealgate.client.errors import EvidenceRefused, InferenceFailed, ReceiptRefused, ServiceRefused, UnsealedAnswer
from sealgate.client.exchange import SealedChannel
from sealgate.client.messages import OuterRequest, OuterResponse
from sealgate.client.session import Session
from sealgate.errors import DecodeError, EvidenceError, OpenError, SealgateError, TruncatedError
from sealgate.evidence.trust import parse_trust
from sealgate.limits import CHUNK, CHUNKED_ABOVE, DATE_WINDOW_S
from sealgate.protocol import bhttp, ohttp
from sealgate.protocol.completion import Statement, sign_completion
from sealgate.protocol.hpke import Kem, KemPrivateKey
from sealgate.protocol.inference import tensor_from_list
from sealgate.protocol.ohttp import KeyConfig, commitment, encode_key_configs
from sealgate.protocol.sizes import sealed_size, tell_limit
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.record import Record

TOKEN = "header.payload.signature"
ROWS = [[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]
Opened = list[int]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Grows when an answer is opened: attacks must be noticed before."""
    seen: Opened = []
    real = bhttp.decode_response

    def noticing(data: bytes) -> bhttp.Response:
        seen.append(len(data))
        return real(data)

    monkeypatch.setattr(bhttp, "decode_response", noticing)
    return seen


def make_session(service: Any, **options: Any) -> Session:
    arguments = {"purpose": "diagnosis", "token": TOKEN} | options
    trust = arguments.pop("trust", None) or service.trust()
    return Session(trust, outer=service.transport(), clock=service.clock, trust_env=False, **arguments)


def on_sealed(change: Callable[[httpx.Response], httpx.Response]) -> Callable[..., httpx.Response]:
    def meddle(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        return change(response) if "/sealed/" in request.url.path else response

    return meddle


def refused(service: Any, kind: type[SealgateError], **options: Any) -> Any:
    with make_session(service, **options) as session, pytest.raises(kind) as failure:
        session.infer("toy", ROWS)
    return failure.value


def unproven(service: Any) -> str:
    """The code for which the receipt of a refusal does not count."""
    with make_session(service) as session, pytest.raises(ServiceRefused) as failure:
        session.infer("toy", _tensors())
    error = failure.value
    assert error.receipt is None
    assert error.receipt_bytes == b""
    assert error.receipt_refused is not None
    assert str(error.receipt_refused) in str(error)
    return str(error.receipt_refused.code)


# Sizes -------------------------------------------------------------------------------------------------------------


def test_a_limit_made_for_it_shows_no_more_of_a_length_than_its_size_class(service: Any) -> None:
    """Who says what is too large could otherwise ask, limit by limit, how long a request is inside its padding."""

    def seen(rows: int, limit: int) -> list[int]:
        """What a gateway sees of a request for so many rows, after one about the model: all sizes."""
        sizes: list[int] = []

        def meddle(request: httpx.Request, response: httpx.Response) -> httpx.Response:
            if request.method == "POST":
                sizes.append(len(request.content))
            response.headers["upload-limit"] = tell_limit(sealed_size(limit))
            return response

        service.meddle = meddle
        with make_session(service) as session, contextlib.suppress(SealgateError):
            session.infer("toy", [[1.0, 2.0, 3.0]] * rows)
        return sizes

    few, more, unlimited = 2020, 2060, 16 << 20
    largest = max(seen(few, unlimited))
    assert largest == max(seen(more, unlimited))
    for limit in range(largest - 2500, largest, 100):
        assert seen(few, limit) == seen(more, limit), limit


# Receipts ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.integers(0, 10_000), change=st.integers(1, 255))
def test_any_altered_byte_of_a_receipt_is_noticed(service: Any, meddling: Any, place: int, change: int) -> None:
    def alter(response: httpx.Response) -> httpx.Response:
        receipt = bytearray(meddling.receipt_of(response))
        receipt[place % len(receipt)] ^= change
        return meddling.replaced(response, receipt=bytes(receipt))

    service.meddle = on_sealed(alter)
    refused(service, ReceiptRefused)


@pytest.mark.parametrize("text", ["", "!!!", "QUJD", "QUJD====", "a" * 100_000, "QUJD, QUJD"])
def test_garbage_instead_of_a_receipt_is_refused(service: Any, meddling: Any, text: str, opened: Opened) -> None:
    service.meddle = on_sealed(lambda response: meddling.replaced(response, audit_receipt=text))
    refused(service, ReceiptRefused)
    assert opened == []


def test_the_receipt_of_an_earlier_request_does_not_pass_for_this_one(
    service: Any, meddling: Any, opened: Opened
) -> None:
    earlier: list[bytes] = []

    def replay(response: httpx.Response) -> httpx.Response:
        earlier.append(meddling.receipt_of(response))
        return meddling.replaced(response, receipt=earlier[0])

    service.meddle = on_sealed(replay)
    with make_session(service) as session:
        session.metadata("toy")
        opened.clear()
        with pytest.raises(ReceiptRefused) as failure:
            session.infer("toy", ROWS)
    assert failure.value.code == "request"
    assert opened == []


def test_a_record_older_than_the_evidence_is_refused_before_anything_else_of_it_counts(
    service: Any, meddling: Any
) -> None:
    service.meddle = on_sealed(lambda response: meddling.replaced(response, receipt=service.log.receipt(0)))
    assert refused(service, ReceiptRefused).code == "log"


def test_an_answer_sealed_for_another_request_is_noticed(service: Any, meddling: Any, opened: Opened) -> None:
    bodies: list[bytes] = []

    def swap(response: httpx.Response) -> httpx.Response:
        bodies.append(response.read())
        return meddling.replaced(response, body=bodies[0])

    service.meddle = on_sealed(swap)
    with make_session(service) as session:
        session.metadata("toy")
        opened.clear()
        with pytest.raises(ReceiptRefused) as failure:
            session.infer("toy", ROWS)
    assert failure.value.code == "response"
    assert opened == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"kind": "inference.authorized"}, "kind"),
        ({"outcome": "failed"}, "kind"),
        ({"kind": "inference.failed"}, "kind"),
        ({"runtime_instance": "somebody-else"}, "worker"),
        ({"runtime_seq": 7}, "worker"),
        ({"units": 9}, "worker"),
        ({"runtime_sig": ""}, "worker"),
        ({"runtime_sig": "AAAA"}, "worker"),
        ({"grant": "another"}, "worker"),
        ({"purpose": "marketing"}, "purpose"),
        ({"operation": "read-model"}, "purpose"),
        ({"assurance": ""}, "state"),
        ({"degraded": True}, "state"),
        ({"evidence_digest": ""}, "state"),
        ({"evidence_digest": "e" * 64}, "state"),
        ({"req_commit": "0" * 64}, "request"),
        ({"resp_commit": "0" * 64}, "response"),
    ],
)
def test_a_host_that_writes_another_record_is_noticed(
    service: Any, changes: dict[str, Any], code: str, opened: Opened
) -> None:
    service.record_changes = changes
    tensors = _tensors()
    with make_session(service) as session, pytest.raises(ReceiptRefused) as failure:
        session.infer("toy", tensors)
    assert failure.value.code == code
    assert failure.value.transcript[-1].outcome == "fail"
    assert opened == []


@pytest.mark.parametrize("field", ["model", "model_digest", "certificate_digest"])
def test_a_worker_that_answers_with_another_model_is_noticed(service: Any, field: str, opened: Opened) -> None:
    honest_end = service.stated

    def other_model(draft: Any, statement: Statement, kind: str, intent: int) -> Any:
        return honest_end(draft, msgspec.structs.replace(statement, **{field: "f" * 64}), kind, intent)

    service.stated = other_model
    with make_session(service) as session, pytest.raises(ReceiptRefused) as failure:
        session.infer("toy", _tensors())
    assert failure.value.code == "model"
    assert opened == []


def test_a_statement_in_another_instances_name_is_noticed_though_it_is_signed(service: Any) -> None:
    honest_end = service.stated

    def other_instance(draft: Any, statement: Statement, kind: str, intent: int) -> Any:
        return honest_end(draft, msgspec.structs.replace(statement, instance="instance-2"), kind, intent)

    service.stated = other_instance
    error = refused(service, ReceiptRefused)
    assert error.code == "worker"
    assert "another instance" in str(error)


def test_a_receipt_of_another_trusted_log_is_noticed(service: Any) -> None:
    """The trust file knows two logs; the evidence names one of them."""
    other = NoteSigner.from_seed("other.test/log", b"\x0b" * 32)
    both = f'log_keys = ["{service.log.signer.vkey}", "{other.vkey}"]'
    text = service.trust_text().replace(f'log_keys = ["{service.log.signer.vkey}"]', both)
    with make_session(service, trust=parse_trust(text.encode(), source="trust.toml")) as session:
        session.evidence()
        service.log.signer, service.log.origin = other, other.name
        with pytest.raises(ReceiptRefused) as failure:
            session.infer("toy", _tensors())
    assert failure.value.code == "log"


@pytest.mark.parametrize("status", [201, 206, 302])
def test_a_sealed_body_with_another_status_is_not_an_answer(service: Any, meddling: Any, status: int) -> None:
    service.meddle = on_sealed(lambda response: meddling.replaced(response, status=status))
    refused(service, UnsealedAnswer)


def test_a_completion_signed_by_another_key_is_noticed(service: Any) -> None:
    impostor = Ed25519PrivateKey.generate()
    honest_end = service.stated

    def forged(draft: Any, statement: Statement, kind: str, intent: int) -> Any:
        record = honest_end(draft, statement, kind, intent)
        return msgspec.structs.replace(record, runtime_sig=sign_completion(statement, impostor).signature)

    service.stated = forged
    assert refused(service, ReceiptRefused).code == "worker"


def test_a_log_signed_by_another_key_is_noticed(service: Any) -> None:
    trust = service.trust()
    with make_session(service, trust=trust) as session:
        session.metadata("toy")
        service.log.signer = NoteSigner.from_seed("example.test/log", b"\x08" * 32)
        with pytest.raises(ReceiptRefused) as failure:
            session.infer("toy", ROWS)
    assert failure.value.code == "receipt"


@pytest.mark.parametrize("seconds", [DATE_WINDOW_S + 10, -DATE_WINDOW_S - 10])
def test_a_record_of_another_time_is_noticed(service: Any, seconds: int) -> None:
    with make_session(service) as session:
        session.metadata("toy")
        honest, service.log.clock = service.log.clock, lambda: service.clock() + seconds * 1_000_000
        with pytest.raises(ReceiptRefused) as failure:
            session.infer("toy", ROWS)
        service.log.clock = honest
    assert failure.value.code == "time"


# Answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("media_type", ["application/json", "message/ohttp-req", "text/html", ""])
def test_an_unsealed_answer_is_never_an_answer(service: Any, meddling: Any, media_type: str) -> None:
    body = b'{"model_name":"toy","outputs":[]}'
    service.meddle = on_sealed(lambda response: meddling.replaced(response, body=body, content_type=media_type))
    refused(service, UnsealedAnswer)


def test_a_sealed_answer_of_the_other_framing_is_refused(service: Any, meddling: Any) -> None:
    service.meddle = on_sealed(lambda response: meddling.replaced(response, content_type="message/ohttp-chunked-res"))
    refused(service, DecodeError)


@pytest.mark.parametrize("lost", [1, 16, 17, CHUNK, CHUNK + 16])
def test_a_truncated_chunked_answer_is_always_an_error(service: Any, meddling: Any, lost: int) -> None:
    service.meddle = on_sealed(lambda response: meddling.replaced(response, body=response.read()[:-lost]))
    rows = [[1.0, 1.0, 1.0]] * (CHUNKED_ABOVE // 8)
    with make_session(service) as session:
        honest, service.meddle = service.meddle, lambda request, response: response
        session.metadata("toy")
        service.meddle = honest
        with pytest.raises(ReceiptRefused) as failure:
            session.infer("toy", rows)
    assert failure.value.code == "response"


def test_a_worker_that_commits_to_a_truncated_stream_is_an_error_too(service: Any) -> None:
    """The receipt fits what came; the stream itself says that its end is missing."""
    honest = ohttp.ResponseSealer.seal

    def cut(sealer: Any, inner: bytes) -> tuple[bytes, str]:
        body, media_type = honest(sealer, inner)
        return (body[:-17] if "chunked" in media_type else body), media_type

    with pytest.MonkeyPatch.context() as patch, make_session(service) as session:
        session.metadata("toy")
        patch.setattr(ohttp.ResponseSealer, "seal", cut)
        with pytest.raises((TruncatedError, OpenError, DecodeError)):
            session.infer("toy", [[1.0, 1.0, 1.0]] * (CHUNKED_ABOVE // 8))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(body=st.binary(max_size=200), status=st.sampled_from([200, 201, 204, 302, 400, 403, 500, 599]), data=st.data())
def test_garbage_from_the_gateway_is_a_typed_error(
    service: Any, meddling: Any, body: bytes, status: int, data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(["/sealed/", "/.well-known/attestation", "/.well-known/ohttp-gateway"]))
    media_type = data.draw(
        st.sampled_from(["application/problem+json", "message/ohttp-res", "application/eat+cwt", "a/b", ""])
    )

    def garbage(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if not request.url.path.startswith(path):
            return response
        return meddling.replaced(response, body=body, status=status, content_type=media_type)

    service.meddle = garbage
    refused(service, SealgateError)


# Evidence ----------------------------------------------------------------------------------------------------------


def test_evidence_for_another_nonce_is_refused(service: Any) -> None:
    honest = service.evidence
    service.evidence = lambda nonce: honest(b"n" * 32)
    assert refused(service, EvidenceRefused).code == "nonce"
    assert service.count("/sealed/") == 0


def test_evidence_served_again_is_refused(service: Any, meddling: Any) -> None:
    kept: list[bytes] = []

    def replay(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if "attestation" in request.url.path:
            kept.append(response.read())
            return meddling.replaced(response, body=kept[0])
        return response

    service.meddle = replay
    with make_session(service) as session:
        session.evidence()
        with pytest.raises(EvidenceRefused) as failure:
            session.evidence()
    assert failure.value.code == "nonce"


def test_a_gateway_that_publishes_its_own_keys_gets_nothing_sealed_to_them(service: Any, meddling: Any) -> None:
    own = encode_key_configs([KeyConfig(1, Kem.X25519, KemPrivateKey.generate(Kem.X25519).public_bytes())])

    def publish(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        return meddling.replaced(response, body=own) if "ohttp-gateway" in request.url.path else response

    service.meddle = publish
    assert refused(service, EvidenceRefused).code == "key-configs"
    assert service.count("/sealed/") == 0
    assert service.count("/.well-known/attestation") == 2


def test_a_rotation_to_evidence_of_another_operator_is_refused_on_the_retry(service: Any) -> None:
    trust = service.trust()
    with make_session(service, trust=trust) as session:
        session.metadata("toy")
        service.instance.rotate(9)
        service.operator = Ed25519PrivateKey.generate()
        with pytest.raises(EvidenceRefused) as failure:
            session.infer("toy", ROWS)
    assert failure.value.code == "signature"
    assert service.count("/sealed/") == 2


def test_a_log_that_went_back_since_the_last_evidence_is_noticed(service: Any) -> None:
    with make_session(service) as session:
        session.metadata("toy")
        session.evidence()
        del service.log.leaves[1:]
        with pytest.raises(EvidenceError) as failure:
            session.evidence()
    assert failure.value.code == "log-rolled-back"


def test_a_log_that_turned_goes_on_and_does_not_go_back(service: Any) -> None:
    first = service.log
    session = make_session(service)
    with session:
        assert session.infer("toy", ROWS).receipt.record.log == first.origin
        service.log = type(first)(first.signer.under(f"{first.origin}/2031h1"), service.clock)
        service.log.append(Record(kind="log.opened"))
        assert session.infer("toy", ROWS).receipt.record.log == f"{first.origin}/2031h1"  # on evidence from before
        session.evidence()
        service.log = first
        with pytest.raises(EvidenceError) as failure:
            session.evidence()
    assert failure.value.code == "log-rolled-back"


def fetch(service: Any, channel: SealedChannel) -> tuple[Any, Callable[[], Any]]:
    """Evidence on its way: what was asked so far, and a function that finishes."""
    flow = channel.renew()
    asked = next(flow)

    def answer(outer: OuterRequest) -> OuterResponse:
        response = service.handle(httpx.Request(outer.method, "https://sealgate.test:8443" + outer.path))
        return OuterResponse(status=response.status_code, headers=dict(response.headers), body=response.read())

    keys = flow.send(answer(asked))

    def finish() -> Any:
        try:
            flow.send(answer(keys))
        except StopIteration as done:
            return done.value
        raise AssertionError("more was asked for")

    return keys, finish


def test_requests_that_fetch_evidence_side_by_side_do_not_disturb_each_other(service: Any) -> None:
    channel = SealedChannel(service.trust(), clock=service.clock)
    _, finish_older = fetch(service, channel)
    service.log.append(Record(kind="log.opened"))
    _, finish_newer = fetch(service, channel)
    newer = finish_newer()
    older = finish_older()
    assert older.checkpoint.size < newer.checkpoint.size
    assert channel.evidence is newer


def test_two_views_of_the_log_fetched_side_by_side_are_noticed(service: Any) -> None:
    channel = SealedChannel(service.trust(), clock=service.clock)
    service.log.append(Record(kind="log.opened"))
    _, finish_one = fetch(service, channel)
    service.log.leaves.pop()
    service.clock.advance(seconds=1)
    service.log.append(Record(kind="log.opened"))
    _, finish_other = fetch(service, channel)
    finish_one()
    with pytest.raises(EvidenceError) as failure:
        finish_other()
    assert failure.value.code == "log-rolled-back"


def test_evidence_that_expires_while_it_is_fetched_is_refused(service: Any) -> None:
    honest = service.evidence

    def slow(nonce: bytes) -> bytes:
        evidence = honest(nonce)
        service.clock.advance(seconds=3600)
        return evidence

    service.evidence = slow
    assert refused(service, EvidenceRefused).code == "time"
    assert service.count("/sealed/") == 0


# Refusals ----------------------------------------------------------------------------------------------------------


def test_a_recorded_refusal_carries_its_verified_receipt(service: Any) -> None:
    with make_session(service, purpose="marketing") as session, pytest.raises(ServiceRefused) as failure:
        session.infer("toy", _tensors())
    error = failure.value
    assert (error.status, error.code) == (403, "forbidden")
    assert error.receipt is not None
    assert (error.receipt.record.kind, error.receipt.record.purpose) == ("inference.denied", "marketing")
    assert error.receipt_bytes


def test_an_unrecorded_refusal_is_told_as_such(service: Any) -> None:
    with make_session(service, token="other.token.here") as session, pytest.raises(ServiceRefused) as failure:
        session.infer("toy", _tensors())
    assert (failure.value.status, failure.value.code, failure.value.receipt) == (401, "unauthenticated", None)


def test_the_receipt_of_somebody_elses_refusal_is_not_accepted(service: Any, meddling: Any) -> None:
    """A refusal about another sealed request: its commitment is not ours."""
    draft = Record(kind="inference.denied", model="toy", purpose="diagnosis", operation="infer", req_commit="9" * 64)
    service.sealed = lambda request: service.problem(503, "unavailable", draft)
    assert unproven(service) == "request"


@pytest.mark.parametrize(("field", "value"), [("model", "other"), ("purpose", "other"), ("operation", "read-model")])
def test_a_refusal_record_about_something_else_is_not_accepted(service: Any, field: str, value: str) -> None:
    draft = Record(kind="inference.denied", model="toy", purpose="diagnosis", operation="infer", reason="policy")
    service.sealed = lambda request: service.problem(403, "forbidden", msgspec.structs.replace(draft, **{field: value}))
    assert unproven(service) == ("model" if field == "model" else "purpose")


def test_an_answered_request_cannot_be_passed_off_as_refused(service: Any, meddling: Any) -> None:
    service.meddle = on_sealed(
        lambda response: meddling.replaced(response, status=403, content_type="application/problem+json", body=b"{}")
    )
    assert unproven(service) == "kind"


def test_a_request_altered_on_the_way_is_refused_and_the_receipt_shows_the_alteration(service: Any) -> None:
    honest = service.sealed

    def alter(request: httpx.Request) -> httpx.Response:
        body = bytearray(request.content)
        body[-1] ^= 1
        with pytest.raises(OpenError):
            honest(httpx.Request("POST", request.url, headers=request.headers, content=bytes(body)))
        draft = Record(kind="inference.failed", model="toy", purpose="diagnosis", operation="infer")
        commit = commitment(bytes(body))
        return service.problem(400, "sealed-request-refused", msgspec.structs.replace(draft, req_commit=commit))

    service.sealed = alter
    assert unproven(service) == "request"


@pytest.mark.parametrize("text", ["!!!", "QUJD", "a" * 100_000])
def test_a_refusal_with_a_garbled_receipt_says_so(service: Any, text: str) -> None:
    service.meddle = on_sealed(
        lambda response: httpx.Response(503, headers={"audit-receipt": text}, stream=httpx.ByteStream(b""))
    )
    assert unproven(service) == "receipt"


def test_the_runtimes_own_error_is_told_with_its_receipt(service: Any) -> None:
    service.inner_response = bhttp.Response(400, (("content-type", "application/json"),), b'{"error":"3 \\u001b[2J"}')
    with make_session(service) as session, pytest.raises(InferenceFailed) as failure:
        session.infer("toy", _tensors())
    assert str(failure.value) == "the runtime answered 400: 3 ?[2J"
    assert failure.value.receipt.record.kind == "inference.failed"


def test_words_of_the_gateway_cannot_drive_a_terminal(service: Any, meddling: Any) -> None:
    body = b'{"type":"urn:sealgate:problem:unavailable","detail":"\\u001b]0;owned\\u0007 \\u202e now"}'
    service.meddle = on_sealed(
        lambda response: httpx.Response(
            503,
            headers={"content-type": "application/problem+json", "retry-after": "7"},
            stream=httpx.ByteStream(body),
        )
    )
    with make_session(service) as session, pytest.raises(ServiceRefused) as failure:
        session.infer("toy", _tensors())
    assert str(failure.value).isprintable()
    assert failure.value.retry_after_s == 7


def test_errors_never_carry_the_token_or_the_rows(service: Any, meddling: Any) -> None:
    service.meddle = on_sealed(lambda response: meddling.replaced(response, body=b"x"))
    error: BaseException | None = refused(service, ReceiptRefused)
    while error is not None:
        assert TOKEN not in str(error)
        assert "30.0" not in str(error)
        error = error.__cause__


def _tensors() -> list[Any]:
    return [tensor_from_list("features", "FP32", (2, 3), ROWS)]


def test_the_stand_in_service_is_honest_without_an_attacker(service: Any) -> None:
    """The other tests mean something only because this one passes."""
    with make_session(service) as session:
        result = session.infer("toy", _tensors())
    assert result.outputs["label"] == [0, 1]
    assert base64.b64encode(result.receipt_bytes)
