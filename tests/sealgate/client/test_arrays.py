"""Files of numpy's format, read without numpy: exactly what numpy reads, and nothing that it would unpickle."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealgate.client.arrays import read_array
from sealgate.client.errors import UsageError
from sealgate.client.inputs import to_numpy
from sealgate.errors import ConfigurationError
from sealgate.protocol.tensors import Tensor, check_tensor

DTYPES = ["?", "u1", "<u2", "<u4", "<u8", "i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8"]


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_numpy_writes_is_read(tmp_path: Path, dtype: str, version: tuple[int, int]) -> None:
    values = (np.arange(24).reshape(2, 3, 4) % 2 if dtype == "?" else np.arange(24).reshape(2, 3, 4)).astype(dtype)
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, values, version=version)
    found = read_array(f"scan={tmp_path / 'a.npy'}")
    assert found.called == "scan"
    tensor = check_tensor(Tensor("x", found.datatype, found.shape, found.data))
    np.testing.assert_array_equal(to_numpy(tensor), values)


def saved(values: object) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.zeros((2, 3), order="F"), "holds <f8 in columns; save little-endian numbers row by row"),
        (np.zeros(3, dtype=">f4"), "holds >f4; save"),
        (np.array(["text"]), "holds <U4; save"),
        (np.array([{}], dtype=object), "holds |O; save"),
        (np.zeros(1, dtype=[("a", "<f4")]), "holds records; save"),
    ],
)
def test_what_is_no_plain_array_of_numbers_is_refused(tmp_path: Path, values: object, why: str) -> None:
    (tmp_path / "a.npy").write_bytes(saved(values))
    with pytest.raises(UsageError) as refused:
        read_array(str(tmp_path / "a.npy"))
    assert why in str(refused.value)
    assert str(tmp_path / "a.npy") in str(refused.value)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 127), st.integers(0, 255), st.integers(0, 140))
def test_a_damaged_header_is_an_error_of_ours(tmp_path: Path, place: int, value: int, cut: int) -> None:
    raw = bytearray(saved(np.arange(3, dtype="<f4")))
    raw[place] = value
    (tmp_path / "a.npy").write_bytes(raw[:cut] if cut < 120 else raw)
    try:
        found = read_array(str(tmp_path / "a.npy"))
    except UsageError:
        return
    assert all(type(side) is int for side in found.shape)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_array(str(tmp_path / "a.npy"))
