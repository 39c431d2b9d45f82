"""Strict reading of the TOML files of a policy directory: known fields, right types, one-line errors."""

from __future__ import annotations

import tomllib
from typing import Annotated, TypeVar

import msgspec

from policy.errors import PolicyFileError
from policy.limits import MAX_POLICY_FILE
from sealgate.limits import MAX_NAME
from sealgate.toml_words import in_words

Name = Annotated[str, msgspec.Meta(pattern=rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}\Z")]
"""A tenant, purpose, model or budget name."""

Subject = Annotated[str, msgspec.Meta(pattern=rf"^[\x21-\x7e]{{1,{MAX_NAME}}}\Z")]
"""What a token or a certificate mapping calls its caller."""

_T = TypeVar("_T")


def parse_toml(data: bytes, shape: type[_T], *, name: str) -> _T:
    """The file's bytes as a `shape`; raises PolicyFileError whose text is one line."""
    if len(data) > MAX_POLICY_FILE:
        raise PolicyFileError(f"{name}: larger than {MAX_POLICY_FILE} bytes")
    try:
        return msgspec.convert(tomllib.loads(data.decode("utf-8")), shape)
    except UnicodeDecodeError as error:
        raise PolicyFileError(f"{name}: not UTF-8 text") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError, ValueError) as error:
        raise PolicyFileError(f"{name}: {in_words(error, shape)}") from error
