"""What is found in free text: published examples with right check digits, near misses, and real mails."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.masking.check_digits import is_card, is_german, is_iban, is_polish
from training.masking.personal import KINDS, redacted

MAILS = Path(__file__).parents[2] / "peers" / "node_modules" / "@stdlib" / "datasets-spam-assassin" / "data"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("write to john.smith+list@mail.example.co.uk.", "write to <email>."),
        ("IBAN DE89 3704 0044 0532 0130 00", "IBAN <iban>"),  # the standard's own example
        ("GB82WEST12345698765432", "<iban>"),
        ("card 4111 1111 1111 1111 or 5500-0000-0000-0004", "card <card> or <card>"),
        ("SSN 123-45-6789", "SSN <national-id>"),
        ("DNI 12345678Z, NIE X1234567L", "DNI <national-id>, NIE <national-id>"),
        ("RSSMRA85T10A562S", "<national-id>"),
        ("tax 86 095 742 719", "tax <national-id>"),
        ("PESEL 44051401359", "PESEL <national-id>"),
        ("NHS 943 476 5919", "NHS <national-id>"),
        ("AB 12 34 56 C", "<national-id>"),
        ("from 192.168.1.12", "from <ip-address>"),
        ("2001:0db8:0000:0000:0000:ff00:0042:8329", "<ip-address>"),
        ("see https://example.com/who?id=7 now", "see <web-address> now"),
        ("call +49 (0)89 1234-5678 or (555) 123-4567", "call <phone> or <phone>"),
        ("Mrs. Anna-Lena Schmidt came", "Mrs. <name> came"),
        ("Dear Mary,", "Dear <name>,"),
        ("From: John Q. Smith <x@y.org>", "From: <name> <<email>>"),
    ],
)
def test_what_is_found(text, wanted):
    assert redacted(text)[0] == wanted


@pytest.mark.parametrize(
    "text",
    [
        "IBAN DE88 3704 0044 0532 0130 00",
        "card 4111 1111 1111 1112",
        "SSN 000-45-6789, 666-45-6789, 912-45-6789",
        "DNI 12345678A",
        "RSSMRA85T10A562T",
        "PESEL 44051401358",
        "AB 12 34 56 E",
        "not an address 300.1.1.1, version 1.2.3.4567",
        "on 2026-05-17 at 12:30 it cost 1,234.56",
        "order 1234567890 of 20000 pieces",
        "a@b, @home, me@localhost",
        "Hello world, dear all",
    ],
)
def test_what_only_looks_like_it(text):
    kinds = tuple(kind for kind in KINDS if kind != "phone" or "+" in text)  # telephone numbers have no check digits
    assert redacted(text, kinds=kinds) == (text, {})


def test_only_the_kinds_that_were_asked_for():
    text = "Mr Smith, a@b.org, 123-45-6789"
    assert redacted(text, kinds=("email",)) == ("Mr Smith, <email>, 123-45-6789", {"email": 1})
    assert set(redacted(text)[1]) <= set(KINDS)


@given(st.integers(10**14, 10**15 - 1), st.integers(0, 15), st.integers(1, 9))
@settings(max_examples=50)
def test_a_changed_digit_is_no_card(number, place, change):
    digits = "4" + str(number)[1:]
    whole = next(digits + str(last) for last in range(10) if _luhn(digits + str(last)))
    assert is_card(whole) or len(set(whole)) == 1
    place = max(1, place)
    changed = whole[:place] + str((int(whole[place]) + change) % 10) + whole[place + 1 :]
    assert not is_card(changed)


def _luhn(digits: str) -> bool:
    """The textbook's way, written another way."""
    table = [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    return sum(table[int(d)] if i % 2 else int(d) for i, d in enumerate(digits[::-1])) % 10 == 0


@pytest.mark.parametrize(
    ("check", "number"), [(is_iban, "DE89370400440532013000"), (is_german, "86095742719"), (is_polish, "44051401359")]
)
def test_every_single_wrong_digit_is_found(check, number):
    assert check(number)
    for place in range(4 if check is is_iban else 1, len(number) - 1):
        for digit in "0123456789":
            if digit != number[place]:
                assert not check(number[:place] + digit + number[place + 1 :])


def test_long_hostile_texts_take_linear_time():
    for piece in ("a@", "1-", "+1 ", "Mr A", "1 ", "A" * 64 + "@", "::", "0:" * 7, "From: A ", "DE89 3704 "):
        seconds = []
        for times in (20_000, 80_000):
            started = time.process_time()
            redacted(piece * (times // len(piece)))
            seconds.append(time.process_time() - started)
        assert seconds[1] < 12 * seconds[0] + 0.5  # four times the text: a square would be sixteen


@pytest.mark.skipif(not MAILS.exists(), reason="tests/peers/install.sh brings the mails")
def test_no_address_is_left_in_real_mails():
    paths = sorted(MAILS.rglob("*.txt"))[::40]
    assert len(paths) > 50
    found = 0
    for path in paths:
        text = path.read_bytes().decode("latin-1")[:50_000]
        masked, counts = redacted(text)
        found += counts.get("email", 0)
        left = re.findall(r"(?<![\w.+%-])[A-Za-z0-9._+%-]{1,64}@[A-Za-z0-9-]{1,60}\.(?:com|net|org|edu|ie)\b", masked)
        assert not left, path.name
    assert found > 100


def test_random_texts_stay_what_they_are_without_digits_or_signs():
    generator = random.Random(7)
    for _ in range(50):
        text = " ".join("".join(generator.choices("abcdefgh", k=6)) for _ in range(40))
        assert redacted(text) == (text, {})
