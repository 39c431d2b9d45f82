"""Reading data: the same rows from every format, and bad rows named by column and row."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from sealgate.errors import ConfigurationError
from tests.training.conftest import COLUMNS, configuration_text, tiny, write_data
from training.configuration import load_configuration
from training.examples import Examples
from training.forms import form_of

FORMATS = ["data.csv", "data.parquet", "data.npz"]


def table(tmp_path, source="data.csv", **more):
    path = tmp_path / "config.toml"
    path.write_text(configuration_text(source, **more))
    return read(path)


def read(path) -> Examples:
    configuration = load_configuration(path)
    return form_of(configuration).read_examples(configuration, folder=path.parent)


def refusal(tmp_path, columns, source="data.csv", **more) -> str:
    write_data(tmp_path / source, columns)
    with pytest.raises(ConfigurationError) as caught:
        table(tmp_path, source, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("family", ["logistic-regression", "linear-regression", "mlp"])
def test_every_format_gives_the_same_rows(tmp_path, source, family):
    columns = tiny()
    write_data(tmp_path / source, columns)
    found = table(tmp_path, source, family=family)
    for index, name in enumerate(COLUMNS):
        np.testing.assert_array_equal(found.inputs[0][:, index], columns[name])
    wanted = {
        "logistic-regression": (columns["ill"] == "yes").astype(float),
        "linear-regression": columns["cost"],
        "mlp": columns["group"],
    }[family]
    np.testing.assert_array_equal(found.target, wanted)


def test_a_matrix_in_npz(tmp_path):
    columns = tiny()
    matrix = np.stack([columns[name] for name in COLUMNS], axis=1)
    np.savez(tmp_path / "data.npz", X=matrix, columns=np.array(COLUMNS), ill=columns["ill"])
    np.testing.assert_array_equal(table(tmp_path, "data.npz").inputs[0], matrix)


def test_scikit_learn(tmp_path):
    from sklearn.datasets import load_iris

    text = configuration_text("sklearn:iris", family="mlp", target='target = "target"')
    head, _ = text.split("[columns]")
    columns = "\n".join(f'"{name}" = [0, 10]' for name in load_iris().feature_names)
    (tmp_path / "config.toml").write_text(f"{head}[columns]\n{columns}\n")
    found = read(tmp_path / "config.toml")
    np.testing.assert_array_equal(found.inputs[0], load_iris().data)
    np.testing.assert_array_equal(found.target, load_iris().target)


@pytest.mark.parametrize("source", FORMATS)
def test_a_number_that_is_not_finite_is_named_by_column_and_row(tmp_path, source):
    columns = tiny()
    columns["dose"][41] = np.nan
    assert "column 'dose', row 42: not a finite number (1 such" in refusal(tmp_path, columns, source)
    columns["dose"][41] = np.inf
    assert "column 'dose', row 42" in refusal(tmp_path, columns, source)


def test_text_and_gaps_in_a_csv_are_named(tmp_path):
    columns = {name: values.astype(object) for name, values in tiny().items()}
    columns["age"][9] = "unknown"
    assert "column 'age', row 10: holds text" in refusal(tmp_path, columns)
    columns["age"][9] = ""
    assert "column 'age', row 10: holds nothing" in refusal(tmp_path, columns)


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    columns = {name: values.astype(object) for name, values in tiny().items()}
    columns["age"][9] = columns["age"][11] = columns["age"][12] = "unknown"
    columns["dose"][3] = ""
    message = refusal(tmp_path, columns)
    assert "column 'age', row 10: holds text, needs a number; mend or remove the row, and 2 more like it" in message
    assert "Also: column 'dose', row 4: holds nothing, needs a number; mend or remove the row" in message
    assert "\n" not in message
    del columns["age"], columns["dose"]
    assert "no column 'age' (1 more are missing)" in refusal(tmp_path, columns)


def test_a_gap_in_a_parquet_is_named(tmp_path):
    columns = {name: values.astype(object) for name, values in tiny().items()}
    columns["age"][9] = None
    assert "column 'age', row 10" in refusal(tmp_path, columns, "data.parquet")


def test_a_missing_column_is_named_with_what_there_is(tmp_path):
    columns = tiny()
    del columns["dose"]
    message = refusal(tmp_path, columns)
    assert "no column 'dose'" in message
    assert "did you mean 'doses'? It has: age" in refusal(tmp_path, {**columns, "doses": columns["age"]})
    assert "age" in message


@pytest.mark.parametrize("source", FORMATS)
def test_one_class_only(tmp_path, source):
    columns = tiny()
    columns["ill"][:] = "no"
    assert "never holds the class 'yes'" in refusal(tmp_path, columns, source)


def test_a_class_that_the_configuration_does_not_know(tmp_path):
    columns = tiny()
    columns["ill"] = columns["ill"].astype(object)
    columns["ill"][5] = "perhaps"
    assert "column 'ill', row 6: 'perhaps' is no class" in refusal(tmp_path, columns)


@pytest.mark.parametrize("source", FORMATS)
def test_no_rows(tmp_path, source):
    message = refusal(tmp_path, {name: values[:0] for name, values in tiny().items()}, source)
    assert "no rows" in message


def test_columns_of_different_length(tmp_path):
    columns = tiny()
    columns["age"] = columns["age"][:-1]
    assert "different numbers of rows" in refusal(tmp_path, columns, "data.npz")


@pytest.mark.parametrize("source", ["data.csv", "data.parquet", "data.npz"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe garbage \x80", b"PK\x03\x04 no archive", b"a,b\n1\n1,2,3\n"])
def test_a_damaged_file(tmp_path, source, content):
    (tmp_path / source).write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        table(tmp_path, source)
    assert "\n" not in str(caught.value)


def test_an_archive_that_unpacks_to_more_than_memory_is_refused_unread(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "data.npz", age=np.zeros(1_000_000))
    monkeypatch.setattr("training.columns.MAX_DATA_FILE", 1_000_000)
    assert (tmp_path / "data.npz").stat().st_size < 1_000_000
    with pytest.raises(ConfigurationError, match="unpacks to more"):
        table(tmp_path, "data.npz")


def test_pickled_objects_in_npz_are_refused(tmp_path):
    class Runs:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    np.savez(tmp_path / "data.npz", age=np.array([Runs()], dtype=object))
    assert pickle.dumps(Runs())  # the attack is armed
    with pytest.raises(ConfigurationError, match="pickled"):
        table(tmp_path, "data.npz")


@pytest.mark.parametrize("source", ["data.xlsx", "nowhere.csv", "sklearn:olivetti_faces", "sklearn:__class__", "data"])
def test_a_source_that_does_not_exist(tmp_path, source):
    with pytest.raises(ConfigurationError):
        table(tmp_path, source)
