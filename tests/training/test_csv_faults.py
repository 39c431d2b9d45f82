"""What is wrong with a CSV file, by line and column."""

from __future__ import annotations

import pytest

from sealgate.errors import ConfigurationError
from training.columns import numbers_of, read_columns


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\n1,2\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16-le"), "zero bytes"),
        (b"a,b\n1,2\n3,caf\xe9\n", "line 3, column 2: byte 0xE9 is not UTF-8 .Latin-1"),
        ("a,b\ncafé,2\n".encode() + b"x,caf\xe9\n", "line 3, column 2.*encodings are mixed"),
        (b"a,b\n1,2\n3\n", "row 2 .line 3.: 1 cells, but the header names 2"),
        (b'a,b\n"1\n2",3\n4,5,6\n', "row 2 .line 4.: 3 cells"),
        (b"a,b,a\n1,2,3\n", "two columns named 'a'"),
        (b"a;b\n1,5;2\n", "separated by semicolons"),
        (b"a;b\n1;2\n", "separated by semicolons"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, content, words):
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=words) as caught:
        read_columns("data.csv", tmp_path)
    assert "\n" not in str(caught.value)


def test_decimal_commas_are_told_from_text(tmp_path):
    (tmp_path / "data.csv").write_text('a,b\n1,2\n2,"3,5"\n')
    with pytest.raises(ConfigurationError, match="column 'b', row 2: holds a decimal comma, needs a number"):
        numbers_of("b", read_columns("data.csv", tmp_path)["b"])


def test_texts_stay_texts(tmp_path):
    (tmp_path / "data.csv").write_text("zip,flag\n01234,true\n00045,false\n")
    found = read_columns("data.csv", tmp_path, texts=("zip", "flag", "not there"))
    assert (found["zip"].tolist(), found["flag"].tolist()) == (["01234", "00045"], ["true", "false"])
