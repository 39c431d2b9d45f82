"""Masking by rules: what each does, what it refuses, and that the key stays where it is."""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
import pytest

from sealgate.errors import ConfigurationError
from tests.training.conftest import configuration_text, tiny, write_data
from training.configuration import load_configuration
from training.forms import form_of
from training.masking.columns import read_masked
from training.masking.sections import masked_parts, masking_section

KEY = bytes(range(32))


def masked(folder, rules, *, more=(), family="logistic-regression"):
    columns = tiny(60)
    columns["who"] = np.array([f"person-{row % 20}" for row in range(60)])
    columns["zip"] = np.array([f"0{1000 + row}" for row in range(60)])
    columns["born"] = np.array([f"19{50 + row % 40}-0{1 + row % 9}-1{row % 9}" for row in range(60)])
    columns["note"] = np.array([f"mail me{row}@example.org" for row in range(60)])
    columns.update(more)
    write_data(folder / "data.csv", columns)
    (folder / "masking.key").write_bytes(KEY)
    (folder / "masking.key").chmod(0o600)
    path = folder / "config.toml"
    path.write_text(configuration_text("data.csv", family=family) + "\n[masking]\n" + rules)
    configuration = load_configuration(path)
    return configuration, columns, read_masked(configuration, folder=folder)


def test_each_rule(tmp_path):
    rules = """
key = "masking.key"
quasi_identifiers = ["zip"]
[masking.columns]
note = { action = "redact", kinds = ["email"] }
who = { action = "hash" }
zip = { action = "prefix", characters = 3 }
born = { action = "year" }
age = { action = "bin", width = 10, high = 69 }
dose = { action = "top", high = 8 }
score = { action = "keep" }
cost = { action = "drop" }
"""
    configuration, before, found = masked(tmp_path, rules)
    after = found.columns
    assert "cost" not in after
    assert set(after["note"]) == {"mail <email>"}
    wanted = hmac.new(KEY, (3).to_bytes(8, "big") + b"who" + b"person-7", hashlib.sha256).hexdigest()[:32]
    assert after["who"][7] == wanted
    assert len(set(after["who"])) == 20
    assert set(after["zip"]) == {"010"}  # read as text: the zero in front is there
    assert after["born"][0] == "1950-01-01"
    np.testing.assert_allclose(after["age"], np.floor(np.minimum(before["age"], 69) / 10) * 10 + 5)
    np.testing.assert_array_equal(after["dose"], np.minimum(before["dose"], 8))
    np.testing.assert_array_equal(after["score"], before["score"])
    assert found.remarks[0] == "redacted in 'note': 60 email"
    assert "before masking: k = 1; 60 of 60" in found.remarks[1]
    assert "after: k = 60; 0 of 60 rows" in found.remarks[2]
    parts = {part.column: part for part in masked_parts(masking_section(configuration))}
    assert set(parts) == {"note", "who", "zip", "born", "age", "dose", "cost"}
    assert parts["age"].detail == "width 10, high 69"
    assert not any(KEY.hex() in part.detail for part in parts.values())


def test_months_in_a_form_and_masked_features_reach_the_model(tmp_path):
    rules = '[masking.columns]\nborn = { action = "month" }\nage = { action = "bin", width = 20 }\n'
    configuration, before, found = masked(tmp_path, rules)
    assert found.columns["born"][0] == "1950-01-01"
    examples = form_of(configuration).read_examples(configuration, folder=tmp_path)
    np.testing.assert_allclose(examples.inputs[0][:, 0], np.floor(before["age"] / 20) * 20 + 10)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ('[masking.columns]\nage = { action = "blur" }', "action must be one of"),
        ('[masking.columns]\nage = { action = "bin" }', "width above zero"),
        ('[masking.columns]\nage = { action = "bin", width = 0 }', "width above zero"),
        ('[masking.columns]\nage = { action = "bin", width = 5, characters = 3 }', "characters does not belong"),
        ('[masking.columns]\nage = { action = "top" }', "needs low, high"),
        ('[masking.columns]\nage = { action = "top", low = 5, high = 5 }', "low must be below"),
        ('[masking.columns]\nzip = { action = "prefix" }', "needs characters"),
        ('[masking.columns]\nnote = { action = "redact", kinds = ["face"] }', "kinds are some of"),
        ('[masking.columns]\nwho = { action = "hash" }', "key = "),
        ('key = "masking.key"', "key = "),
        ('[masking.columns]\nill = { action = "drop" }', "target"),
        ('[masking.columns]\nage = { action = "drop" }', "dropped and cannot be used"),
        ('[masking.columns]\nnobody = { action = "drop" }', "no column 'nobody'"),
        ('quasi_identifiers = ["nobody"]', "no column 'nobody'"),
        ("colour = 1", "has no setting 'colour'"),
        ('[masking.columns]\nnote = { action = "month" }', "column 'note', row 1: holds no date"),
        ('[masking.columns]\nnote = { action = "bin", width = 1 }', "column 'note', row 1: holds text"),
    ],
)
def test_rules_that_are_refused(tmp_path, rules, words):
    with pytest.raises(ConfigurationError, match=words) as caught:
        masked(tmp_path, rules)
    assert "\n" not in str(caught.value)


def test_keys_that_are_refused(tmp_path):
    rules = 'key = "masking.key"\n[masking.columns]\nwho = { action = "hash" }\n'
    configuration, _, _ = masked(tmp_path, rules)
    key = tmp_path / "masking.key"
    key.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        read_masked(configuration, folder=tmp_path)
    key.chmod(0o600)
    key.write_bytes(b"short")
    with pytest.raises(ConfigurationError, match="random bytes"):
        read_masked(configuration, folder=tmp_path)
    key.unlink()
    with pytest.raises(ConfigurationError, match="make one"):
        read_masked(configuration, folder=tmp_path)


def test_one_row_more_changes_no_other_row(tmp_path):
    rules = '[masking.columns]\nnote = { action = "redact" }\nage = { action = "bin", width = 10 }\n'
    _, _, found = masked(tmp_path, rules)
    more = tiny(60)
    for name, values in more.items():
        more[name] = np.concatenate([values, values[:1]])
    more |= {name: np.concatenate([found.columns[name], found.columns[name][:1]]) for name in ("who", "zip", "born")}
    more["note"] = np.array([*(f"mail me{row}@example.org" for row in range(60)), "IBAN DE89 3704 0044 0532 0130 00"])
    _, _, again = masked(tmp_path, rules, more=more)
    for name in ("note", "age"):
        assert list(again.columns[name][:60]) == list(found.columns[name])
