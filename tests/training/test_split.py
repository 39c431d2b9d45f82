"""Held-out rows and the commitment: stable under neighbours, silent without the key."""

from __future__ import annotations

import stat
from fractions import Fraction

import numpy as np
import pytest

from sealgate.errors import ConfigurationError
from training.configuration import load_configuration
from training.examples import Examples
from training.forms import table as form
from training.split import commit, hold_out


def a_table(rows: int = 500) -> Examples:
    generator = np.random.default_rng(3)
    return Examples((generator.normal(size=(rows, 3)),), generator.integers(0, 2, rows).astype(np.float64))


def rows_of(table: Examples) -> set[tuple[float, ...]]:
    return set(map(tuple, table.inputs[0].tolist()))


def test_the_share_is_about_what_was_asked_and_nothing_is_lost():
    kept, held = hold_out(a_table(4000), fraction=Fraction(1, 5), word="a")
    assert 660 < len(held) < 940
    assert rows_of(kept) | rows_of(held) == rows_of(a_table(4000))
    assert not rows_of(kept) & rows_of(held)


def test_removing_a_row_moves_no_other():
    table = a_table()
    kept, held = hold_out(table, fraction=Fraction(1, 5), word="a")
    for row in (0, 100, 499):
        mask = np.arange(500) != row
        fewer_kept, fewer_held = hold_out(table.take(mask), fraction=Fraction(1, 5), word="a")
        assert rows_of(fewer_kept) <= rows_of(kept)
        assert rows_of(fewer_held) <= rows_of(held)


def test_copies_of_a_row_stay_together():
    table = a_table()
    twice = Examples((np.concatenate([table.inputs[0]] * 2),), np.concatenate([table.target] * 2))
    kept, held = hold_out(twice, fraction=Fraction(1, 2), word="a")
    assert not rows_of(kept) & rows_of(held)


def test_another_word_is_another_split():
    first = rows_of(hold_out(a_table(), fraction=Fraction(1, 5), word="a")[1])
    assert first == rows_of(hold_out(a_table(), fraction=Fraction(1, 5), word="a")[1])
    assert first != rows_of(hold_out(a_table(), fraction=Fraction(1, 5), word="b")[1])


def test_too_few_rows():
    with pytest.raises(ConfigurationError, match="too few rows"):
        hold_out(a_table(5), fraction=Fraction(1, 5), word="a")


def test_the_commitment_binds_rows_and_key():
    table = a_table(50)
    root = commit(table, key=b"k" * 32)
    assert root == commit(table, key=b"k" * 32)
    assert root != commit(table, key=b"x" * 32)
    changed = Examples((table.inputs[0].copy(),), table.target)
    changed.inputs[0][7, 1] += 1e-12
    assert root != commit(changed, key=b"k" * 32)
    assert root != commit(table.take(np.arange(50) < 49), key=b"k" * 32)


def test_held_out_rows_read_back_as_they_were(config):
    configuration = load_configuration(config)
    table = form.read_examples(configuration, folder=config.parent)
    _, held = hold_out(table, fraction=Fraction(1, 4), word="a")
    path = config.parent / "deep" / "held.csv"
    form.write_heldout(path, held, configuration)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lines = path.read_text().splitlines()
    assert lines[0] == "age,dose,score,ill"
    assert [tuple(map(float, line.split(",")[:3])) for line in lines[1:]] == list(map(tuple, held.inputs[0].tolist()))
    assert {line.split(",")[3] for line in lines[1:]} == {"healthy", "ill"}
    with pytest.raises(ConfigurationError, match="cannot be written"):
        form.write_heldout(path / "below-a-file.csv", held, configuration)
