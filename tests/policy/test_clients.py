"""`[[client]]` rules: what a certificate stands for, by name, SPIFFE path and authority."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.clients import is_spiffe_id
from policy.errors import PolicyFileError
from policy.tenants import parse_tenants

TENANTS = '[[tenant]]\nname = "a"\n[[tenant]]\nname = "b"\n'


def rules(*items):
    """`[[client]]` tables from (certificate, more) pairs; the subject is s1, s2 …"""
    text = TENANTS
    for number, (certificate, more) in enumerate(items, 1):
        fields = {"certificate": certificate, "tenant": "a", "subject": f"s{number}"} | more
        text += "[[client]]\nroles = ['client']\n"
        text += "".join(f'{name} = "{value}"\n' for name, value in fields.items() if value is not None)
    return parse_tenants(text.encode())


def subject(tenants, *names, authorities=("ca",)):
    client = tenants.client_of(names, frozenset(authorities))
    return None if client is None else client.subject


def test_the_most_specific_rule_counts():
    tenants = rules(
        ("URI:spiffe://x.org/*", {}),
        ("URI:spiffe://x.org/ward/*", {}),
        ("URI:spiffe://x.org/ward/7", {}),
        ("URI:spiffe://x.org/ward/*", {"authority": "*"}),
        ("URI:spiffe://x.org/ward/7/*", {"authority": "partner"}),
    )
    assert subject(tenants, "URI:spiffe://x.org/lab") == "s1"
    assert subject(tenants, "URI:spiffe://x.org/ward/8") == "s2"
    assert subject(tenants, "URI:spiffe://x.org/ward/7") == "s3"
    assert subject(tenants, "URI:spiffe://x.org/ward/7/bed") == "s2"
    assert subject(tenants, "URI:spiffe://x.org/ward/7/bed", authorities=("partner",)) == "s5"
    assert subject(tenants, "URI:spiffe://x.org/ward/7", authorities=("partner",)) == "s4"
    assert subject(tenants, "URI:spiffe://x.org/lab", authorities=("partner",)) is None
    assert subject(tenants, "URI:spiffe://x.org/ward/7", authorities=()) == "s4"


@pytest.mark.parametrize(
    "name",
    [
        "spiffe://x.org",
        "spiffe://x.org/",
        "spiffe://x.org/ward",  # the path itself is not below itself
        "spiffe://x.org/ward/",
        "spiffe://x.org/wards/7",
        "spiffe://x.org/ward//7",
        "spiffe://x.org/ward/../ward/7",
        "spiffe://x.org/ward/./7",
        "spiffe://x.org/ward/7?q",
        "spiffe://x.org/ward/7#f",
        "spiffe://x.org/ward/%37",
        "spiffe://x.org:443/ward/7",
        "spiffe://u@x.org/ward/7",
        "spiffe://X.org/ward/7",
        "SPIFFE://x.org/ward/7",
        "spiffe://y.org/ward/7",
        "spiffe://x.org.evil/ward/7",
        "spiffe:///ward/7",
        "https://x.org/ward/7",
    ],
)
def test_what_is_not_below_the_path(name):
    tenants = rules(("URI:spiffe://x.org/ward/*", {}))
    assert subject(tenants, "URI:spiffe://x.org/ward/7") == "s1"
    assert subject(tenants, f"URI:{name}") is None
    assert subject(tenants, f"DNS:{name}") is None


def test_a_spiffe_identity_is_the_only_uri():
    tenants = rules(("URI:spiffe://x.org/*", {}), ("URI:urn:x", {}), ("DNS:h", {"subject": "s1"}))
    assert subject(tenants, "URI:spiffe://x.org/a", "DNS:other") == "s1"
    assert subject(tenants, "URI:spiffe://x.org/a", "DNS:h") == "s1"  # both say the same
    assert subject(tenants, "URI:spiffe://x.org/a", "URI:spiffe://x.org/b") is None
    assert subject(tenants, "URI:spiffe://x.org/a", "URI:urn:other") is None
    assert subject(tenants, "URI:Spiffe://x.org/a", "URI:urn:x") is None


def test_two_authorities_behind_one_certificate_must_mean_the_same():
    tenants = rules(
        ("DNS:h", {"authority": "one"}),
        ("DNS:h", {"authority": "two"}),
        ("DNS:g", {"authority": "one", "subject": "g"}),
        ("DNS:g", {"authority": "two", "subject": "g"}),
    )
    assert subject(tenants, "DNS:h", authorities=("one",)) == "s1"
    assert subject(tenants, "DNS:h", authorities=("one", "two")) is None
    assert subject(tenants, "DNS:g", authorities=("one", "two")) == "g"


def test_the_subject_may_be_the_name():
    tenants = rules(
        ("URI:spiffe://x.org/*", {"subject": None, "subject_from": "certificate"}),
        ("DNS:h", {"subject": None, "subject_from": "certificate", "tenant": "b"}),
    )
    assert subject(tenants, "URI:spiffe://x.org/a/b") == "spiffe://x.org/a/b"
    assert subject(tenants, "DNS:h") == "h"
    assert subject(tenants, "URI:spiffe://x.org/" + "a" * 200) is None  # longer than a subject may be


@pytest.mark.parametrize(
    ("certificate", "more", "says"),
    [
        ("URI:spiffe://x.org/a*", {}, "neither a SPIFFE ID nor a path"),
        ("URI:spiffe://*/a", {}, "neither a SPIFFE ID nor a path"),
        ("URI:spiffe://X.org/*", {}, "neither a SPIFFE ID nor a path"),
        ("URI:SPIFFE://x.org/*", {}, "neither a SPIFFE ID nor a path"),
        ("URI:spiffe://x.org", {}, "neither a SPIFFE ID nor a path"),
        ("URI:spiffe://x.org/a/../*", {}, "neither a SPIFFE ID nor a path"),
        ("URI:urn:x:*", {}, "neither a SPIFFE ID nor a path"),
        ("URI:https://x.org/*", {}, "neither a SPIFFE ID nor a path"),
        ("DNS:h", {"subject": None}, "give either"),
        ("DNS:h", {"subject_from": "certificate"}, "give either"),
        ("DNS:h", {"subject_from": "caller"}, "subject_from"),
        ("DNS:h", {"authority": "a/b"}, "authority"),
        ("DNS:h", {"authority": ""}, "authority"),
    ],
)
def test_rules_refused(certificate, more, says):
    with pytest.raises(PolicyFileError, match=says) as caught:
        rules((certificate, more))
    assert "\n" not in str(caught.value)


def test_a_rule_stands_once_for_each_authority():
    assert len(rules(("DNS:h", {}), ("DNS:h", {"authority": "x"}), ("URI:spiffe://x/*", {})).clients) == 3
    for certificate in ("DNS:h", "URI:spiffe://x/*"):
        with pytest.raises(PolicyFileError, match="is there twice"):
            rules((certificate, {}), (certificate, {"authority": "ca"}))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.from_regex(r"[A-Za-z0-9._-]{1,6}", fullmatch=True), min_size=1, max_size=5), st.integers(0, 5))
def test_below_means_a_whole_segment(segments, cut):
    """By an oracle that only splits and compares lists."""
    path = segments[: min(cut, len(segments) - 1)]
    identity = f"spiffe://x.org/{'/'.join(segments)}"
    sound = not {".", ".."} & set(segments)
    assert is_spiffe_id(identity) == sound
    if {".", ".."} & set(path):
        return
    tenants = rules((f"URI:spiffe://x.org/{''.join(f'{part}/' for part in path)}*", {}))
    assert subject(tenants, f"URI:{identity}") == ("s1" if sound else None)
    assert subject(tenants, f"URI:spiffe://x.org/z{'/'.join(segments)}") == (
        "s1" if not path and is_spiffe_id(f"spiffe://x.org/z{'/'.join(segments)}") else None
    )
