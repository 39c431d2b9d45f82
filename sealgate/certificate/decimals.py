"""Decimal texts: how numbers that are not whole stand in manifests and certificates, where floats are forbidden.

One text per number: no exponent, no plus sign, no leading zeros, no trailing zeros after the point.
"""

from __future__ import annotations

import re
from decimal import Decimal

from sealgate.errors import DecodeError

_FORM = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{0,17}[1-9])?\Z")
MICRO = 1_000_000


def parse_decimal(text: str) -> Decimal:
    """The number; raises DecodeError for any other spelling than `decimal_text` writes."""
    if len(text) > 40 or not _FORM.match(text) or text == "-0":
        raise DecodeError("not a plain decimal number")
    return Decimal(text)


def decimal_text(value: Decimal) -> str:
    """The one spelling of a finite number; raises DecodeError if it needs more than 18 digits on a side."""
    if not value.is_finite():
        raise DecodeError("not a finite number")
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    if text in ("-0", ""):
        text = "0"
    parse_decimal(text)
    return text


def micro_text(micro: int) -> str:
    """Millionths as people read them: 2999990 is `2.99999`."""
    return decimal_text(Decimal(micro) / MICRO)
