"""What providers call things becomes what we call them, by the issuer's rules and by nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.authentication.claims import ClaimRules, apply_rules, parse_registered, require_access_token
from gateway.errors import Unauthenticated
from gateway.limits import MAX_CLAIM_ITEMS

BASE = {"iss": "i", "aud": "a", "sub": "alice", "iat": 1, "exp": 2, "jti": "1", "client_id": "app", "tenant": "clinic"}


def understood(rules=None, drop=(), **claims):
    payload = {name: value for name, value in (BASE | claims).items() if name not in drop}
    found = parse_registered(payload)
    return apply_rules(rules or ClaimRules(), payload, found, not_before_us=1, expires_us=2)


def refused(rules=None, **claims):
    with pytest.raises(Unauthenticated) as caught:
        understood(rules, **claims)
    return caught.value.code


def test_defaults():
    got = understood(roles=["client", "x"], purposes=["treatment"])
    assert (got.tenant, got.subject, got.client_id, got.jti) == ("clinic", "alice", "app", "1")
    assert (got.roles, got.purposes) == (("client", "x"), ("treatment",))
    assert understood().roles == ()


@pytest.mark.parametrize(
    ("path", "claims"),
    [
        (("realm_access", "roles"), {"realm_access": {"roles": ["client"]}}),
        (("resource_access", "my.app", "roles"), {"resource_access": {"my.app": {"roles": ["client"]}}}),
        (("https://example.com/roles",), {"https://example.com/roles": ["client"]}),
        (("scope",), {"scope": "client"}),
        (("scp",), {"scp": ["client"]}),
    ],
)
def test_roles_stand_where_the_provider_puts_them(path, claims):
    assert understood(ClaimRules(roles_claim=path), **claims).roles == ("client",)
    assert understood(ClaimRules(roles_claim=path), roles=["auditor"]).roles == (), "no other place is asked"


@pytest.mark.parametrize(
    "claims", [{}, {"a": {}}, {"a": 5}, {"a": ["b"]}, {"a": None}, {"a": "b"}, {"a.b": ["client"]}, {"b": ["client"]}]
)
def test_a_place_that_is_not_there_says_nothing(claims):
    assert understood(ClaimRules(roles_claim=("a", "b")), **claims).roles == ()
    assert refused(ClaimRules(tenant_claim=("a", "b")), **claims) == "claims-invalid"
    assert refused(ClaimRules(subject_claim=("a", "b")), **claims) == "claims-invalid"


@pytest.mark.parametrize("value", ["client", 5, None, {"client": 1}, [1], [["client"]], ["x"] * (MAX_CLAIM_ITEMS + 1)])
def test_roles_of_another_type_are_refused(value):
    for rules in (ClaimRules(), ClaimRules(role_map={"client": "client"})):
        assert refused(rules, roles=value) == "claims-invalid"


def test_maps_take_what_they_name_and_drop_the_rest():
    rules = ClaimRules(role_map={"App Users": "client", "apps": "client", "Audit": "auditor"})
    got = understood(rules, roles=["Domain Users", "apps", "App Users", "Audit", "operator"])
    assert got.roles == ("client", "auditor")
    assert understood(rules, roles=["client"]).roles == (), "our own name is not the provider's"


def test_a_scope_string_is_roles_and_purposes_by_their_maps():
    rules = ClaimRules(
        roles_claim=("scope",),
        purposes_claim=("scope",),
        role_map={"infer": "client"},
        purpose_map={"use:treatment": "treatment"},
    )
    got = understood(rules, scope="openid infer  use:treatment")
    assert (got.roles, got.purposes) == (("client",), ("treatment",))


def test_a_string_is_not_split_anywhere_else():
    assert refused(purposes="treatment research") == "claims-invalid"


def test_tenants_by_map_and_fixed():
    mapped = ClaimRules(tenant_claim=("tid",), tenant_map={"7d9-guid": "clinic"})
    assert understood(mapped, tid="7d9-guid").tenant == "clinic"
    assert refused(mapped, tid="clinic") == "tenant-not-of-issuer"
    assert refused(mapped, tid=5) == "claims-invalid"
    assert understood(ClaimRules(tenant="lab"), tenant="clinic").tenant == "lab"
    assert understood(ClaimRules(tenant="lab"), drop={"tenant"}).tenant == "lab"


def test_the_subject_may_be_another_claim():
    assert understood(ClaimRules(subject_claim=("client_id",))).subject == "app"
    assert refused(ClaimRules(subject_claim=("client_id",)), client_id="two words") == "claims-invalid"
    assert refused(sub="two words") == "claims-invalid"
    assert understood(ClaimRules(subject_claim=("client_id",)), sub="two words").subject == "app"


def test_ids_are_required_unless_the_issuer_has_none():
    lenient = ClaimRules(require_jti=False, require_client_id=False)
    assert understood(lenient, drop={"jti", "client_id"}).jti == ""
    for name in ("jti", "client_id"):
        with pytest.raises(Unauthenticated):
            understood(drop={name})
        assert refused(lenient, **{name: ""}) == "claims-invalid"
        assert refused(lenient, **{name: 5}) == "claims-invalid"
        assert refused(lenient, **{name: None}) == "claims-invalid"


@pytest.mark.parametrize(
    "marks",
    [
        {"nonce": "n"},
        {"at_hash": "h"},
        {"c_hash": "h"},
        {"s_hash": "h"},
        {"events": {}},
        {"azp": "api"},
        {"client_id": "api"},
        {"typ": "ID"},
        {"typ": "Refresh"},
        {"typ": None},
        {"typ": ["Bearer"]},
    ],
)
def test_tokens_called_jwt_that_look_like_another_kind_are_refused(marks):
    payload = BASE | {"aud": ["other", "api"]}
    require_access_token(payload, parse_registered(payload))
    require_access_token(payload | {"typ": "Bearer", "azp": "app"}, parse_registered(payload))
    with pytest.raises(Unauthenticated) as caught:
        require_access_token(payload | marks, parse_registered(payload | marks))
    assert caught.value.code == "type-mismatch"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "roles"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*BASE, "a", "roles", "scope", "cnf", "nbf"]), json_values, max_size=6),
    st.sampled_from([("a",), ("a", "b"), ("scope",), ("a", "b", "roles")]),
    st.booleans(),
)
def test_whatever_an_issuer_signs_is_understood_or_refused_and_nothing_else(claims, path, mapped):
    rules = ClaimRules(roles_claim=path, role_map={"a": "client"} if mapped else {})
    try:
        got = understood(rules, **claims)
    except Unauthenticated:
        return
    assert set(got.roles) <= {"client"} or not mapped
    assert all(isinstance(role, str) for role in got.roles)
    assert isinstance(got.tenant, str)
    assert isinstance(got.subject, str)


@pytest.mark.parametrize(
    ("rules", "claims", "detail"),
    [
        (ClaimRules(tenant_claim=("a", "b")), {}, "a.b is missing"),
        (ClaimRules(), {"tenant": 5}, "tenant is not of its type"),
        (ClaimRules(), {"roles": "client"}, "roles is not of its type"),
        (ClaimRules(), {"drop": ("jti",)}, "jti is missing"),
        (ClaimRules(), {"drop": ("client_id",)}, "client_id is missing"),
        (ClaimRules(), {"drop": ("aud",)}, "aud is missing"),
        (ClaimRules(), {"exp": "s3cret"}, "exp is not of its type"),
        (ClaimRules(), {"cnf": {"s3cret": "s3cret"}}, "cnf is not of its type"),
        (ClaimRules(), {"cnf": {}}, "cnf is empty"),
    ],
)
def test_the_operator_is_told_which_claim_and_never_what_it_holds(rules, claims, detail):
    with pytest.raises(Unauthenticated) as caught:
        understood(rules, **claims)
    assert (caught.value.code, caught.value.detail) == ("claims-invalid", detail)
