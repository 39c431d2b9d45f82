"""What identifies people in a text, found by rules and replaced by words in angle brackets such as <email>.

Rules say what they find, need no model of a language, and treat equal texts equally: e-mail addresses, telephone
numbers, IBANs and payment cards with right check digits, national identifiers of six countries, IP addresses, web
addresses, and names where a title, a greeting or a header says that one follows. Names elsewhere in a sentence stay. A
trained recogniser would find more of those, at the price of a large model and of answers that change with its version.

Trusts: nothing. Never: keeps what it found. Every pattern takes time that is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from training.masking.check_digits import (
    is_british_health,
    is_card,
    is_german,
    is_iban,
    is_italian,
    is_polish,
    is_spanish,
    is_us_social_security,
)

_SEPARATORS = re.compile(r"[ \-.]")
_NAME = r"[^\W\d_a-z]['\u2019]?[^\W\d_]{1,30}(?:-[^\W\d_]{2,30})?"
_TITLES = "Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Sir|Madam|Herr|Frau|Mme|Sig|Sra?"
_NAMES = rf"{_NAME}(?:[ \t]{{1,2}}(?:[A-Z]\.|{_NAME})){{0,3}}"


@dataclass(frozen=True)
class _Rule:
    """A pattern whose group `x`, or whole match, is replaced if `holds` for it without separators."""

    kind: str
    pattern: re.Pattern[str]
    holds: Callable[[str], bool] = lambda _text: True


def _phone(compact: str) -> bool:
    digits = compact.strip("+()")
    return 7 <= sum(one.isdigit() for one in digits) <= 15


def _octets(text: str) -> bool:
    return all(int(part) < 256 for part in text.split("."))


_RULES = (
    _Rule("web-address", re.compile(r"(?i)\b(?:https?|ftp)://[^\s<>\"']{1,2000}|\bwww\.[^\s<>\"']{1,2000}")),
    _Rule(
        "email",
        re.compile(r"(?i)(?<![\w.+%-])[\w.+%-]{1,64}@[a-z0-9](?:[a-z0-9-]{0,62}\.){1,8}[a-z]{2,24}\b"),
    ),
    _Rule("iban", re.compile(r"\b(?P<x>[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?)\b"), is_iban),
    _Rule("national-id", re.compile(r"\b[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]\b"), is_italian),
    _Rule("national-id", re.compile(r"\b(?:\d{8}|[XYZ]\d{7})-?[A-HJ-NP-TV-Z]\b"), is_spanish),
    _Rule(
        "national-id",
        re.compile(r"\b(?![DFIQUV])[A-Z](?![DFIQUVO])[A-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]\b"),
        lambda text: text[:2] not in ("BG", "GB", "NK", "KN", "TN", "NT", "ZZ"),
    ),
    _Rule("national-id", re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])"), is_us_social_security),
    _Rule("card", re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])"), is_card),
    _Rule("national-id", re.compile(r"(?<!\d)\d{2} ?\d{3} ?\d{3} ?\d{3}(?!\d)"), is_german),
    _Rule("national-id", re.compile(r"(?<!\d)\d{11}(?!\d)"), is_polish),
    _Rule("national-id", re.compile(r"(?<!\d)\d{3} \d{3} \d{4}(?!\d)"), is_british_health),
    _Rule("ip-address", re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])"), _octets),
    _Rule("ip-address", re.compile(r"(?i)(?<![\w:])(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}(?![\w:])")),
    _Rule(
        "phone",
        re.compile(
            r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(0\)[ .-]?)?\d{1,5}(?:[ ./-]?\d{2,5}){1,4}"
            r"|(?:1[ .-])?\(\d{2,5}\) ?\d{2,5}(?:[ .-]?\d{2,5}){1,3}"
            r"|(?:1[ .-])?\d{3}[ .-]\d{3}[ .-]\d{4}"
            r"|0\d{1,4}[ /-]\d{2,4}(?:[ .-]?\d{2,4}){1,3})(?![\w-])"
        ),
        _phone,
    ),
    _Rule(
        "name",
        re.compile(rf"\b(?:{_TITLES})\.?[ \t]{{1,2}}(?P<x>{_NAMES})"),
    ),
    _Rule(
        "name",
        re.compile(
            rf"(?m)^[ \t>]{{0,8}}(?:Dear|Hi|Hello|Hey)[ \t]{{1,2}}(?!(?:{_TITLES})\b)"
            rf"(?P<x>{_NAMES})(?=[ \t]{{0,4}}[,!.:\n\r-]|$)"
        ),
    ),
    _Rule(
        "name",
        re.compile(
            r"(?mi:^[ \t>]{0,8}(?:from|to|cc|sender|reply-to):)[ \t]{0,4}"
            rf"\"?(?P<x>{_NAMES})\"?(?=[ \t]{{0,4}}[<\n\r]|$)"
        ),
    ),
)

KINDS = tuple(dict.fromkeys(rule.kind for rule in _RULES))


def redacted(text: str, *, kinds: tuple[str, ...] | None = None) -> tuple[str, dict[str, int]]:
    """The text with what was found replaced by <kind>, and how often; all kinds if none are named."""
    counts: dict[str, int] = {}
    for rule in _RULES:
        if kinds and rule.kind not in kinds:
            continue

        def replace(match: re.Match[str], rule: _Rule = rule) -> str:
            named = "x" in rule.pattern.groupindex
            found = match["x"] if named else match[0]
            compact = found if rule.kind in ("ip-address", "web-address", "email") else _SEPARATORS.sub("", found)
            if not rule.holds(compact):
                return match[0]
            counts[rule.kind] = counts.get(rule.kind, 0) + 1
            if not named:
                return f"<{rule.kind}>"
            start, end = match.start("x") - match.start(), match.end("x") - match.start()
            return f"{match[0][:start]}<{rule.kind}>{match[0][end:]}"

        text = rule.pattern.sub(replace, text)
    return text, counts
