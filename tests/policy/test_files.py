"""tenants.toml and budgets.toml: what is written is what is read; everything else is one line that names the place."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.budgets import Budget, Window, parse_budgets
from policy.entities import Role
from policy.errors import PolicyFileError
from policy.tenants import micro, parse_tenants

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
subjects = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128)
amounts = st.integers(0, 2**53 - 1)
decimals = st.decimals(min_value=0, max_value=1_000_000, places=6).map(lambda d: f"{d:f}")


def _toml(value: object) -> str:
    return json.dumps(value)  # for the strings, numbers, booleans and flat lists used here, JSON is TOML


def _table(kind: str, fields: dict[str, object]) -> str:
    return f"[[{kind}]]\n" + "".join(f"{name} = {_toml(value)}\n" for name, value in fields.items())


def _refused(parse, text: str | bytes) -> str:
    with pytest.raises(PolicyFileError) as caught:
        parse(text.encode() if isinstance(text, str) else text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _complaint(parse, data: bytes) -> str:
    """The text of the refusal, or "" if there is none. Anything but a PolicyFileError fails the test."""
    try:
        parse(data)
    except PolicyFileError as error:
        return str(error)
    return ""


def _budgets(data: bytes) -> tuple[Budget, ...]:
    return parse_budgets(data, known_tenants={"clinic"}).requests


# Tenants -------------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        names,
        st.tuples(
            st.booleans(),
            st.booleans(),
            st.sampled_from(["software", "hardware"]),
            st.dictionaries(names, decimals, max_size=3),
        ),
        min_size=1,
        max_size=4,
    ),
    st.data(),
)
def test_tenants_round_trip(tenants, data):
    text = ""
    for name, (suspended, mtls, floor, purposes) in tenants.items():
        text += _table("tenant", {"name": name, "suspended": suspended, "requires_mtls": mtls, "evidence_floor": floor})
        text += "".join(
            _table("tenant.purpose", {"name": key, "max_epsilon": value}) for key, value in purposes.items()
        )
    owner = data.draw(st.sampled_from(sorted(tenants)))
    subject = data.draw(subjects)
    carried = data.draw(st.lists(st.sampled_from(sorted(tenants[owner][3])), unique=True)) if tenants[owner][3] else []
    roles = data.draw(st.lists(st.sampled_from([role.value for role in Role]), min_size=1, max_size=3))
    client = {"certificate": "URI:urn:x", "tenant": owner, "subject": subject, "roles": roles, "purposes": carried}
    parsed = parse_tenants((text + _table("client", client)).encode())
    assert set(parsed.tenants) == set(tenants)
    for name, (suspended, mtls, floor, purposes) in tenants.items():
        tenant = parsed.tenants[name]
        assert (tenant.suspended, tenant.requires_mtls, tenant.evidence_floor) == (suspended, mtls, floor)
        assert tenant.max_epsilon_micro == {key: int(Decimal(value) * 1_000_000) for key, value in purposes.items()}
        assert tenant.audits_every_tenant is False
    found = parsed.client_of(["DNS:elsewhere", "URI:urn:x"], OURS)
    assert found is not None
    assert (found.tenant, found.subject, list(found.purposes)) == (owner, subject, carried)
    assert [role.value for role in found.roles] == roles


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_garbage_is_one_typed_refusal(data):
    for parse in (parse_tenants, _budgets):
        assert _complaint(parse, data).isprintable()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.binary(min_size=1, max_size=3))
def test_the_shipped_files_with_a_few_bytes_changed(where, change):
    for file, parse in (("tenants.toml", parse_tenants), ("budgets.toml", _budgets)):
        data = bytearray((resources.files("policy.shipped") / file).read_bytes())
        place = where % len(data)
        data[place : place + len(change)] = change
        said = _complaint(parse, bytes(data))
        assert said.isprintable()
        assert said.startswith(file) or not said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "tenants.toml: the file's top level must set 'tenant'"),
        ("tenant = []", "tenants.toml: 'tenant' must be a list"),
        ("x = [" * 2000, "tenants.toml: "),
        (b"\xff", "tenants.toml: not UTF-8 text"),
        (b" " * (1024 * 1024 + 1), "tenants.toml: larger than"),
        ('[[tenant]]\nname = "a"\nname = "b"', "tenants.toml: not TOML: Cannot overwrite a value"),
        ('[[tenant]]\nname = "a"\n[[tenant]]\nname = "a"', r"tenant\[1\]\.name: 'a' is there twice"),
        ('[[tenant]]\nname = "a/b"', r"\[\[tenant\]\] number 1 name must be text in quotes: a name of letters, digits"),
        (
            '[[tenant]]\nname = "a\\n"',
            r"\[\[tenant\]\] number 1 name must be text in quotes: a name of letters, digits",
        ),
        (
            '[[tenant]]\nname = "' + "a" * 129 + '"',
            r"\[\[tenant\]\] number 1 name must be text in quotes: a name of letters, digits",
        ),
        (
            '[[tenant]]\nname = "a"\nsuspend = true',
            r"\[\[tenant\]\] number 1 has no setting 'suspend'; did you mean 'suspended'",
        ),
        (
            '[[tenant]]\nname = "a"\nsuspended = 1',
            r"\[\[tenant\]\] number 1 suspended must be true or false, not a whole",
        ),
        (
            '[[tenant]]\nname = "a"\nevidence_floor = "none"',
            "evidence_floor must be text in quotes, one of: software, tpm, hardware",
        ),
        (
            '[[tenant]]\nname = "a"\n[[tenant.purpose]]\nname = "p"\nmax_epsilon = 8',
            r"\[\[tenant.purpose\]\] number 1 max_epsilon must be text in quotes",
        ),
        ('[[tenant]]\nname = "a"\n[[tenant.purpose]]\nname = "p"\nmax_epsilon = "-1"', "number 1 max_epsilon must be"),
        ('[[tenant]]\nname = "a"\n[[tenant.purpose]]\nname = "p"\nmax_epsilon = "1e3"', "number 1 max_epsilon must be"),
        (
            '[[tenant]]\nname = "a"\n[[tenant.purpose]]\nname = "p"\nmax_epsilon = "1.0000001"',
            "number 1 max_epsilon must be",
        ),
        (
            '[[tenant]]\nname = "a"\n[[tenant.purpose]]\nname = "p"\nmax_epsilon = "1000001"',
            r"purpose\[0\]\.max_epsilon: above",
        ),
        ('[[tenant]]\nname = "a"\n[[tenant.purpose]]\nname = "p"\nmax_epsilon = "inf"', "number 1 max_epsilon must be"),
        (
            '[[tenant]]\nname = "a"\n' + '[[tenant.purpose]]\nname = "p"\nmax_epsilon = "1"\n' * 2,
            r"tenant\[0\]\.purpose\[1\]\.name: 'p' is there twice",
        ),
        ('revoked_certificates = ["AB"]\n[[tenant]]\nname = "a"', "'revoked_certificates', entry 1 must be"),
    ],
)
def test_tenants_refused(text, says):
    assert re.search(says, _refused(parse_tenants, text))


OURS = frozenset({"ca"})
CLIENT = {"certificate": "URI:urn:x", "tenant": "a", "subject": "s", "roles": ["client"], "purposes": ["p"]}
TENANT = '[[tenant]]\nname = "a"\n[[tenant.purpose]]\nname = "p"\nmax_epsilon = "1"\n'


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tenant": "b"}, r"client\[0\]\.tenant: there is no tenant 'b'"),
        ({"purposes": ["q"]}, r"client\[0\]\.purposes: tenant 'a' has no purpose 'q'"),
        ({"roles": []}, r"\[\[client\]\] number 1 roles must be a list"),
        ({"roles": ["root"]}, r"\[\[client\]\] number 1 roles, entry 1 must be"),
        ({"certificate": "urn:x"}, r"\[\[client\]\] number 1 certificate must be"),
        ({"certificate": "IP:1.2.3.4"}, r"\[\[client\]\] number 1 certificate must be"),
        ({"certificate": "URI:"}, r"\[\[client\]\] number 1 certificate must be"),
        ({"subject": "a b"}, r"\[\[client\]\] number 1 subject must be"),
        ({"subject": ""}, r"`client\[0\]\.subject`"),
        ({"admin": True}, "has no setting 'admin'"),
    ],
)
def test_client_mappings_refused(change, says):
    assert parse_tenants((TENANT + _table("client", CLIENT)).encode()).client_of(["URI:urn:x"], OURS) is not None
    assert re.search(says, _refused(parse_tenants, TENANT + _table("client", {**CLIENT, **change})))


def test_a_certificate_is_mapped_once(tmp_path):
    text = TENANT + _table("client", CLIENT) * 2
    assert "client[1].certificate: 'URI:urn:x' is there twice" in _refused(parse_tenants, text)


def test_a_certificate_with_two_meanings_means_nobody():
    text = TENANT + _table("client", CLIENT) + _table("client", {**CLIENT, "certificate": "DNS:h", "subject": "t"})
    tenants = parse_tenants(text.encode())
    assert tenants.client_of(["URI:urn:x"], OURS).subject == "s"
    assert tenants.client_of(["URI:urn:x", "URI:urn:x", "DNS:other"], OURS).subject == "s"
    assert tenants.client_of(["URI:urn:x", "DNS:h"], OURS) is None
    assert tenants.client_of([], OURS) is None
    assert tenants.client_of(["uri:urn:x", "CN:urn:x", "URI:URN:X"], OURS) is None


@settings(max_examples=200)
@given(decimals)
def test_micro_is_exact(text):
    assert micro(text) == Decimal(text) * 1_000_000


# Budgets -------------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(
            Budget,
            name=names,
            tenant=st.just("clinic"),
            window=st.sampled_from([window for window in Window if window is not Window.FOREVER]),
            subject=st.none() | subjects,
            model=st.none() | names,
            requests=amounts,
            units=st.none() | st.integers(1000, 2**53 - 1),
            units_per_request=st.integers(1, 1000),
        ),
        max_size=5,
        unique_by=lambda budget: budget.name,
    )
)
def test_budgets_round_trip(budgets):
    fields = ("name", "tenant", "subject", "model", "requests", "units", "units_per_request")
    text = ""
    for budget in budgets:
        given_ = {name: getattr(budget, name) for name in fields if getattr(budget, name) is not None}
        text += _table("budget", {**given_, "window": budget.window.value})
    assert _budgets(text.encode()) == tuple(budgets)


BUDGET = {"name": "b", "tenant": "clinic", "window": "day", "requests": 5}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "a b"}, r"budgets.toml: \[\[budget\]\] number 1 name must be"),
        ({"tenant": "other"}, r"budget\[0\]\.tenant: there is no tenant 'other'"),
        ({"window": "week"}, r"\[\[budget\]\] number 1 window must be"),
        ({"requests": -1}, r"\[\[budget\]\] number 1 requests must be a whole number"),
        ({"requests": 2**53}, r"\[\[budget\]\] number 1 requests must be a whole number"),
        ({"requests": 1.5}, r"\[\[budget\]\] number 1 requests must be a whole number"),
        ({"requests": "5"}, r"\[\[budget\]\] number 1 requests must be a whole number"),
        ({"units_per_request": 0}, r"\[\[budget\]\] number 1 units_per_request must be"),
        ({"units": 255}, r"budget\[0\]\.units: below units_per_request \(256\)"),
        ({"request": 5}, "has no setting 'request'; did you mean 'requests'"),
        ({"requests": None}, r"budget\[0\]: needs a limit"),
    ],
)
def test_budgets_refused(change, says):
    assert len(_budgets(_table("budget", BUDGET).encode())) == 1
    fields = {name: value for name, value in {**BUDGET, **change}.items() if value is not None}
    assert re.search(says, _refused(_budgets, _table("budget", fields)))


def test_budget_names_are_unique():
    assert "budget[1].name: 'b' is there twice" in _refused(_budgets, _table("budget", BUDGET) * 2)


def test_the_shipped_files_are_sound():
    folder = resources.files("policy.shipped")
    tenants = parse_tenants((folder / "tenants.toml").read_bytes())
    budgets = parse_budgets((folder / "budgets.toml").read_bytes(), known_tenants=tenants.tenants)
    assert set(tenants.tenants) == {"clinic", "oversight", "operations"}
    assert [name for name, tenant in tenants.tenants.items() if tenant.audits_every_tenant] == ["oversight"]
    assert tenants.tenants["clinic"].max_epsilon_micro == {"treatment": 8_000_000}
    assert {budget.tenant for budget in budgets.requests} == {"clinic"}


def test_other_authorities_make_our_clients_only_where_a_rule_says_so():
    named = {**CLIENT, "certificate": "URI:urn:y", "authority": "partner"}
    anyones = {**CLIENT, "certificate": "URI:urn:z", "authority": "*"}
    tenants = parse_tenants((TENANT + "".join(_table("client", item) for item in (CLIENT, named, anyones))).encode())
    partner = frozenset({"partner"})
    found = {
        (name[-1], *sorted(authorities)): tenants.client_of([name], authorities) is not None
        for name in ("URI:urn:x", "URI:urn:y", "URI:urn:z")
        for authorities in (OURS, partner, frozenset(("ca", "partner")))
    }
    assert {asked for asked, anybody in found.items() if not anybody} == {("x", "partner"), ("y", "ca")}


def test_an_authority_is_a_name():
    for authority in ("", "a/b", "a b", "**"):
        with pytest.raises(PolicyFileError, match="authority"):
            parse_tenants((TENANT + _table("client", {**CLIENT, "authority": authority})).encode())
