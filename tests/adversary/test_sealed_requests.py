"""An attacker who holds a valid credential, or the gateway, or the wire: every move is refused and on record."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from sealgate.ambient import now_us
from sealgate.errors import SealgateError
from sealgate.evidence.trust import load_trust
from sealgate.protocol import bhttp, ohttp
from sealgate.protocol.binding import bind_certificate, bind_token
from sealgate.protocol.ohttp import commitment
from sealgate.transparency.receipt import verify_receipt
from tests.live import MODEL, Live


@dataclass
class Attacker:
    """Builds sealed requests by hand and submits them however it likes."""

    live: Live
    client: httpx.Client
    token: str

    def configs(self) -> tuple[ohttp.KeyConfig, ...]:
        return ohttp.decode_key_configs(self.client.get("/.well-known/ohttp-gateway").content)

    def seal(self, *, chunked: bool = False, body: bytes = b"{}", **changes: Any) -> tuple[bytes, str, Any]:
        date = format_datetime(datetime.fromtimestamp(now_us() // 1_000_000, UTC), usegmt=True)
        values = {"model": MODEL, "purpose": "treatment", "binding": bind_token(self.token), "date": date, **changes}
        request = bhttp.Request(
            method="POST",
            scheme="https",
            authority=values.get("authority", self.live.deployment.settings.deployment.audience),
            path=f"/v2/models/{values['model']}/infer",
            fields=(
                ("date", values["date"]),
                ("purpose", values["purpose"]),
                ("credential-binding", values["binding"]),
                *values.get("fields", ()),
            ),
            body=body,
        )
        return ohttp.seal_request(self.configs()[0], bhttp.encode_request(request), chunked=chunked)

    def submit(
        self, raw: bytes, media_type: str, *, model: str = MODEL, purpose: str = "treatment", token: str | None = None
    ) -> httpx.Response:
        return self.client.post(
            f"/sealed/{model}",
            content=raw,
            headers={
                "content-type": media_type,
                "authorization": f"Bearer {token or self.token}",
                "purpose": purpose,
            },
        )

    def recorded(self, answer: httpx.Response, raw: bytes) -> Any:
        """The verified record in the answer's receipt, which must be about this very request."""
        import base64

        header = answer.headers["audit-receipt"]
        receipt = base64.urlsafe_b64decode(header + "=" * (-len(header) % 4))
        record = verify_receipt(receipt, load_trust(self.live.trust).log_keys).record
        assert record.req_commit == commitment(raw)
        return record


@pytest.fixture
def attacker(live: Live) -> Any:
    with live.http() as client:
        yield Attacker(live, client, live.token())


def test_the_attackers_tools_work_when_nothing_is_wrong(attacker: Attacker) -> None:
    raw, media_type, opener = attacker.seal()
    answer = attacker.submit(raw, media_type)
    assert answer.status_code == 200
    inner = bhttp.decode_response(opener.open(answer.content, answer.headers["content-type"]))
    assert inner.status == 400, "an empty inference request is answered with an error inside the seal"
    assert attacker.recorded(answer, raw).kind == "inference.failed"


def test_a_replayed_request_is_refused_and_recorded(attacker: Attacker) -> None:
    raw, media_type, _ = attacker.seal()
    assert attacker.submit(raw, media_type).status_code == 200
    again = attacker.submit(raw, media_type)
    assert again.status_code == 400
    assert again.json()["type"] == "urn:sealgate:problem:sealed-request-refused"
    record = attacker.recorded(again, raw)
    assert (record.kind, record.outcome, record.reason) == ("inference.failed", "refused", "replayed")


@pytest.mark.parametrize(
    ("inside", "outside", "reason"),
    [
        ({"model": "another"}, {}, "model-mismatch"),
        ({"purpose": "research"}, {}, "purpose-mismatch"),
        ({"authority": "other.example"}, {}, "audience-mismatch"),
        ({"date": "Mon, 01 Jan 2024 00:00:00 GMT"}, {}, "date-outside-window"),
    ],
)
def test_a_request_moved_elsewhere_is_refused(
    attacker: Attacker, inside: dict[str, Any], outside: dict[str, Any], reason: str
) -> None:
    raw, media_type, _ = attacker.seal(**inside)
    answer = attacker.submit(raw, media_type, **outside)
    assert answer.status_code == 400
    assert attacker.recorded(answer, raw).reason == reason


def test_a_request_captured_from_another_user_is_refused(attacker: Attacker, live: Live) -> None:
    raw, media_type, _ = attacker.seal()
    thief = live.token(subject="other-app")
    answer = attacker.submit(raw, media_type, token=thief)
    assert answer.status_code == 400
    assert attacker.recorded(answer, raw).reason == "credential-mismatch"


def test_a_certificates_binding_does_not_serve_for_a_token(attacker: Attacker, live: Live) -> None:
    der = live.session(certificate=live.certificate("integration"))
    der.close()
    raw, media_type, _ = attacker.seal(binding=bind_certificate(b"any certificate"))
    assert attacker.recorded(attacker.submit(raw, media_type), raw).reason == "credential-mismatch"


def test_one_answer_for_every_refusal_of_the_gatekeeper(attacker: Attacker) -> None:
    bodies: list[dict[str, Any]] = []
    for inside in ({"model": "another"}, {"purpose": "research"}, {"authority": "o.example"}, {"binding": "x"}):
        raw, media_type, _ = attacker.seal(**inside)
        bodies.append(attacker.submit(raw, media_type).json())
    altered, media_type, _ = attacker.seal()
    altered = altered[:-1] + bytes([altered[-1] ^ 1])
    bodies.append(attacker.submit(altered, media_type).json())
    assert all(body == bodies[0] for body in bodies), "the refusal tells which check failed"


def test_a_truncated_chunked_request_is_refused(attacker: Attacker) -> None:
    raw, media_type, _ = attacker.seal(chunked=True, body=b"x" * 60_000)
    cut = raw[: len(raw) - 20_000]
    answer = attacker.submit(cut, media_type)
    assert answer.status_code == 400
    assert attacker.recorded(answer, cut).outcome == "refused"


def test_a_request_to_a_key_that_is_gone_names_the_standard_problem(attacker: Attacker) -> None:
    raw, media_type, _ = attacker.seal()
    held = {config.key_id for config in attacker.configs()}
    unknown = next(number for number in range(256) if number not in held)
    answer = attacker.submit(bytes([unknown]) + raw[1:], media_type)
    assert answer.status_code == 400
    assert answer.json()["type"] == "https://iana.org/assignments/http-problem-types#ohttp-key"


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.99])
def test_an_altered_receipt_is_not_believed(attacker: Attacker, live: Live, where: float) -> None:
    import base64

    class Meddler(httpx.BaseTransport):
        def __init__(self) -> None:
            self.meddled = False

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answer = attacker.client.send(
                httpx.Request(request.method, request.url, headers=request.headers, content=request.read())
            )
            headers = dict(answer.headers)
            if "audit-receipt" in headers:
                text = headers["audit-receipt"]
                receipt = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
                receipt[int(where * (len(receipt) - 1))] ^= 1
                headers["audit-receipt"] = base64.urlsafe_b64encode(bytes(receipt)).rstrip(b"=").decode()
                self.meddled = True
            return httpx.Response(answer.status_code, headers=headers, stream=httpx.ByteStream(answer.content))

    meddler = Meddler()
    with live.session(outer=meddler) as session, pytest.raises(SealgateError) as caught:
        session.infer(MODEL, live.rows[:1])
    assert meddler.meddled
    assert caught.value.code != "unreachable"


def test_every_bit_of_the_envelope_counts(attacker: Attacker) -> None:
    raw, media_type, _ = attacker.seal()
    for place in range(0, len(raw), max(1, len(raw) // 24)):
        altered = raw[:place] + bytes([raw[place] ^ 0x10]) + raw[place + 1 :]
        assert attacker.submit(altered, media_type).status_code in (400, 415)
    assert attacker.submit(raw, media_type).status_code == 200, "garbage must not have burnt the true request"
