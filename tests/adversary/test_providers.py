"""Providers that name things in their own way, and what can be made of it: maps, paths, scopes, other kinds of token.

Each issuer here is trusted for what its entry says and for nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sealgate.deployment import Deployment
from tests.adversary.conftest import Target
from tests.adversary.forge import jwk, jws, key
from tests.gateway.conftest import Running, copied, hosted

LEGACY = "https://legacy.example/auth/realms/hospital"
FIXED = "https://fixed.example"
KEYS = {LEGACY: "p256 legacy", FIXED: "p256 fixed"}

ISSUERS = f"""
[[issuer]]
name = "{LEGACY}"
jwks = "legacy.json"
accept_types = ["JWT"]
audience = "sealgate-api"
tenant_claim = "org"
tenant_map = {{ "St. Elsewhere" = "clinic" }}
subject_claim = "azp"
roles_claim = "realm_access.roles"
role_map = {{ "app user" = "client" }}
purposes_claim = "scope"
purpose_map = {{ "care:read" = "treatment" }}
require_jti = false
require_client_id = false

[[issuer]]
name = "{FIXED}"
jwks = "fixed.json"
tenant = "operations"
"""


def add_providers(deployment: Deployment) -> None:
    folder = deployment.tokens
    for issuer, name in (("legacy", LEGACY), ("fixed", FIXED)):
        member = jwk(key(KEYS[name]).public_key(), kid="k", alg="ES256", use="sig")
        (folder / f"{issuer}.json").write_text(json.dumps({"keys": [member]}))
    with (folder / "issuers.toml").open("a") as file:
        file.write(ISSUERS)


@pytest.fixture(scope="module")
def _site(provisioned: Path) -> Iterator[Target]:
    with copied(provisioned) as deployment:
        add_providers(deployment)
        with hosted(deployment) as host:
            running = Running(deployment, host)
            made = Target(running)
            yield made
            made.wire.close()
            running.close()


@pytest.fixture
def site(_site: Target) -> Target:
    _site.running.host.told.clear()
    return _site


def legacy(site: Target, *, typ: str = "JWT", **changes: Any) -> str:
    """A token of the older provider, changed; a change to `...` leaves the claim out."""
    good: dict[str, Any] = {
        "iss": LEGACY,
        "aud": ["sealgate-api", "account"],
        "sub": "f:1234:alice",
        "azp": "portal",
        "org": "St. Elsewhere",
        "realm_access": {"roles": ["app user", "offline_access"]},
        "scope": "openid care:read",
        "typ": "Bearer",
    }
    claims = site.forge.claims(**dict.fromkeys(("tenant", "roles", "purposes", "client_id", "jti"), ...))
    members = {name: value for name, value in (claims | good | changes).items() if value is not ...}
    return jws(key(KEYS[LEGACY]), {"typ": typ, "alg": "ES256", "kid": "k"}, members)


def test_what_the_attacks_are_made_from_is_let_in(site: Target) -> None:
    caller = site.served(site.bearer(legacy(site))).caller
    assert (caller.tenant, caller.subject) == ("clinic", "portal")


REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    # Other kinds of token that the same keys sign
    "an ID token by its nonce": ({"nonce": "n-0S6_WzA2Mj"}, ("type-mismatch",)),
    "an ID token by its access token's hash": ({"at_hash": "x"}, ("type-mismatch",)),
    "an ID token by its audience": ({"aud": ["portal", "sealgate-api"]}, ("type-mismatch",)),
    "an ID token that says so": ({"typ": "ID"}, ("type-mismatch",)),
    "a refresh token": ({"typ": "Refresh"}, ("type-mismatch",)),
    "a logout token": ({"events": {"http://schemas.openid.net/event/backchannel-logout": {}}}, ("type-mismatch",)),
    "a kind that is no text": ({"typ": ["Bearer"]}, ("type-mismatch",)),
    # Audiences
    "the deployment's audience instead of the provider's name for it": (
        {"aud": "https://localhost:8443"},
        ("audience-mismatch",),
    ),
    # Tenants
    "a tenant that is not in the map": ({"org": "Elsewhere"}, ("tenant-not-of-issuer",)),
    "a tenant by our own name": ({"org": "clinic"}, ("tenant-not-of-issuer", "claims-invalid")),
    "a tenant under our name of the claim": ({"org": ..., "tenant": "clinic"}, ("claims-invalid",)),
    "a tenant that is a list": ({"org": ["St. Elsewhere"]}, ("claims-invalid",)),
    # Subjects
    "no subject where this provider has it": ({"azp": ..., "client_id": "portal"}, ("claims-invalid",)),
    "a subject with a space": ({"azp": "a b"}, ("claims-invalid",)),
    # Roles
    "roles that are a mapping": ({"realm_access": {"roles": {"app user": True}}}, ("claims-invalid",)),
    "roles that are one text": ({"realm_access": {"roles": "app user"}}, ("claims-invalid",)),
    "sixty-five roles": ({"realm_access": {"roles": ["x"] * 65}}, ("claims-invalid",)),
    "purposes that are numbers": ({"scope": [1]}, ("claims-invalid",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_entry_does_not_say_is_not_believed(site: Target, name: str) -> None:
    changes, reasons = REFUSED[name]
    site.refused(f"provider: {name}", site.bearer(legacy(site, **changes)), *reasons)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("our own name of a role", {"realm_access": {"roles": ["client"]}}),
        ("a role in other letters", {"realm_access": {"roles": ["App User", "app user "]}}),
        ("our own claim for roles", {"realm_access": ..., "roles": ["client"]}),
        ("the path as one name", {"realm_access": ..., "realm_access.roles": ["app user"]}),
        ("a list where the path goes on", {"realm_access": [{"roles": ["app user"]}]}),
        ("no roles", {"realm_access": {}}),
        ("our own name of a purpose", {"scope": "treatment"}),
        ("a longer scope", {"scope": "care:read:all"}),
        ("our own claim for purposes", {"scope": ..., "purposes": ["treatment"]}),
    ],
)
def test_names_that_are_not_in_the_map_count_for_nothing(site: Target, name: str, changes: dict[str, Any]) -> None:
    """The caller is known, and allowed nothing."""
    assert site.bearer(legacy(site, **changes)).status == 403, name


def test_an_issuer_of_one_tenant_speaks_for_no_other(site: Target) -> None:
    """Its tokens may say what they like."""
    claims = site.forge.claims(iss=FIXED, tenant="clinic")
    token = jws(key(KEYS[FIXED]), {"typ": "at+jwt", "alg": "ES256", "kid": "k"}, claims)
    assert site.bearer(token).status == 403
    refused = site.running.host.told[-1][0]
    assert refused.caller.tenant == "operations"


def test_types_are_by_issuer(site: Target) -> None:
    site.refused(
        "provider: at+jwt where only JWT was accepted", site.bearer(legacy(site, typ="at+jwt")), "type-mismatch"
    )  # fmt: skip
    claims = site.forge.claims(iss=FIXED)
    token = jws(key(KEYS[FIXED]), {"typ": "JWT", "alg": "ES256", "kid": "k"}, claims)
    site.refused("provider: JWT where only at+jwt was accepted", site.bearer(token), "type-mismatch")


def test_two_issuers_with_one_key_name_keep_their_own_keys(site: Target) -> None:
    claims = site.forge.claims(iss=FIXED)
    token = jws(key(KEYS[LEGACY]), {"typ": "at+jwt", "alg": "ES256", "kid": "k"}, claims)
    site.refused("provider: another issuer's key of the same name", site.bearer(token), "signature-invalid")
