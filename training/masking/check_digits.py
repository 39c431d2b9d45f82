"""Check digits of numbers that identify people, so that a number is taken for one only if it can be one.

Payment cards: Luhn (ISO/IEC 7812-1). IBAN: mod 97 (ISO 13616, ISO 7064). National identifiers as their issuers publish
them: Spain's DNI and NIE, Italy's codice fiscale, Germany's tax number, Poland's PESEL, Britain's NHS number. US social
security and British national insurance numbers have none; numbers that were never given out are told apart.

Trusts: texts of the right form (`personal` matches them). Never: says that a number exists.
"""

from __future__ import annotations

_SPANISH = "TRWAGMYFPDXBNJZSQVHLCKE"
_DIGITS_AND_LETTERS = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21) * 2  # 0 to 9 and A to J count alike
_ODD = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (*_DIGITS_AND_LETTERS, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
        strict=True,
    )
)
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI NL",
        19: "SI",
        20: "AT EE LT LU",
        21: "CH HR LI LV",
        22: "BG DE GB GE IE ME RS",
        23: "AE GI IL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "PT",
        26: "IS TR",
        27: "FR GR IT MC SM",
        28: "AL AZ BY CY HU LB PL",
        29: "BR EG QA UA",
        30: "JO KW MU",
        31: "MT",
    }.items()
    for country in countries.split()
}


def is_card(digits: str) -> bool:
    """13 to 19 digits of an issuer's range that pass Luhn's test."""
    if not 13 <= len(digits) <= 19 or digits[0] not in "23456" or len(set(digits)) == 1:
        return False
    doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits)))
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


def is_iban(text: str) -> bool:
    """A country that has IBANs, its length, and a remainder of one."""
    if _IBAN_LENGTHS.get(text[:2]) != len(text) or not text[2:4].isdigit():
        return False
    return int("".join(str(int(character, 36)) for character in text[4:] + text[:4])) % 97 == 1


def is_us_social_security(digits: str) -> bool:
    """Nine digits, none of whose parts was never assigned."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"


def is_spanish(text: str) -> bool:
    """DNI or NIE: the letter is the remainder by 23."""
    number = text[:-1].replace("X", "0", 1).replace("Y", "1", 1).replace("Z", "2", 1)
    return _SPANISH[int(number) % 23] == text[-1]


def is_italian(text: str) -> bool:
    """Codice fiscale: the last letter is a sum over odd and even places by 26."""
    total = sum(
        _ODD[character] if place % 2 == 0 else int(character, 36) - (0 if character.isdigit() else 10)
        for place, character in enumerate(text[:15])
    )
    return chr(ord("A") + total % 26) == text[15]


def is_german(digits: str) -> bool:
    """Steuer-Identifikationsnummer: eleven digits, mod 11,10 (ISO 7064), one of the first ten digits repeated."""
    product = 10
    for digit in digits[:10]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    repeated = max(digits[:10].count(digit) for digit in set(digits[:10]))
    return digits[0] != "0" and repeated in (2, 3) and (11 - product) % 10 == int(digits[10])


def is_polish(digits: str) -> bool:
    """PESEL: eleven digits weighted 1, 3, 7, 9, with a month that exists."""
    weights = (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)
    total = sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))
    return 1 <= int(digits[2:4]) % 20 <= 12 and 1 <= int(digits[4:6]) <= 31 and -total % 10 == int(digits[10])


def is_british_health(digits: str) -> bool:
    """NHS number: ten digits weighted 10 to 2, mod 11."""
    remainder = -sum(int(digit) * weight for digit, weight in zip(digits, range(10, 1, -1), strict=False)) % 11
    return remainder < 10 and remainder == int(digits[9])
