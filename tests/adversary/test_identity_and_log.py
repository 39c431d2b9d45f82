"""Forgers of credentials, auditors who want more than is theirs, and a gateway that speaks out of turn, for real."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gateway import pki
from sealgate.ambient import now_us, random_bytes
from sealgate.client.transport import open_trust, tls_context
from sealgate.deployment import socket_address
from sealgate.protocol import frames
from sealgate.transparency.record import Record
from tests.live import MODEL, Live, wait_until

AUDIT = "/audit/v1/records"


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.fixture
def client(live: Live) -> Iterator[httpx.Client]:
    with live.http() as made:
        yield made


# Forged tokens -------------------------------------------------------------------------------------------------------


def encoded(value: dict[str, Any] | str) -> str:
    raw = value if isinstance(value, str) else json.dumps(value)
    return base64.urlsafe_b64encode(raw.encode()).rstrip(b"=").decode()


def decoded(part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return found


def forgeries(live: Live) -> dict[str, str]:
    """Tokens that somebody makes who has seen a good one and the public key set, by the reason they are refused for."""
    good = live.token(roles=["auditor"], tenant="oversight")
    head, body, signature = good.split(".")
    header, claims = decoded(head), decoded(body)
    public = (live.deployment.tokens / "jwks.json").read_bytes()
    mine = ec.generate_private_key(ec.SECP256R1())

    def signed(header: dict[str, Any], claims: dict[str, Any]) -> str:
        extra = {name: value for name, value in header.items() if name != "alg"}
        return jwt.encode(claims, mine, algorithm="ES256", headers=extra)

    repeated = json.dumps(claims)[:-1] + ', "tenant": "x"}'
    confused = f"{encoded(header | {'alg': 'HS256'})}.{body}"
    mac = hmac.digest(public, confused.encode(), hashlib.sha256)
    return {
        "algorithm-refused": f"{encoded(header | {'alg': 'none'})}.{body}.AA",
        "algorithm-refused by confusion": f"{confused}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}",
        "token-malformed": f"{encoded(header | {'alg': 'none'})}.{body}.",
        "signature-invalid": signed(header, claims),
        "signature-invalid by other claims": f"{head}.{encoded(claims | {'tenant': 'clinic'})}.{signature}",
        "header-forbidden": signed(header | {"jwk": {"kty": "EC"}}, claims),
        "key-unknown": signed(header | {"kid": "../../../../dev/null"}, claims),
        "issuer-unknown": signed(header, claims | {"iss": "https://evil.example"}),
        "type-mismatch": signed(header | {"typ": "JWT"}, claims),
        "token-malformed by a repeated name": f"{head}.{encoded(repeated)}.{signature}",
        "token-expired": live.token(roles=["auditor"], tenant="oversight", now=now_us() - 7200 * 1_000_000),
    }


def test_no_forged_token_is_anybody_and_all_look_the_same(live: Live, client: httpx.Client) -> None:
    assert client.get(AUDIT, headers=bearer(live.token(roles=["auditor"], tenant="oversight"))).status_code == 200
    answers = {reason: client.get(AUDIT, headers=bearer(token)) for reason, token in forgeries(live).items()}
    assert {answer.status_code for answer in answers.values()} == {401}
    assert len({answer.content for answer in answers.values()}) == 1

    def counted() -> bool:
        found = {record.reason for record in live.records() if record.kind == "auth.failed"}
        return {reason.partition(" ")[0] for reason in answers} <= found

    wait_until(counted, within_s=60, what="every reason in the log")


def test_a_flood_of_forged_tokens_is_counted_and_does_not_fill_the_log(live: Live, client: httpx.Client) -> None:
    def failures() -> list[Record]:
        return [r for r in live.records() if r.kind == "auth.failed" and r.reason == "scheme-unknown"]

    for _ in range(300):
        client.get(AUDIT, headers={"authorization": "Basic YTpi"})
    wait_until(failures, within_s=60, what="the first failure in the log")
    assert len(failures()) <= 4  # at most two minutes were touched, two records each
    for record in failures():
        assert (record.tenant, record.actor, record.detail["source"]) == ("", "", "loopback")


# Rogue certificates --------------------------------------------------------------------------------------------------


def test_a_certificate_of_another_authority_with_the_same_names_is_no_identity(live: Live, tmp_path: Path) -> None:
    def attempt(name: str, leaf: pki.Leaf) -> int:
        path = tmp_path / f"{name}.pem"
        key = leaf[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(pki.certificate_pem(leaf[0]) + key)
        context = tls_context(open_trust(live.trust), None, trust_env=False)
        context.load_cert_chain(path)
        with httpx.Client(base_url=live.url, verify=context, trust_env=False, timeout=30) as client:
            return client.get(AUDIT).status_code

    rogue = pki.make_authority("Sealgate local authority", now_us=now_us(), entropy=random_bytes)
    forged = pki.make_client(rogue, "auditor", now_us=now_us(), entropy=random_bytes)
    with pytest.raises((httpx.TransportError, ssl.SSLError)):
        attempt("forged", forged)
    with live.http(certificate="auditor") as real:
        assert real.get(AUDIT).status_code == 200


# Auditors ------------------------------------------------------------------------------------------------------------


def test_an_auditor_of_one_tenant_gets_nothing_of_another_by_any_way(live: Live, client: httpx.Client) -> None:
    own = bearer(live.token(subject="clinic-auditor", roles=["auditor"], purposes=[]))
    with live.http(certificate="auditor") as overseer:
        theirs = overseer.get(AUDIT, params={"tenant": "oversight", "limit": 1}).json()["records"][0]["record"]
        unfiltered = overseer.get(AUDIT, params={"limit": 1}).json()["cursor"]
        other = overseer.get(AUDIT, params={"tenant": "oversight", "limit": 1}).json()["cursor"]
    assert theirs["tenant"] == "oversight"

    def ask(path: str, **parameters: Any) -> httpx.Response:
        return client.get(path, params=parameters, headers=own)

    assert {row["record"]["tenant"] for row in ask(AUDIT, limit=1000).json()["records"]} == {"clinic"}
    assert ask(AUDIT, tenant="oversight").json()["records"] == []
    assert ask(AUDIT, actor=theirs["actor"]).json()["records"] == []
    missing = ask(f"{AUDIT}/00000000-0000-7000-8000-000000000000")
    hidden = ask(f"{AUDIT}/{theirs['id']}")
    assert (hidden.status_code, hidden.content) == (404, missing.content)
    for cursor in (unfiltered, other):
        assert ask(AUDIT, cursor=cursor, limit=1).status_code == 400
    twice = client.get(AUDIT, params=[("tenant", "clinic"), ("tenant", "oversight")], headers=own)
    assert twice.status_code == 400
    assert ask("/audit/v1/exports", first=0, last=0).status_code == 403


def test_what_was_asked_is_what_is_on_record(live: Live) -> None:
    with live.http(certificate="auditor") as overseer:
        answer = overseer.get(AUDIT, params={"model": MODEL, "reason": "\x1b]0;owned\x07"})
        index = int(answer.headers["audit-record"].split()[1])
    asked = live.records()[index]
    assert asked.kind == "audit.query"
    assert asked.detail == {"question": "records", "model": MODEL, "reason": "?]0;owned?"}


# A gateway that speaks out of turn -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["key.rotate", "worker.start"])
def test_a_gateway_cannot_write_the_hosts_own_records(live: Live, client: httpx.Client, kind: str) -> None:
    frame = frames.AuditRead(
        id=1,
        caller=frames.Caller(tenant="clinic", subject="s", authn="jwt", credential_binding=""),
        decision=frames.Decision(policy_digest=""),
        kind=kind,  # type: ignore[arg-type]
        detail={"key_ids": "none", "completion_key": "mine"},
    )
    before = sum(record.kind == kind for record in live.records())
    with socket.socket(socket.AF_UNIX) as rogue, socket_address(live.deployment.socket) as address:
        rogue.settimeout(20)
        rogue.connect(address)
        rogue.sendall(b"".join(map(bytes, frames.encode_frame(frame))))
        answered = frames.FrameReader(frames.HostToGateway)
        found: list[Any] = []
        while data := _received(rogue):
            found += answered.feed(data)
    assert {type(reply) for reply, _ in found} <= {frames.RuntimeState}
    assert sum(record.kind == kind for record in live.records()) == before
    assert client.get("/health/ready").status_code == 200


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""
