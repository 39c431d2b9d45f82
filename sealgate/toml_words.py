"""What is wrong with a TOML file, in the words of who wrote it: which table, which key, what is expected there.

msgspec names types and paths of its own. Here its errors become `[gateway] port must be a whole number, not text` and
`[gateway] has no setting 'prot'; did you mean 'port'?`. Used where a person's file is read.

Trusts: the library's forms of error; one that is not known is handed on as it is. Never: shows a value.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Sequence
from enum import EnumType
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from sealgate.terminal import printable

_LIMIT = 300
_LISTED = 16  # settings of a table, or values of a setting, that are listed at most
_NAMED_MODELS = "[models.NAME]"  # the field in which sealgate.deployment keeps these tables
_AT = re.compile(r" - at `(\$[^`]*)`\Z")
_STEP = re.compile(r"\.(\[models\.NAME\]|[^.\[\]]+)|\[(\d+|\.\.\.)\]")
_MISSING = re.compile(r"Object missing required field `([^`]+)`")
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]+)`")
_EXPECTED = re.compile(r"Expected `([^`]+)`(.*?)(?:, got `([^`]+)`)?\Z", re.DOTALL)
_INVALID = re.compile(r"Invalid (?:enum )?value")
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "str": "text in quotes",
    "bool": "true or false",
    "array": "a list in [brackets]",
    "object": "a table",
    "datetime": "a date and time",
    "date": "a date",
    "null": "nothing",
}
_BOUNDS = (
    ("of length >=", "with a length of at least"),
    ("of length <=", "with a length of at most"),
    (">=", "of at least"),
    ("<=", "of at most"),
    (">", "above"),
    ("<", "below"),
)
_REGEX = re.compile(r"matching regex '(.*)'\Z", re.DOTALL)
_CHOICE = re.compile(r"\^\(([A-Za-z0-9_|-]+)\)\\Z")  # the forms of pattern that are told in words
_NAME = re.compile(r"\^\[A-Za-z0-9\]\[A-Za-z0-9\._-\]\{0,([0-9]+)\}\\Z")
_SHAPES = (
    (
        re.compile(r"\^\(0\|\[1-9\].*\\\.\[0-9\]\{1,([0-9]+)\}\)\?\\Z"),
        ": a number such as 0.5, {} digits behind the point at most",
    ),
    (re.compile(r"\^\[\^\\x00-\\x1f\\x7f-\\x9f\]\{0,([0-9]+)\}\\Z"), ": one line of at most {} characters"),
    (re.compile(r"\^\[\\x20-\\x7e\]\{1,([0-9]+)\}\\Z"), ": one line in ASCII, {} characters at most"),
    (re.compile(r"\^\[\\x21-\\x7e\]\{[01],([0-9]+)\}\\Z"), ": ASCII without spaces, {} characters at most"),
    (re.compile(r"\^\[0-9a-f\]\{([0-9]+)\}\\Z"), ": {} hexadecimal digits in lower case"),
)


def in_words(error: Exception, shape: Any = None, *, under: Sequence[str] = ()) -> str:
    """One line about an error of reading TOML as `shape`, without the file's name. `under` is the table that was read,
    where it is not the whole file."""
    match error:
        case RecursionError():
            text = "nests too deeply"
        case UnicodeDecodeError():
            text = "not UTF-8 text"
        case tomllib.TOMLDecodeError():
            text = f"not TOML: {error}"
        case msgspec.ValidationError():
            text = _in_words(str(error), shape, under)
        case _:
            text = str(error)
    return printable(" ".join(text.split()), limit=_LIMIT)


def _in_words(text: str, shape: Any, under: Sequence[str]) -> str:
    at = _AT.search(text)
    what = text[: at.start()] if at else text
    within = [name or place for name, place in _STEP.findall(at[1])] if at else []
    steps = [*under, *within]
    if found := _MISSING.fullmatch(what):
        return _missing(steps, found[1], _at(shape, [*within, found[1]]))
    if found := _UNKNOWN.fullmatch(what):
        return f"{_table(steps)} has no setting '{found[1]}'{_instead(found[1], _fields(_at(shape, within)))}"
    if _INVALID.match(what):
        allowed = _allowed(_at(shape, within))
        return f"{_place(steps)} must be one of: {', '.join(allowed)}" if allowed else f"{_place(steps)}: {what}"
    if found := _EXPECTED.fullmatch(what):
        got = f", not {_type(found[3])}" if found[3] else ""
        return f"{_place(steps)} must be {_type(found[1])}{_bound(found[2])}{got}"
    return f"{_place(steps)}: {what}" if steps else what


def _missing(steps: Sequence[str], name: str, kind: Any) -> str:
    if _fields(kind):
        return f"{_table(steps)} needs the table [{_dotted([*steps, name])}]"
    return f"{_table(steps)} must set '{name}'{_instead('', _allowed(kind))}"


# Places --------------------------------------------------------------------------------------------------------------


def _table(steps: Sequence[str]) -> str:
    """What its head in the file looks like."""
    if not steps:
        return "the file's top level"
    if steps[-1].isdigit():
        return f"[[{_dotted(steps[:-1])}]] number {int(steps[-1]) + 1}"
    return f"[{_dotted(steps)}]"


def _place(steps: Sequence[str]) -> str:
    if not steps:
        return "the file"
    if steps[-1].isdigit() or steps[-1] == "...":
        entry = f", entry {int(steps[-1]) + 1}" if steps[-1].isdigit() else ", an entry of it"
        return f"{_place(steps[:-1])}{entry}"
    return f"'{steps[-1]}'" if len(steps) == 1 else f"{_table(steps[:-1])} {steps[-1]}"


def _dotted(steps: Sequence[str]) -> str:
    called = {"...": "NAME", _NAMED_MODELS: "models"}
    return ".".join(called.get(step, step) for step in steps if not step.isdigit())


# Words ---------------------------------------------------------------------------------------------------------------


def _type(names: str) -> str:
    return " or ".join(_TYPES.get(one, one) for one in names.split(" | ") if one != "null" or names == "null")


def _bound(text: str) -> str:
    text = text.strip()
    if regex := _REGEX.match(text):
        pattern = regex[1].replace("\\\\", "\\")
        if choice := _CHOICE.fullmatch(pattern):
            return ", one of: " + ", ".join(choice[1].split("|"))
        if name := _NAME.fullmatch(pattern):
            return f": a name of letters, digits, '.', '_' and '-', {int(name[1]) + 1} at most"
        for form, words in _SHAPES:
            if shape := form.fullmatch(pattern):
                return words.format(shape[1])
        return f" that matches {pattern}"
    for theirs, ours in _BOUNDS:
        if text.startswith(theirs):
            return f" {ours}{text.removeprefix(theirs)}"
    return f" {text}" if text else ""


def _instead(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; there are: {', '.join(known)}" if 0 < len(known) <= _LISTED else ""


# Shapes --------------------------------------------------------------------------------------------------------------


def _at(shape: Any, steps: Sequence[str]) -> Any:
    """The type that a path leads to; None where it cannot be told."""
    for step in steps:
        shape = _one(shape)
        if _fields(shape):
            names = dict(zip(shape.__struct_encode_fields__, shape.__struct_fields__, strict=True))
            try:
                shape = get_type_hints(shape).get(names.get(step, step))
            except NameError:
                return None
        else:
            shape = next(iter(get_args(shape)[-1 if get_origin(shape) is dict else 0 :][:1]), None)
    return _one(shape)


def _one(shape: Any) -> Any:
    """The type beside None in an optional one."""
    if get_origin(shape) in (Union, UnionType):
        kinds = [one for one in get_args(shape) if one is not NoneType]
        return kinds[0] if len(kinds) == 1 else shape
    return shape


def _fields(shape: Any) -> tuple[str, ...]:
    return tuple(getattr(shape, "__struct_encode_fields__", ()))


def _allowed(shape: Any) -> list[str]:
    """The values of a choice."""
    values: Sequence[Any] = get_args(shape) if get_origin(shape) is Literal else ()
    if isinstance(shape, EnumType):
        values = [kind.value for kind in list[Any](shape)]
    return [f'"{one}"' if isinstance(one, str) else str(one) for one in values][:_LISTED]
