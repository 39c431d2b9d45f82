"""Sessions: what programs hold goes in, lists and proofs come out; rows, times and inputs refuse what they must."""

from __future__ import annotations

import asyncio
import io
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sealgate
from sealgate.client.errors import InferenceFailed, ServiceRefused, UsageError
from sealgate.client.inputs import to_tensors
from sealgate.client.metadata import ModelMetadata, ModelParameters, TensorMetadata, read_metadata
from sealgate.client.rows import parse_rows, select_columns
from sealgate.client.session import AsyncSession, Session
from sealgate.client.times import parse_moment, utc_text
from sealgate.errors import DecodeError, SealgateError
from sealgate.protocol import bhttp
from sealgate.protocol.inference import tensor_from_list, tensor_to_list
from sealgate.transparency.receipt import verify_receipt

TOKEN = "header.payload.signature"
ROWS = [[1, 2, 3], [10.5, 20, 30]]
METADATA = ModelMetadata(
    name="toy",
    inputs=(TensorMetadata(name="features", datatype="FP32", shape=(-1, 3)),),
    outputs=(TensorMetadata(name="scores", datatype="FP32", shape=(-1, 2)),),
    parameters=ModelParameters(columns=("radius", "texture", "area")),
)


def make_session(service: Any, **options: Any) -> Session:
    arguments = {"purpose": "diagnosis", "token": TOKEN} | options
    return Session(service.trust(), outer=service.transport(), clock=service.clock, trust_env=False, **arguments)


@pytest.mark.parametrize(
    "inputs",
    [
        ROWS,
        tuple(tuple(row) for row in ROWS),
        {"features": ROWS},
        np.array(ROWS),
        np.array(ROWS, dtype=np.float32),
        np.asfortranarray(np.array(ROWS)),
        {"features": np.array(ROWS, dtype=">f8")},
        [tensor_from_list("features", "FP32", (2, 3), ROWS)],
        {"features": tensor_from_list("features", "FP32", (2, 3), ROWS)},
    ],
    ids=["lists", "tuples", "named", "float64", "float32", "fortran", "big-endian", "tensors", "named-tensor"],
)
def test_rows_go_in_however_they_are_held(service: Any, inputs: Any) -> None:
    with make_session(service) as session:
        result = session.infer("toy", inputs)
    assert result.outputs == {"scores": [[0.75, 0.25], [0.125, 0.875]], "label": [0, 1]}
    assert tensor_to_list(result.tensors["label"]) == [0, 1]
    assert np.array_equal(result.numpy("scores"), np.array([[0.75, 0.25], [0.125, 0.875]], dtype=np.float32))


def test_the_result_proves_itself(service: Any, tmp_path: Path) -> None:
    with make_session(service) as session:
        result = session.infer("toy", ROWS, request_id="mine")
    assert result.labels == ("benign", "malignant")
    assert (result.model_name, result.model_version) == ("toy", "1")
    assert result.receipt.record.kind == "inference.completed"
    assert {check.outcome for check in result.transcript} == {"pass"}
    path = tmp_path / "receipt"
    result.save_receipt(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert verify_receipt(path.read_bytes(), service.trust().log_keys) == result.receipt


def test_metadata_are_read_once_per_loaded_model(service: Any) -> None:
    with make_session(service) as session:
        session.infer("toy", ROWS)
        session.infer("toy", ROWS)
        assert len(service.inner) == 3
        assert session.metadata("toy").parameters.columns == ("radius", "texture", "area")
        assert session.ready("toy")


def test_tensors_need_no_metadata(service: Any) -> None:
    with make_session(service) as session:
        result = session.infer("toy", [tensor_from_list("features", "FP32", (1, 3), [1, 2, 3])])
    assert len(service.inner) == 1
    assert result.labels is None


def test_readiness_is_false_for_the_runtimes_own_no_and_an_error_for_a_refusal(service: Any) -> None:
    with make_session(service) as session:
        service.inner_response = bhttp.Response(503, (), b'{"error":"loading"}')
        assert session.ready("toy") is False
        service.inner_response = bhttp.Response(500, (), b"{}")
        with pytest.raises(InferenceFailed):
            session.ready("toy")
        with pytest.raises(ServiceRefused):
            session.ready("toy", purpose="marketing")


def test_the_async_twin_gives_the_same(service: Any) -> None:
    async def ask() -> Any:
        async with AsyncSession(
            service.trust(), purpose="diagnosis", token=TOKEN, outer=service.transport(), clock=service.clock
        ) as session:
            await session.evidence()
            assert await session.ready("toy")
            return await session.infer("toy", ROWS)

    result = asyncio.run(ask())
    assert result.labels == ("benign", "malignant")
    assert service.count("/.well-known/attestation") == 1


@pytest.mark.parametrize("purpose", ["", "ünï", "line\nbreak", "x" * 200])
def test_a_purpose_that_cannot_be_is_refused_unsent(service: Any, purpose: str) -> None:
    with make_session(service) as session, pytest.raises(UsageError, match="purpose"):
        session.infer("toy", ROWS, purpose=purpose)
    with make_session(service, purpose=purpose) as session, pytest.raises(UsageError, match="purpose"):
        session.infer("toy", ROWS)
    assert service.requests == []


@pytest.mark.parametrize("model", ["", "ünï", "a b\n", "x" * 200])
def test_a_model_name_that_cannot_be_is_refused_unsent(service: Any, model: str) -> None:
    with make_session(service) as session, pytest.raises(UsageError):
        session.infer(model, ROWS)
    assert service.requests == []


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([1, 2, 3], "shape"),
        ([[1, 2]], "shape"),
        ([], "shape"),
        ([[]], "shape"),
        ([[1, 2, 3], [1, 2]], "differ"),
        ([["a", "b", "c"]], "numbers"),
        ([[1, 2, None]], "numbers"),
        (np.zeros((2, 2)), "shape"),
        (np.zeros((0, 3)), "shape"),
        (np.array([[1, 2, np.nan]]), "NaN"),
        (np.array([[1, 2, 1e300]]), "too large"),
        (np.array([[1, 2, 3j]]), "FP32"),
        ({"other": ROWS}, "no input 'other'"),
        ("text", "list"),
        (None, "list"),
    ],
)
def test_inputs_that_do_not_fit_say_what_the_model_takes(inputs: Any, words: str) -> None:
    with pytest.raises(SealgateError, match=words):
        to_tensors(inputs, METADATA)


def test_integers_are_not_made_of_fractions() -> None:
    whole = ModelMetadata(
        name="toy",
        inputs=(TensorMetadata(name="x", datatype="INT64", shape=(-1,)),),
        outputs=METADATA.outputs,
    )
    assert tensor_to_list(to_tensors(np.array([1, 2], dtype=np.int32), whole)[0]) == [1, 2]
    with pytest.raises(UsageError, match="INT64"):
        to_tensors(np.array([1.5]), whole)
    with pytest.raises(DecodeError):
        to_tensors([1.5], whole)


@settings(max_examples=100)
@given(data=st.binary(max_size=80))
def test_metadata_that_are_garbage_are_a_typed_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        read_metadata(data)


# Rows ----------------------------------------------------------------------------------------------------------------


def select(text: str) -> list[list[int | float]]:
    return select_columns(parse_rows(io.StringIO(text)), METADATA)


def test_named_columns_are_picked_and_ordered_by_the_model() -> None:
    assert select("diagnosis,area,radius,texture\nM,3,1,2\nB,6,4,5\n") == [[1, 2, 3], [4, 5, 6]]


def test_unnamed_columns_are_taken_as_they_stand() -> None:
    assert select("1,2,3\n\n4,5,6e-1\n") == [[1, 2, 3], [4, 5, 0.6]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        ("radius,texture,area\n", "no rows"),
        ("1,2\n", "line 1 has 2 values, the model takes 3"),
        ("radius,texture\n1,2\n", "'area'"),
        ("radius,radius,texture,area\n1,1,2,3\n", "'radius'"),
        ("radius,texture,area\n1,2,secret\n", "line 2: column 'area' is not a number"),
        ("radius,texture,area\n1,2\n", "line 2 has 2 values, the first line names 3 columns"),
        ("radius,texture,area\n1,2,3\n1,5,2,3\n", "line 3 has 4 values, the first line names 3 columns"),
        ("diagnosis,radius,texture,area\nM,1,5,2,3\n", "line 2 has 5 values, the first line names 4 columns"),
        ("radius;texture;area\n1;2;3\n", "separated by commas"),
        ("radius,texture,area\n1,2,1_000\n", "'area' is not a number"),
        ('radius,texture,area\n1,2,"3\n4,5,6\n', "not CSV"),
        ("radius,texture,area\n1,2,nan\n", "'area' is not a number"),
        ("radius,texture,area\n1,2,inf\n", "'area' is not a number"),
        ("1,2,\n", "column 'area' is not a number"),
    ],
)
def test_rows_that_do_not_fit_name_line_and_column_and_no_content(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as failure:
        select(text)
    assert "secret" not in str(failure.value)


@settings(max_examples=150)
@given(text=st.text(max_size=80))
def test_any_text_is_rows_or_a_typed_error(text: str) -> None:
    try:
        select(text)
    except SealgateError:
        return


# Times ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1970-01-02", 86_400_000_000),
        ("1970-01-01T01:00:00.000001", 3_600_000_001),
        ("1970-01-01T01:00:00+01:00", 0),
        ("90m", 10_000_000_000 - 90 * 60_000_000),
        ("999999w", 0),
    ],
)
def test_moments(text: str, moment: int) -> None:
    assert parse_moment(text, now_us=10_000_000_000) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "7", "7y", "2030-13-01", "-5m"])
def test_other_texts_are_not_moments(text: str) -> None:
    with pytest.raises(UsageError):
        parse_moment(text, now_us=0)


def test_moments_are_shown_in_utc() -> None:
    assert utc_text(86_400_123_456) == "1970-01-02 00:00:00.123"
    assert utc_text(2**80) == str(2**80)


# The package ---------------------------------------------------------------------------------------------------------


def test_every_exported_name_exists_and_others_do_not() -> None:
    for name in sealgate.__all__:
        assert getattr(sealgate, name).__name__ == name
    assert set(sealgate.__all__) <= set(dir(sealgate))
    with pytest.raises(AttributeError):
        _ = sealgate.Sesion  # type: ignore[attr-defined]


def test_importing_the_package_loads_nothing_and_the_client_needs_only_its_three_dependencies() -> None:
    code = (
        "import sys, sealgate\n"
        "assert not {'httpx', 'cryptography', 'msgspec'} & set(sys.modules)\n"
        "import sealgate.client.commands, sealgate.client.audit_commands\n"
        "assert not {'httpx', 'cryptography', 'msgspec'} & set(sys.modules)\n"
        "sealgate.Session, sealgate.AuditClient\n"
        "assert not {'torch', 'numpy', 'litestar', 'sqlalchemy', 'policy', 'gateway', 'audit'} & set(sys.modules)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_struct_of_known_bytes_is_what_the_service_got(service: Any) -> None:
    with make_session(service) as session:
        session.infer("toy", [[1, 2, 3]])
    assert struct.pack("<3f", 1, 2, 3) in bytes(service.inner[-1].body)
