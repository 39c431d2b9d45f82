"""The inner response field `Obligations`: what was done to an answer, and what its reader owes.

A dictionary of RFC 9651 structured fields, sealed with the answer, so the worker alone can have written it:

    Obligations: round-digits=6, noise-epsilon="0.5", receipt-required

Trusts nothing: only what `encode_obligations` can write is read, and a name that is not known here is an error, because
it may be a duty. Never: widens anything; a reader without this field owes nothing.
"""

from __future__ import annotations

import re

from sealgate.errors import DecodeError
from sealgate.protocol.frames import Obligations

FIELD = "obligations"

_MICRO = 1_000_000
_MAX_FIELD = 512
_MEMBER = re.compile(r'([a-z][a-z-]*)(?:=(?:(0|[1-9][0-9]{0,8})|"([0-9]{1,9}(?:\.[0-9]{0,5}[1-9])?)"))?\Z')
_NUMBERS = {"round-digits": "round_digits", "top-k": "top_k"}
_FLAGS = {"hide-scores": "hide_scores", "receipt-required": "receipt_required", "single-use": "single_use"}


def epsilon_text(micro: int) -> str:
    """Millionths as people write them: 500000 is `0.5`."""
    whole, rest = divmod(micro, _MICRO)
    return f"{whole}.{rest:06}".rstrip("0").rstrip(".")


def encode_obligations(obligations: Obligations) -> str:
    """The field's value; "" where nothing was demanded. How many rows might have been noised is not said."""
    members = [
        f"{name}={getattr(obligations, field)}"
        for name, field in _NUMBERS.items()
        if getattr(obligations, field) is not None
    ]
    if obligations.noise_epsilon_micro:
        members.append(f'noise-epsilon="{epsilon_text(obligations.noise_epsilon_micro)}"')
    members += [name for name, field in _FLAGS.items() if getattr(obligations, field)]
    return ", ".join(members)


def decode_obligations(values: list[str]) -> Obligations:
    """What the field's values say; no value says nothing. Raises DecodeError for anything else than the above."""
    if not values:
        return Obligations()
    if len(values) > 1 or len(values[0]) > _MAX_FIELD:
        raise DecodeError("the field Obligations stands twice, or is too long")
    found: dict[str, int | bool] = {}
    for text in values[0].split(", "):
        match = _MEMBER.match(text)
        name, number, quoted = match.groups() if match else ("", None, None)
        if name in _NUMBERS and number is not None:
            entry = (_NUMBERS[name], int(number))
        elif name == "noise-epsilon" and quoted is not None:
            entry = ("noise_epsilon_micro", _micro(quoted))
        elif name in _FLAGS and number is None and quoted is None:
            entry = (_FLAGS[name], True)
        else:
            raise DecodeError("the field Obligations says something that is not known here")
        if entry[0] in found:
            raise DecodeError("the field Obligations says something twice")
        found[entry[0]] = entry[1]
    return Obligations(**found)  # type: ignore[arg-type]


def _micro(text: str) -> int:
    whole, _, rest = text.partition(".")
    return int(whole) * _MICRO + int(rest.ljust(6, "0"))
