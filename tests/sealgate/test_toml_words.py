"""What is wrong with a file is said in its own words: table, key, and what is expected there."""

from __future__ import annotations

import tomllib
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.deployment import Settings, open_deployment
from sealgate.errors import ConfigurationError
from sealgate.toml_words import in_words


class Purpose(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    kind: Literal["near", "far"] = "near"


class Tenant(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=2)]
    purpose: tuple[Purpose, ...] = ()


class File(msgspec.Struct, forbid_unknown_fields=True):
    mode: Literal["on", "off"]
    count: Annotated[int, msgspec.Meta(ge=1, le=9)] = 1
    share: float | None = None
    names: tuple[str, ...] = ()
    tenant: tuple[Tenant, ...] = ()
    places: dict[str, int] = {}


GOOD = 'mode = "on"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", 'the file\'s top level must set \'mode\'; there are: "on", "off"'),
        ('mode = "of"', '\'mode\' must be one of: "on", "off"'),
        (GOOD + 'count = "x"', "'count' must be a whole number, not text in quotes"),
        (GOOD + "count = 0", "'count' must be a whole number of at least 1"),
        (GOOD + "count = 10", "'count' must be a whole number of at most 9"),
        (GOOD + "share = true", "'share' must be a number, not true or false"),
        (GOOD + "coumt = 1", "the file's top level has no setting 'coumt'; did you mean 'count'?"),
        (GOOD + "names = 'x'", "'names' must be a list in [brackets], not text in quotes"),
        (GOOD + "names = ['x', 1]", "'names', entry 2 must be text in quotes, not a whole number"),
        (GOOD + "[[tenant]]\nname = 'aa'\n[[tenant]]\n", "[[tenant]] number 2 must set 'name'"),
        (
            GOOD + "[[tenant]]\nname = 'a'\n",
            "[[tenant]] number 1 name must be text in quotes with a length of at least 2",
        ),
        (
            GOOD + "[[tenant]]\nname = 'aa'\n[[tenant.purpose]]\nnam = 'a'\n",
            "[[tenant.purpose]] number 1 has no setting 'nam'; did you mean 'name'?",
        ),
        (
            GOOD + "[[tenant]]\nname = 'aa'\nzzz = 1",
            "[[tenant]] number 1 has no setting 'zzz'; there are: name, purpose",
        ),
        (GOOD + "[places]\na = 'x'", "'places', an entry of it must be a whole number, not text in quotes"),
        ("mode", "not TOML: Expected '=' after a key in a key/value pair (at end of document)"),
    ],
)
def test_errors_name_table_key_and_what_is_expected(text: str, said: str) -> None:
    with pytest.raises((msgspec.ValidationError, tomllib.TOMLDecodeError)) as error:
        msgspec.convert(tomllib.loads(text), File)
    assert in_words(error.value, File) == said


def test_an_error_within_a_table_names_the_table() -> None:
    for table, said in (
        ({"nam": "x"}, "[masking] has no setting 'nam'; did you mean 'name'?"),
        ({"name": 1}, "[masking] name must be text in quotes, not a whole number"),
        ({}, "[masking] must set 'name'"),
    ):
        with pytest.raises(msgspec.ValidationError) as error:
            msgspec.convert(table, Purpose)
        assert in_words(error.value, Purpose, under=("masking",)) == said


_KINDS = st.sampled_from([1, 1.5, "x", True, [], {}, [1], {"a": 1}])


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from([*Settings.__struct_encode_fields__, "x"]),
        _KINDS
        | st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("port", "audience", "origin", "others", "keys", "toy", "profile"), _KINDS)
        ),
    )
)
def test_no_word_of_the_library_gets_through(table: dict[str, object]) -> None:
    try:
        msgspec.convert(table, Settings)
    except msgspec.ValidationError as error:
        said = in_words(error, Settings)
        assert not any(word in said for word in ("$", "`", "Object", "Expected", "array", "\n")), said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gateway]\nport = 'x'", "[gateway] port must be a whole number, not text in quotes"),
        ("[gateway]\nprot = 1", "[gateway] has no setting 'prot'; did you mean 'port'?"),
        ("[gatway]\nport = 1", "the file's top level has no setting 'gatway'; did you mean 'gateway'?"),
        (
            "[models.toy]\nmax_concurent = 1",
            "[models.NAME] has no setting 'max_concurent'; did you mean 'max_concurrent'?",
        ),
        ("[models.toy.canary]\nversion = '2'", "[models.NAME.canary] must set 'percent'"),
        ("[[log.others]]\norigin = 'x'", "[[log.others]] number 1 must set 'database'"),
    ],
)
def test_a_deployments_settings_are_explained(tmp_path, text: str, said: str) -> None:  # type: ignore[no-untyped-def]
    head = '[deployment]\naudience = "a:1"\norigin = "a/log"\n'
    (tmp_path / "deployment.toml").write_text(head + text)
    with pytest.raises(ConfigurationError) as error:
        open_deployment(tmp_path)
    assert str(error.value) == f"{tmp_path / 'deployment.toml'}: {said}"
