"""A policy directory with everything that ships, to be changed by the tests; and plain facts to ask it about."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import pytest

from policy.decide import PolicySet, load_policy
from policy.entities import Context, Principal, Role
from sealgate.protocol.frames import ModelFacts

TENANTS = """
[[tenant]]
name = "clinic"
[[tenant.purpose]]
name = "treatment"
max_epsilon = "8"
[[tenant.purpose]]
name = "billing"
max_epsilon = "1"

[[tenant]]
name = "suspended"
suspended = true
[[tenant.purpose]]
name = "treatment"
max_epsilon = "8"

[[tenant]]
name = "careful"
requires_mtls = true
[[tenant.purpose]]
name = "treatment"
max_epsilon = "8"

[[tenant]]
name = "hardened"
evidence_floor = "hardware"
[[tenant.purpose]]
name = "treatment"
max_epsilon = "8"

[[tenant]]
name = "measured"
evidence_floor = "tpm"
[[tenant.purpose]]
name = "treatment"
max_epsilon = "8"

[[tenant]]
name = "bound-any"
token_binding = "any"
[[tenant.purpose]]
name = "treatment"
max_epsilon = "8"

[[tenant]]
name = "bound-mtls"
token_binding = "mtls"
[[tenant.purpose]]
name = "treatment"
max_epsilon = "8"

[[tenant]]
name = "bound-dpop"
token_binding = "dpop"
[[tenant.purpose]]
name = "treatment"
max_epsilon = "8"

[[tenant]]
name = "oversight"
audits_every_tenant = true
"""


@pytest.fixture
def policy_dir(tmp_path: Path) -> Path:
    """The shipped schema and policies, with tenants for every rule and no budgets."""
    folder = tmp_path / "policy"
    folder.mkdir()
    for item in resources.files("policy.shipped").iterdir():
        if item.name.endswith((".cedar", ".cedarschema")):
            (folder / item.name).write_bytes(item.read_bytes())
    (folder / "tenants.toml").write_text(TENANTS)
    (folder / "budgets.toml").write_text("")
    return folder


@pytest.fixture
def policy_set(policy_dir: Path) -> PolicySet:
    return load_policy(policy_dir)


@pytest.fixture
def principal() -> Callable[..., Principal]:
    base = Principal(
        tenant="clinic",
        subject="triage-app",
        roles=frozenset({Role.CLIENT}),
        purposes=frozenset({"treatment"}),
        authn="jwt",
        mtls=False,
        credential_binding="b",
        expires_us=2**60,
    )

    def make(*roles: Role, **changes: Any) -> Principal:
        if roles:
            changes["roles"] = frozenset(roles)
        return dataclasses.replace(base, **changes)

    return make


@pytest.fixture
def model() -> Callable[..., ModelFacts]:
    base = ModelFacts(
        name="tumour",
        version="1",
        model_digest="aa",
        certificate_digest="bb",
        epsilon_micro=3_000_000,
        delta="0.00001",
        privacy_unit="example",
        sensitivity="special-category",
        purposes=("treatment", "billing"),
    )
    return lambda **changes: msgspec.structs.replace(base, **changes)


@pytest.fixture
def context() -> Callable[..., Context]:
    # 2026-11-18 is a Wednesday; 10:30 UTC.
    base = Context(purpose="treatment", sealed=True, assurance="software", now_us=1_794_997_800_000_000)
    return lambda **changes: msgspec.structs.replace(base, **changes)
