"""Categories and dates as numbers: by public lists, wrong cells named by column and row."""

from __future__ import annotations

import datetime

import numpy as np
import pytest

from sealgate.errors import ConfigurationError
from tests.training.conftest import configuration_text, tiny, write_data
from training.configuration import load_configuration
from training.forms import form_of

ENCODED = """
[categories]
ward = ["007", "true", "*"]

[dates]
admitted = [2020-01-01, 2026-01-01]
"""


def with_more(**changes):
    columns = tiny(30)
    columns["ward"] = np.array(["007", "true", "12"] * 10, dtype=object)
    columns["admitted"] = np.array(["2020-01-02", "2025-12-31T08:00", "2023-05-06"] * 10, dtype=object)
    columns.update(changes)
    return columns


def examples(folder, columns, text=ENCODED, source="data.csv"):
    write_data(folder / source, columns)
    path = folder / "config.toml"
    path.write_text(configuration_text(source) + text)
    configuration = load_configuration(path)
    form = form_of(configuration)
    (declared,) = form.declared_inputs(configuration)
    return configuration, declared, form.read_examples(configuration, folder=folder)


@pytest.mark.parametrize("source", ["data.csv", "data.parquet"])
def test_columns_and_their_numbers(tmp_path, source):
    configuration, declared, found = examples(tmp_path, with_more(), source=source)
    names = [column.name for column in declared.columns]
    assert names == ["age", "dose", "score", "admitted", "ward=007", "ward=true", "ward=*"]
    np.testing.assert_array_equal(found.inputs[0][:3, 4:], np.eye(3))
    days = [(datetime.date(*day) - datetime.date(1970, 1, 1)).days for day in ((2020, 1, 2), (2025, 12, 31))]
    np.testing.assert_array_equal(found.inputs[0][:2, 3], days)
    assert (declared.columns[3].low, declared.columns[3].scale) == ("18262", "1096")
    form_of(configuration).write_heldout(tmp_path / "held.csv", found, configuration)
    assert (tmp_path / "held.csv").read_text().startswith("age,dose,score,admitted,ward=007,ward=true,ward=*,ill\n")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ward": np.array(["007"] * 29 + [""], dtype=object)}, "column 'ward', row 30: holds nothing"),
        (
            {"admitted": np.array(["2020-01-02"] * 29 + ["soon"], dtype=object)},
            "column 'admitted', row 30: holds no date",
        ),
    ],
)
def test_cells_that_are_wrong(tmp_path, changes, words):
    with pytest.raises(ConfigurationError, match=words):
        examples(tmp_path, with_more(**changes))


def test_a_value_that_no_list_has(tmp_path):
    with pytest.raises(ConfigurationError, match="column 'ward', row 3: '12' is not in \\[categories\\]"):
        examples(tmp_path, with_more(), ENCODED.replace(', "*"', ""))


def test_all_values_that_no_list_has_and_all_columns_are_said_at_once(tmp_path):
    changes = {
        "ward": np.array(["007"] * 27 + ["7", "8", "7"], dtype=object),
        "admitted": np.array(["2020-01-02"] * 29 + ["soon"], dtype=object),
    }
    with pytest.raises(ConfigurationError) as refused:
        examples(tmp_path, with_more(**changes), ENCODED.replace(', "*"', ""))
    assert "column 'admitted', row 30: holds no date" in str(refused.value)
    assert "Also: column 'ward', row 28: '7' is not in [categories], nor '8'; add" in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('["007", "true", "*"]', "[]", "different values"),
        ('["007", "true", "*"]', '["a", "a"]', "different values"),
        ('["007", "true", "*"]', '["*", "a"]', "only be the last"),
        ("ward =", "age =", "another role"),
        ("admitted =", "ill =", "another role"),
        ("2026-01-01", "2020-01-01", "first day must be before"),
    ],
)
def test_lists_and_ranges_that_cannot_be(tmp_path, old, new, words):
    with pytest.raises(ConfigurationError, match=words):
        examples(tmp_path, with_more(), ENCODED.replace(old, new))


def test_a_column_that_its_range_makes_constant(tmp_path):
    columns = with_more(age=np.full(30, 200.0))
    with pytest.raises(ConfigurationError, match="column 'age': the same in every row from row 1"):
        examples(tmp_path, columns)


def test_times_of_a_parquet_file(tmp_path):
    times = np.array(["2020-01-02", "2025-12-31T08:00", "2023-05-06"] * 10, dtype="datetime64[ns]")
    texts = examples(tmp_path, with_more())[2].inputs[0]
    import pyarrow
    from pyarrow import parquet

    columns = {name: pyarrow.array(values.tolist()) for name, values in with_more().items() if name != "admitted"}
    parquet.write_table(pyarrow.table({**columns, "admitted": times}), tmp_path / "times.parquet")
    (tmp_path / "config.toml").write_text(configuration_text("times.parquet") + ENCODED)
    configuration = load_configuration(tmp_path / "config.toml")
    found = form_of(configuration).read_examples(configuration, folder=tmp_path)
    np.testing.assert_array_equal(found.inputs[0][:, 3], texts[:, 3])
