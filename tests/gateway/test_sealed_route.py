"""The sealed path over real TLS, against a host that speaks real frames."""

from __future__ import annotations

import asyncio
import base64
import gc
import ssl
import sys

import pytest

from gateway.errors import CHALLENGE
from gateway.gate import source_class
from sealgate.protocol import frames
from sealgate.protocol.binding import bind_certificate, bind_token
from tests.gateway.conftest import LOG, post_sealed, sealed_request


def problem(answer, code):
    """Checks that an answer is this problem, and only that."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    document = answer.json()
    assert document["type"] == f"urn:sealgate:problem:{code}"
    assert document["status"] == answer.status_code
    assert set(document) == {"type", "title", "status", "detail"}
    return document


def test_a_token_sends_and_gets_the_sealed_answer_with_its_receipt(shared):
    token = shared.token()
    raw, media_type = sealed_request()
    answer = shared.client(token=token).post(
        "/sealed/wine", content=raw, headers={"Content-Type": media_type, "Purpose": "treatment"}
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "message/ohttp-res"
    assert answer.content == b"sealed answer to " + raw[:4]
    assert answer.headers["audit-record"] == f"{LOG} 7"
    assert "audit-cose-receipt" not in answer.headers
    assert base64.urlsafe_b64decode(answer.headers["audit-receipt"] + "==") == b"receipt of 7"
    (frame,) = shared.host.heard(frames.Submit)
    assert (frame.model, frame.operation, frame.purpose, frame.media_type) == ("wine", "infer", "treatment", media_type)
    assert frame.caller == frames.Caller(
        tenant="clinic", subject="alice", authn="jwt", credential_binding=bind_token(token)
    )
    assert frame.decision.policy_ids == ("clients-infer",)
    assert frame.decision.policy_digest == shared.gate.policy.digest
    assert frame.decision.obligations.round_digits == 6
    assert shared.host.bodies() == [raw]


def test_a_cose_receipt_is_asked_for_by_a_field_and_handed_on(shared):
    raw, media_type = sealed_request()
    headers = {"Content-Type": media_type, "Purpose": "treatment", "Accept-Receipt": "application/cose"}
    reply = frames.Answer(media_type="message/ohttp-res", log=LOG, record=7, receipt=b"r", cose_receipt=b"as cose")
    shared.host.script = lambda frame, body: (reply, b"sealed")
    client = shared.client(token=shared.token())
    answer = client.post("/sealed/wine", content=raw, headers=headers)
    assert base64.urlsafe_b64decode(answer.headers["audit-cose-receipt"] + "==") == b"as cose"
    assert base64.urlsafe_b64decode(answer.headers["audit-receipt"] + "==") == b"r"
    denied = frames.Recorded(log=LOG, record=8, receipt=b"r", cose_receipt=b"denied")
    shared.host.script = lambda frame, body: (denied, b"")
    answer = client.post("/sealed/wine", content=raw, headers=headers | {"Purpose": "marketing"})
    assert answer.status_code == 403
    assert base64.urlsafe_b64decode(answer.headers["audit-cose-receipt"] + "==") == b"denied"
    assert [frame.cose for kind in (frames.Submit, frames.Deny) for frame in shared.host.heard(kind)] == [True, True]
    answer = client.post("/sealed/wine", content=raw, headers=headers | {"Accept-Receipt": "application/jwt"})
    assert (answer.status_code, problem(answer, "malformed-request")["detail"]) == (
        400,
        "Accept-Receipt, if it is given, is application/cose.",
    )


def test_a_certificate_alone_is_an_identity(shared):
    assert post_sealed(shared.client(certificate="integration")).status_code == 200
    (frame,) = shared.host.heard(frames.Submit)
    pem = (shared.deployment.pki / "clients" / "integration.pem").read_text()
    assert frame.caller == frames.Caller(
        tenant="clinic",
        subject="hospital-integration",
        authn="mtls",
        credential_binding=bind_certificate(ssl.PEM_cert_to_DER_cert(pem)),
    )


def test_with_both_the_token_is_the_principal_and_the_connection_counts_as_mtls(shared):
    token = shared.token()
    assert post_sealed(shared.client(token=token, certificate="integration")).status_code == 200
    (frame,) = shared.host.heard(frames.Submit)
    assert (frame.caller.subject, frame.caller.authn) == ("alice", "jwt+mtls")
    assert frame.caller.credential_binding == bind_token(token)


def test_another_tenants_certificate_does_not_make_a_token_mtls(shared):
    assert post_sealed(shared.client(token=shared.token(), certificate="auditor")).status_code == 200
    (frame,) = shared.host.heard(frames.Submit)
    assert frame.caller.authn == "jwt"


def test_a_bad_token_is_not_saved_by_a_good_certificate(shared):
    problem(post_sealed(shared.client(token="x.y.z", certificate="integration")), "unauthenticated")
    assert shared.host.heard(frames.AuthFailed)[0].reason == "token-malformed"


def test_the_generic_resource_takes_the_model_from_its_field(shared):
    raw, media_type = sealed_request()
    headers = {"Content-Type": media_type, "Purpose": "treatment", "Sealed-Model": "wine"}
    answer = shared.client(token=shared.token()).post("/.well-known/ohttp-gateway", content=raw, headers=headers)
    assert answer.status_code == 200
    assert shared.host.heard(frames.Submit)[0].model == "wine"


def test_a_chunked_request_and_another_operation_are_handed_on_as_such(shared):
    raw, media_type = sealed_request(200_000, chunked=True)
    headers = {"Content-Type": media_type, "Purpose": "treatment", "Sealed-Operation": "read-model"}
    answer = shared.client(token=shared.token()).post("/sealed/wine", content=raw, headers=headers)
    assert answer.status_code == 200
    (frame,) = shared.host.heard(frames.Submit)
    assert (frame.operation, frame.media_type) == ("read-model", "message/ohttp-chunked-req")
    assert shared.host.bodies() == [raw]


@pytest.mark.parametrize(
    ("model", "headers"),
    [
        ("wine", {"Purpose": "marketing"}),  # not the tenant's, not the caller's
        ("nothing", {}),  # no such model
    ],
)
def test_a_denial_is_recorded_before_the_caller_hears_of_it(shared, model, headers):
    answer = post_sealed(shared.client(token=shared.token()), model=model, **headers)
    assert answer.status_code == 403
    problem(answer, "forbidden")
    assert answer.headers["audit-record"] == f"{LOG} 8"
    assert base64.urlsafe_b64decode(answer.headers["audit-receipt"] + "==") == b"receipt of 8"
    (frame,) = shared.host.heard(frames.Deny)
    assert (frame.model, frame.operation) == (model, "infer")
    assert frame.decision.reason in {"policy-forbids", "unknown-model"}
    assert shared.host.bodies() == []


def test_a_denial_that_cannot_be_recorded_is_an_outage_not_a_403(shared):
    shared.host.script = lambda frame, body: (frames.Refused(status=503, code="unavailable", retry_after_s=9), b"")
    answer = post_sealed(shared.client(token=shared.token()), model="nothing")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "9")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("sealed-request-refused", 400),
        ("budget-exhausted", 429),
        ("unavailable", 503),
        ("busy", 503),
        ("timed-out", 504),
        ("something-private", 500),
    ],
)
def test_refusals_of_the_runtime_become_problems_with_their_record(shared, code, status):
    refused = frames.Refused(status=status, code=code, log=LOG, record=11, receipt=b"r", retry_after_s=0)
    shared.host.script = lambda frame, body: (refused, b"")
    answer = post_sealed(shared.client(token=shared.token()))
    assert answer.status_code == status
    problem(answer, code if status != 500 else "internal")
    assert answer.headers["audit-record"] == f"{LOG} 11"
    assert "something-private" not in answer.text
    assert ("retry-after" in answer.headers) == (status in (429, 503))


@pytest.mark.parametrize(
    ("code", "status", "renews_us", "renews"),
    [
        ("budget-exhausted", 429, 1_796_083_200_000_000, "2026-12-01T00:00:00Z"),
        ("privacy-budget-exhausted", 403, 0, None),
    ],
)
def test_a_budget_that_is_used_up_is_named_with_its_renewal(shared, code, status, renews_us, renews):
    refused = frames.Refused(
        status=status, code=code, log=LOG, record=11, receipt=b"r", retry_after_s=77 if renews_us else 0,
        budget="clinic-month", renews_us=renews_us,
    )  # fmt: skip
    shared.host.script = lambda frame, body: (refused, b"")
    answer = post_sealed(shared.client(token=shared.token()))
    document = answer.json()
    assert (answer.status_code, document["type"]) == (status, f"urn:sealgate:problem:{code}")
    assert (document["budget"], document["renews"]) == ("clinic-month", renews)
    assert answer.headers.get("retry-after") == ("77" if renews_us else None)
    assert answer.headers["audit-record"] == f"{LOG} 11"


def test_an_unknown_key_has_the_registered_problem_type(shared):
    shared.host.script = lambda frame, body: (frames.Refused(status=400, code="unknown-key"), b"")
    answer = post_sealed(shared.client(token=shared.token()))
    assert answer.status_code == 400
    assert answer.json()["type"] == "https://iana.org/assignments/http-problem-types#ohttp-key"
    assert "audit-record" not in answer.headers


@pytest.mark.parametrize(
    ("path", "headers", "body", "status", "code"),
    [
        ("/sealed/wine", {"Purpose": ""}, None, 400, "malformed-request"),
        ("/sealed/wine", {"Purpose": "a b"}, None, 400, "malformed-request"),
        ("/sealed/wine", {"Purpose": "x" * 129}, None, 400, "malformed-request"),
        ("/sealed/-wine", {}, None, 400, "malformed-request"),
        ("/sealed/wi%0ane", {}, None, 400, "malformed-request"),
        ("/sealed/wine", {"Sealed-Operation": "delete"}, None, 400, "malformed-request"),
        ("/.well-known/ohttp-gateway", {}, None, 400, "malformed-request"),
        ("/sealed/wine", {"Content-Type": "application/json"}, None, 415, "unsupported-media-type"),
        ("/sealed/wine", {"Content-Type": ""}, None, 415, "unsupported-media-type"),
        ("/sealed/wine", {}, b"", 400, "malformed-request"),
        ("/sealed/wine", {}, b"\x01\x00\x20\x00\x01\x00\x01", 400, "malformed-request"),
        ("/sealed/a/b", {}, None, 404, "not-found"),
        ("/sealed", {}, None, 404, "not-found"),
    ],
)
def test_what_is_not_a_sealed_request_is_refused(shared, path, headers, body, status, code):
    raw, media_type = sealed_request()
    fields = {"Content-Type": media_type, "Purpose": "treatment"} | headers
    content = raw if body is None else body
    answer = shared.client(token=shared.token()).post(path, content=content, headers=fields)
    assert answer.status_code == status
    problem(answer, code)
    assert shared.host.bodies() == []


def test_who_says_a_purpose_that_is_no_name_is_told_what_one_is(shared):
    raw, media_type = sealed_request()
    fields = {"Content-Type": media_type, "Purpose": "clinical/research"}
    answer = shared.client(token=shared.token()).post("/sealed/wine", content=raw, headers=fields)
    assert "ASCII letters, digits, '.', '_' and '-'" in problem(answer, "malformed-request")["detail"]


@pytest.mark.parametrize("name", ["Purpose", "Sealed-Operation", "Sealed-Model", "Content-Type"])
def test_a_field_said_twice_is_refused_since_another_reader_might_take_the_other_value(shared, name):
    raw, media_type = sealed_request()
    fields = {"Content-Type": media_type, "Purpose": "treatment", "Sealed-Model": "wine", "Sealed-Operation": "infer"}
    client = shared.client(token=shared.token())
    path = "/.well-known/ohttp-gateway"
    assert client.post(path, content=raw, headers=fields).status_code == 200
    for value in (fields[name], "other"):
        answer = client.post(path, content=raw, headers=[*fields.items(), (name, value)])
        assert (answer.status_code, answer.json()["type"]) == (400, "urn:sealgate:problem:malformed-request")
    assert len(shared.host._of(frames.Submit)) == 1


def test_a_suite_that_is_not_known_asks_the_client_to_fetch_keys_again(shared):
    raw, media_type = sealed_request()
    other = raw[:1] + b"\xff\xff" + raw[3:]
    headers = {"Content-Type": media_type, "Purpose": "treatment"}
    answer = shared.client(token=shared.token()).post("/sealed/wine", content=other, headers=headers)
    assert answer.json()["type"].endswith("#ohttp-key")


# Nobody -------------------------------------------------------------------------------------------------------------


def test_every_failed_authentication_looks_the_same(shared):
    token = shared.token()
    head, body, signature = token.split(".")
    expired = shared.token(now=1_600_000_000_000_000)
    attempts = {
        "no-credential": {},
        "scheme-unknown": {"Authorization": "Basic YTpi"},
        "token-malformed": {"Authorization": "Bearer nonsense"},
        "token-too-large": {"Authorization": "Bearer " + "a" * 9000},
        "token-expired": {"Authorization": f"Bearer {expired}"},
        "signature-invalid": {"Authorization": f"Bearer {head}.{body}.{shared.token().rpartition('.')[2]}"},
        "issuer-unknown": {"Authorization": f"Bearer {head}.eyJpc3MiOiJ4In0.{signature}"},
    }
    answers = []
    for headers in attempts.values():
        raw, media_type = sealed_request()
        fields = {"Content-Type": media_type, "Purpose": "treatment"} | headers
        answers.append(shared.client().post("/sealed/wine", content=raw, headers=fields))
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.headers["www-authenticate"] for answer in answers} == {CHALLENGE}
    assert len({answer.headers["dpop-nonce"] for answer in answers}) == 1
    assert len({answer.content for answer in answers}) == 1
    assert {tuple(sorted(set(answer.headers) - {"date"})) for answer in answers} == {
        ("cache-control", "content-length", "content-type", "dpop-nonce", "www-authenticate", "x-content-type-options")
    }
    problem(answers[0], "unauthenticated")
    heard = shared.host.heard(frames.AuthFailed, len(attempts))
    assert [frame.reason for frame in heard] == list(attempts)
    assert {frame.source for frame in heard} == {"loopback"}
    assert shared.host.bodies() == []


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("10.1.2.3", "private"),
        ("::ffff:10.1.2.3", "private"),
        ("fe80::1%eth0", "private"),
        ("8.8.8.8", "public"),
        ("::ffff:8.8.8.8", "public"),
        ("", "unix"),
    ],
)
def test_where_a_failure_came_from_does_not_depend_on_how_the_socket_names_it(address, expected):
    assert source_class((address, 1)) == expected
    assert source_class(None) == "unix"


def test_two_credentials_in_one_request_are_none(shared):
    client = shared.client()
    raw, media_type = sealed_request()
    token = f"Bearer {shared.token()}"
    headers = [("Content-Type", media_type), ("Purpose", "treatment"), ("Authorization", token)]
    answer = client.post("/sealed/wine", content=raw, headers=[*headers, ("Authorization", token)])
    assert answer.status_code == 401
    assert shared.host.heard(frames.AuthFailed)[0].reason == "credential-repeated"


def test_ten_thousand_bad_tokens_leave_nothing_behind_and_others_are_served(gateway):
    """Through the real authenticator and application, without the cost of ten thousand TLS records."""
    head, body, signature = gateway.token().split(".")
    app = gateway.asgi
    quiet = gateway.log

    async def attempt(number):
        mutated = f"{head}.{body}.{number:06d}{signature[6:]}"
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "https",
            "path": "/sealed/wine",
            "raw_path": b"/sealed/wine",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {mutated}".encode())],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 1),
            "state": {},
            "extensions": {},
        }
        statuses = []

        async def send(message):
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        async def receive():
            raise AssertionError("the body of a stranger must not be read")

        await app(scope, receive, send)
        return statuses[0]

    async def flood(count, start):
        for number in range(start, start + count):
            assert await attempt(number) == 401
            if number % 500 == 0:
                quiet.seek(0)
                quiet.truncate()

    # The link belongs to the server's own loop: notices of this flood go the way of a link that is not there.
    link, gateway.gate.link._connection = gateway.gate.link, None
    asyncio.run(flood(1000, 0))
    gc.collect()
    before = sys.getallocatedblocks()
    asyncio.run(flood(10_000, 1000))
    gc.collect()
    assert sys.getallocatedblocks() - before < 5000  # blocks of memory; one kept object per request would be 10,000
    assert link._dropped == 11_000
    assert gateway.gate.authenticator._tokens._remembered == {}


def test_bad_tokens_over_tls_do_not_keep_others_waiting(shared):
    good = shared.client(token=shared.token())
    bad = shared.client(token=shared.token()[:-8] + "AAAAAAAA")
    for _ in range(200):
        assert post_sealed(bad).status_code == 401
    assert post_sealed(good).status_code == 200
    assert len(shared.host.heard(frames.AuthFailed, 200)) == 200


def test_a_large_answer_arrives_whole(shared):
    large = bytes(range(256)) * 16_384 + b"the end"
    answer = frames.Answer(media_type="message/ohttp-chunked-res", log=LOG, record=1, receipt=b"")
    shared.host.script = lambda frame, body: (answer, large)
    got = post_sealed(shared.client(token=shared.token()))
    assert got.headers["content-length"] == str(len(large))
    assert got.content == large


def test_no_live_worker_is_an_outage_on_record(shared):
    before = shared.host.state
    client = shared.client(token=shared.token())
    shared.host.push(ready=False, detail="the worker is starting", key_configs=b"", models=())
    try:
        while client.get("/health/ready").status_code != 503:
            pass
        answer = post_sealed(client)
    finally:
        shared.host.push(ready=True, detail=before.detail, key_configs=before.key_configs, models=before.models)
    assert answer.status_code == 503
    problem(answer, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["audit-record"] == f"{LOG} 8"
    assert shared.host.heard(frames.Deny)[0].decision.reason == "worker-not-ready"
    assert shared.host.bodies() == []
    while client.get("/health/ready").status_code != 200:
        pass


async def through(app, scope, *parts):
    """One request to an ASGI application: what it sends. The body comes in `parts`; None is a caller that goes away."""
    told = []
    coming = [
        {"type": "http.request", "body": part, "more_body": place < len(parts)} for place, part in enumerate(parts, 1)
    ]
    messages = iter([message if message["body"] is not None else {"type": "http.disconnect"} for message in coming])

    async def receive():
        return next(messages, None) or await asyncio.Event().wait()

    async def send(message):
        told.append(message)

    await app(scope, receive, send)
    start, *rest = told
    fields = sorted((name.lower(), value) for name, value in start["headers"])
    return start["status"], fields, b"".join(message.get("body", b"") for message in rest)


def both_ways(shared, scope, *parts):
    """The same request through the door, and past it to the framework: the answers, with what the log says of each."""
    door, answers = shared.asgi._app, []
    for app in (door, door._app):
        own = {**scope}
        work = asyncio.run_coroutine_threadsafe(through(app, own, *parts), shared.gate.link._keeper.get_loop())
        answers.append((*work.result(30), own.get("path_template"), own.get("gateway.log")))
    return answers


def scope_of(fields, **changes):
    """A request for /sealed/wine, as the server tells it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "path": "/sealed/wine",
        "raw_path": b"/sealed/wine",
        "root_path": "",
        "query_string": b"",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "headers": [(name, value) for name, value in fields if value is not None],
        **changes,
    }


def test_hostile_targets_methods_and_bodies_pass_the_door_as_they_pass_the_framework(shared):
    raw, media_type = sealed_request()
    fields = [
        (b"authorization", f"Bearer {shared.token()}".encode()),
        (b"purpose", b"treatment"),
        (b"content-type", media_type.encode()),
    ]
    targets = {
        "/sealed/": 404, "/sealed/a/b": 404, "/sealed/wine/": 200, "/sealed//wine": 200, "/Sealed/wine": 404,
        "/sealed/..": 400, "/sealed/w\xefne": 400, "/sealed/wine\n": 400, "/sealed/w\0": 400, "/sealed/{model}": 400,
        "/sealed/wi%6ee": 400, "/sealed/\udcff": 400, "/sealed/wine;x": 400, "/sealed/" + "a" * 20_000: 400,
    }  # fmt: skip
    cases = [(scope_of(fields, path=path), (raw,), status) for path, status in targets.items()]
    methods = {"GET": 405, "HEAD": 405, "PUT": 405, "OPTIONS": 204, "post": 405}
    cases += [(scope_of(fields, method=method), (b"",), status) for method, status in methods.items()]
    cases += [
        (scope_of(fields, query_string=b"model=other"), (raw,), 200),
        (scope_of([*fields, (b"x-http-method-override", b"GET")]), (raw,), 200),
        (scope_of([*fields, fields[0]]), (raw,), 401),
        (scope_of([*fields, (b"content-length", b"1"), (b"content-length", b"2")]), (raw,), 400),
        (scope_of([*fields, (b"sealed-operation", b"\xff")]), (raw,), 400),
        (scope_of(fields), tuple(raw[at : at + 1] for at in range(len(raw))), 200),
    ]
    for scope, parts, status in cases:
        door, framework = both_ways(shared, scope, *parts)
        assert door == framework, scope["path"]
        assert door[0] == status, scope["path"]
    door, framework = both_ways(shared, scope_of(fields), raw[:5], None)  # nobody reads what is said to him
    assert (door[0], door[2:]) == (framework[0], framework[2:])
    assert door[-1]["problem"] == "caller-gone"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 200),
        ({b"authorization": None}, 401),
        ({b"purpose": b"marketing"}, 403),
        ({b"purpose": None}, 400),
        ({b"content-type": b"text/plain"}, 415),
        ({b"content-length": b"999999999999"}, 413),
        ({b"accept-receipt": b"application/jwt"}, 400),
        ({b"dpop": b"x"}, 401),
    ],
)
def test_the_door_answers_as_the_framework_does_to_the_byte(shared, changes, code):
    raw, media_type = sealed_request()
    denied = frames.Recorded(log=LOG, record=8, receipt=b"r")
    usual = shared.host.script
    shared.host.script = lambda frame, body: (denied, b"") if isinstance(frame, frames.Deny) else usual(frame, body)
    token = f"Bearer {shared.token()}".encode()
    fields = {b"authorization": token, b"purpose": b"treatment", b"content-type": media_type.encode(), **changes}
    ways = both_ways(shared, scope_of(fields.items()), raw)
    assert ways[0] == ways[1]
    assert ways[0][0] == code
