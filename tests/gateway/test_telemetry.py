"""A log line carries only what it may: this is checked by what it refuses."""

from __future__ import annotations

import ast
import io
import json
import logging
from pathlib import Path

import pytest

import gateway
from gateway.errors import AUTHENTICATION_FAILURES, Problem
from gateway.telemetry import FIELDS, LibraryLines, Telemetry, quoted
from policy.entities import Principal, Role
from sealgate.protocol.secrets import Plaintext, Secret
from tests.gateway.conftest import post_sealed

PRINCIPAL = Principal(
    tenant="t",
    subject="s",
    roles=frozenset({Role.CLIENT}),
    purposes=frozenset(),
    authn="jwt",
    mtls=False,
    credential_binding="",
    expires_us=0,
)


class Text(str):
    """A subclass may print as something else."""


@pytest.fixture
def out():
    return io.StringIO()


@pytest.fixture
def telemetry(out):
    return Telemetry(stream=out, clock=lambda: 7)


def test_a_line_is_one_json_object(telemetry, out):
    telemetry.event("request", status=200, route="/sealed/{model}", ready=True, tenant=None)
    assert out.getvalue().endswith("\n")
    assert json.loads(out.getvalue()) == {
        "ts_us": 7,
        "event": "request",
        "status": 200,
        "route": "/sealed/{model}",
        "ready": True,
        "tenant": None,
    }


@pytest.mark.parametrize(
    "value",
    [
        b"bytes",
        bytearray(b"x"),
        memoryview(b"x"),
        1.5,
        ["list"],
        {"a": 1},
        ("a",),
        ValueError("x"),
        Problem("internal"),
        PRINCIPAL,
        Secret(b"k" * 32),
        Plaintext(b"payload"),
        Text("x"),
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_payload_types_cannot_be_logged(telemetry, out, value):
    with pytest.raises(TypeError) as caught:
        telemetry.event("request", detail=value)
    assert out.getvalue() == ""
    assert "payload" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJ4In0.c2ln",
        "Bearer abcdefghijklmnopqrstuvwxyz",
        "x -----BEGIN PRIVATE KEY-----",
    ],
)
def test_text_that_looks_like_a_credential_cannot_be_logged(telemetry, out, text):
    with pytest.raises(TypeError):
        telemetry.event("request", detail=text)
    assert out.getvalue() == ""
    telemetry.event("request", detail=quoted(text))
    assert json.loads(out.getvalue())["detail"] == "(withheld)"


def test_a_log_that_nobody_reads_does_not_stop_requests():
    closed = io.StringIO()
    closed.close()
    Telemetry(stream=closed).event("request", status=200)


def test_other_fields_cannot_be_logged(telemetry):
    with pytest.raises(TypeError):
        telemetry.event("request", authorization="x")


def test_lines_cannot_be_forged_or_grow(telemetry, out):
    telemetry.event("request", detail='x"}\n{"event":"forged"' + "y" * 5000)
    (line,) = out.getvalue().splitlines()
    assert len(line) < 400
    assert json.loads(line)["event"] == "request"


def test_an_exception_is_its_class_and_place_only(telemetry, out):
    try:
        raise ValueError("patient 4711")
    except ValueError as error:
        telemetry.failure("unexpected", error, status=500)
    line = json.loads(out.getvalue())
    assert (line["error"], line["status"]) == ("ValueError", 500)
    assert line["place"].startswith("test_telemetry.py:")
    assert "4711" not in out.getvalue()


def test_lines_of_libraries_lose_what_they_quote(telemetry, out):
    logger = logging.Logger("uvicorn.error")
    logger.addHandler(LibraryLines(telemetry))
    other = logging.Logger("asyncio")
    other.addHandler(LibraryLines(telemetry))
    logger.warning("Invalid thing %s", "patient 4711")
    other.error("Task failed: patient 4711")
    try:
        raise KeyError("patient 4711")
    except KeyError:
        other.exception("broken for patient 4711")
    logger.info("not worth a line")
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["level"] for line in lines] == ["WARNING", "ERROR", "ERROR"]
    assert lines[0]["detail"] == "Invalid thing %s"
    assert lines[2]["error"] == "KeyError"
    assert "4711" not in out.getvalue()


def test_a_request_leaves_one_line_without_path_query_or_headers(gateway):
    token = gateway.token()
    client = gateway.client(token=token)
    client.get("/.well-known/ohttp-gateway?format=single&patient=4711", headers={"X-Patient": "4711"})
    client.get("/nowhere/4711")
    post_sealed(client)
    client.get("/health/live")
    gateway.until(lambda: len(gateway.events("request")) == 3)
    lines = gateway.events("request")
    assert [line["route"] for line in lines] == ["/.well-known/ohttp-gateway", "unmatched", "/sealed/{model}"]
    assert [line["status"] for line in lines] == [200, 404, 200]
    assert (lines[2]["authn"], lines[2]["tenant"], lines[2]["record"]) == ("jwt", "clinic", 7)
    assert lines[2]["received"] > 200
    assert all(line["duration_us"] > 0 for line in lines)
    text = gateway.log.getvalue()
    assert "4711" not in text
    assert "alice" not in text
    assert token not in text


def test_every_field_that_the_gateway_logs_is_in_the_vocabulary():
    """Found in the sources, so that a new field is noticed before it runs."""
    folder = Path(gateway.__file__).parent
    used = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
                "event",
                "failure",
                "note",
            ):
                used |= {keyword.arg for keyword in node.keywords if keyword.arg}
    assert used
    assert used <= set(FIELDS)


def test_every_reason_of_a_failed_authentication_is_explained_and_used():
    folder = Path(gateway.__file__).parent
    used = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Unauthenticated":
                (reason,) = node.args
                used |= {item.value for item in ast.walk(reason) if isinstance(item, ast.Constant)}
    assert used == set(AUTHENTICATION_FAILURES)
