"""Every setting of every file that an operator writes is in docs/operations.md, with its default where it has one."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from audit import retention
from gateway.authentication import issuers, revocations
from gateway.telemetry import FIELDS
from policy import budgets, manifest, scenarios, tenants
from sealgate import deployment
from sealgate.certificate import aws_kms_key, azure_key, google_kms_key, publishers, vault_key
from sealgate.client import prices
from sealgate.evidence import trust
from secure_runtime.worker.sandbox.report import LAYERS, REQUIRED
from training import centering, configuration, pretrained
from training.forms import graph, image, sequence, text, tokens
from training.masking import sections as masking
from training.preprocessing import sections as preprocessing

SECTIONS: list[tuple[str, type[msgspec.Struct]]] = [
    ("### `deployment.toml`", deployment.DeploymentSection),
    ("### `deployment.toml`", deployment.LogSection),
    ("### `deployment.toml`", deployment.OtherLog),
    ("### `deployment.toml`", deployment.ConsoleSection),
    ("### `deployment.toml`", deployment.GatewaySection),
    ("### `deployment.toml`", deployment.RuntimeSection),
    ("### `deployment.toml`", deployment.ModelsSection),
    ("### `deployment.toml`", deployment.ModelSection),
    ("### `deployment.toml`", deployment.Canary),
    ("### `deployment.toml`", deployment.AttestationSection),
    ("### `deployment.toml`", deployment.TelemetrySection),
    ("### `prices.toml`", prices.Price),
    ("### `prices.toml`", prices._File),
    ("### `vault.toml`", vault_key.VaultTable),
    ("### `kms.toml`", aws_kms_key.AwsKmsTable),
    ("### `gcp.toml`", google_kms_key.GoogleKmsTable),
    ("### `azure.toml`", azure_key.AzureKeyTable),
    ("### `policy/tenants.toml`", tenants._Purpose),
    ("### `policy/tenants.toml`", tenants._Tenant),
    ("### `policy/tenants.toml`", tenants.CertificateClient),
    ("### `policy/tenants.toml`", tenants._File),
    ("### `policy/budgets.toml`", budgets.Budget),
    ("### `policy/budgets.toml`", budgets.PrivacyBudget),
    ("### `policy/manifest.toml`", manifest.Manifest),
    ("### `policy/scenarios/NAME.toml`", scenarios.Model),
    ("### `policy/scenarios/NAME.toml`", scenarios.Caller),
    ("### `policy/scenarios/NAME.toml`", scenarios.Circumstances),
    ("### `policy/scenarios/NAME.toml`", scenarios.Demands),
    ("### `policy/scenarios/NAME.toml`", scenarios.Scenario),
    ("### `policy/scenarios/NAME.toml`", scenarios._File),
    ("### `tokens/issuers.toml`", issuers._Issuer),
    ("### `tokens/revoked.toml`", revocations.Revocation),
    ("### `retention.toml`", retention.Rule),
    ("### `retention.toml`", retention._File),
    ("### `publishers.toml`", publishers._Entry),
    ("### `client/trust.toml`", trust._TrustTable),
    ("### `client/trust.toml`", trust._PinTable),
    *(
        ("### `CONFIG.toml` of `sealgate train`", struct)
        for struct in (
            configuration.ModelSection,
            configuration.DataSection,
            configuration.PrivacySection,
            configuration.OptimizerSection,
            configuration.LossSection,
            configuration.AugmentationSection,
            configuration.EngineSection,
            configuration.SelectionSection,
            configuration.Configuration,
            image.ImageSection,
            sequence.SequenceSection,
            text.TextSection,
            tokens.TokensSection,
            graph.GraphSection,
            pretrained.PretrainedSection,
            centering.CenterSection,
            masking.MaskingSection,
            masking.ColumnRule,
            preprocessing.PreprocessingSection,
            preprocessing.StandardiseSection,
            preprocessing.CategoriesSection,
            preprocessing.VocabularySection,
        )
    ),
]


def section(text: str, heading: str) -> str:
    """From a heading to the next of the same or a higher level."""
    assert f"\n{heading}\n" in text, f"no section {heading}"
    rest = text.split(f"\n{heading}\n", 1)[1]
    level = len(heading) - len(heading.lstrip("#"))
    return re.split(rf"(?m)^#{{1,{level}}} ", rest)[0]


def settings_of(struct: type[msgspec.Struct]) -> list[msgspec.structs.FieldInfo]:
    nested = {"price", "tenant", "client", "purpose", "models", "scenario", "caller", "circumstances", "obligations"}
    owners = {prices._File, tenants._File, tenants._Tenant, trust._TrustTable, scenarios._File, scenarios.Scenario}
    if struct is configuration.Configuration:
        own = {"columns", "categories", "dates"}
        return [field for field in msgspec.structs.fields(struct) if field.name in own]
    return [field for field in msgspec.structs.fields(struct) if not (struct in owners and field.name in nested)]


@pytest.mark.parametrize(("heading", "struct"), SECTIONS, ids=[f"{item.__name__}" for _, item in SECTIONS])
def test_every_setting_is_described_where_it_belongs(
    operations: str, heading: str, struct: type[msgspec.Struct]
) -> None:
    part = section(operations, heading)
    names = [field.encode_name for field in settings_of(struct)]
    missing = [name for name in names if not re.search(rf"`\[?{name}\]?`", part)]
    assert not missing, f"{heading} says nothing of {missing}"


def shown(value: Any) -> str:
    """A default as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else json.dumps(value)


@pytest.mark.parametrize("name", ["gateway", "runtime", "models", "telemetry"])
def test_every_default_of_the_deployment_is_the_one_in_the_code(operations: str, name: str) -> None:
    part = section(operations, "### `deployment.toml`").split(f"`[{name}]`:", 1)[1]
    part = re.split(r"(?m)^`\[", part)[0]
    rows = dict(re.findall(r"(?m)^\| `([a-z_]+)` \| `([^`]*)` \|", part))
    struct = {
        "gateway": deployment.GatewaySection,
        "runtime": deployment.RuntimeSection,
        "models": deployment.ModelsSection,
        "telemetry": deployment.TelemetrySection,
    }[name]
    defaults = {field.name: shown(field.default) for field in msgspec.structs.fields(struct)}
    assert rows == defaults


def test_defaults_of_the_policy_and_issuer_files(operations: str) -> None:
    for heading, struct in SECTIONS:
        if not heading.startswith(("### `policy", "### `tokens", "### `client")):
            continue
        part = section(operations, heading)
        for field in settings_of(struct):
            if isinstance(field.default, bool | int | str):
                rows = [line.split("|") for line in part.splitlines() if line.startswith("| ")]
                default = next(cells[2] for cells in rows if f"`{field.name}`" in cells[1])
                assert f"`{shown(field.default)}`" in default, f"{heading} {field.name}"


def test_every_profile_is_described(operations: str) -> None:
    part = section(operations, "## Profiles")
    for profile in REQUIRED:
        assert f"| `{profile}` |" in part
    never = sorted(set(LAYERS) - set(REQUIRED["strict"]))
    assert all(f"`{layer}`" in part for layer in never), f"strict does not require {never}"


def test_every_field_of_a_log_line_is_described(operations: str) -> None:
    part = section(operations, "## Health and logs")
    assert [name for name in FIELDS if f"`{name}`" not in part] == []


def test_no_setting_is_described_that_does_not_exist(operations: str) -> None:
    known = {field.name for _, struct in SECTIONS for field in msgspec.structs.fields(struct)}
    for heading in dict.fromkeys(heading for heading, _ in SECTIONS):
        for row in re.findall(r"(?m)^\| (`.*?) \|", section(operations, heading)):
            names = re.findall(r"`([a-z_]+)`", row)
            assert set(names) <= known, f"{heading}: {set(names) - known}"
