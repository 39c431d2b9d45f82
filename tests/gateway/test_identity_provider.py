"""A gateway with an identity provider over HTTPS: starts without it, follows its keys, and refuses what is revoked."""

from __future__ import annotations

import json
import threading

import pytest

from sealgate.ambient import now_us
from sealgate.cli import main
from sealgate.protocol import frames
from tests.gateway.conftest import post_sealed
from tests.gateway.issuer_server import IssuerServer, Signer


@pytest.fixture
def provider(tmp_path):
    server = IssuerServer(tmp_path)
    yield server
    server.close()


def toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{name}" = "{ours}"' for name, ours in value.items()) + " }"
    return json.dumps(value)


def trust(deployment, server, **more):
    """Make the provider the deployment's only issuer."""
    ca = deployment.tokens / "provider-ca.pem"
    ca.write_bytes(server.ca.read_bytes())
    lines = "".join(f"{name} = {toml(value)}\n" for name, value in more.items())
    (deployment.tokens / "issuers.toml").write_text(
        f'[[issuer]]\nname = "{server.url}"\ndiscovery = true\nca = "provider-ca.pem"\n{lines}'
    )


def ready(gateway):
    return gateway.client().get("/health/ready").json()


def test_it_starts_while_the_provider_is_away_and_says_so(deployment, run_gateway, provider):
    trust(deployment, provider)
    signer = Signer("one")
    gateway = run_gateway()
    client = gateway.client(token=signer.token(iss=provider.url))
    gateway.until(lambda: provider.asked)  # answered 404: there is nothing there yet
    assert post_sealed(client).status_code == 401
    assert gateway.host.heard(frames.AuthFailed)[0].reason == "keys-unavailable"
    facts = ready(gateway)
    assert (facts["ready"], facts["issuers"]) == (True, [f"issuer {provider.url}: no keys yet"])
    details = {line["detail"] for line in gateway.events("issuer-keys")}
    assert details == {f"issuer {provider.url}: the metadata's place answered 404"}

    provider.describe()
    provider.publish(signer)
    gateway.until(lambda: post_sealed(client).status_code == 200)  # the next try comes by itself
    assert "issuers" not in ready(gateway)


def test_rotation_under_load_drops_no_request(deployment, run_gateway, provider):
    trust(deployment, provider, unknown_key_cooldown_s=1)
    provider.describe()
    old, new = Signer("old"), Signer("new")
    provider.publish(old)
    gateway = run_gateway()
    rotated, statuses = threading.Event(), []

    def call():
        client = gateway.client()
        for _ in range(60):
            signer = new if rotated.is_set() else old
            token = signer.token(iss=provider.url)
            statuses.append(post_sealed(client, Authorization=f"Bearer {token}").status_code)

    gateway.until(lambda: ready(gateway).get("issuers") is None)
    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    gateway.until(lambda: len(statuses) > 60)
    provider.publish(old, new)
    rotated.set()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 240
    assert provider.asked.count("/jwks") == 2


def test_a_withdrawn_key_ends_the_tokens_that_it_signed(deployment, run_gateway, provider):
    trust(deployment, provider)
    provider.describe()
    old, new = Signer("old"), Signer("new")
    provider.publish(old)
    gateway = run_gateway()
    remembered = gateway.client(token=old.token(iss=provider.url))
    assert post_sealed(remembered).status_code == 200
    provider.publish(new)
    gateway.clock.later_s += 31  # the cool-down of an unknown key
    assert post_sealed(gateway.client(token=new.token(iss=provider.url))).status_code == 200
    assert post_sealed(remembered).status_code == 401
    assert gateway.host.heard(frames.AuthFailed)[-1].reason == "key-unknown"


def test_names_of_the_provider_become_ours(deployment, run_gateway, provider):
    trust(
        deployment,
        provider,
        tenant_claim="org.id",
        tenant_map={"4711": "clinic"},
        roles_claim="scope",
        role_map={"infer": "client"},
        purposes_claim="uses",
        purpose_map={"care": "treatment"},
        audience="sealgate-api",
    )
    provider.describe()
    signer = Signer("one")
    provider.publish(signer)
    gateway = run_gateway()
    claims = {"aud": "sealgate-api", "org": {"id": "4711"}, "scope": "openid infer", "uses": ["care"]}
    assert post_sealed(gateway.client(token=signer.token(iss=provider.url, **claims))).status_code == 200
    frame = gateway.host.heard(frames.Submit)[0]
    assert (frame.caller.tenant, frame.caller.subject) == ("clinic", "app")
    for wrong in ({"aud": "https://localhost:8443"}, {"org": {"id": "4712"}}):
        assert post_sealed(gateway.client(token=signer.token(iss=provider.url, **claims | wrong))).status_code == 401


def test_a_token_is_revoked_and_restored_on_an_open_connection(deployment, run_gateway, tmp_path, capsys):
    gateway = run_gateway()
    token = gateway.token()
    client, other = gateway.client(token=token), gateway.client(token=gateway.token(subject="bob"))
    assert post_sealed(client).status_code == post_sealed(other).status_code == 200
    file = tmp_path / "token"
    file.write_text(token)
    state = str(deployment.root)

    assert main(["token", "revoke", state, "--token-file", str(file)]) == 0
    refused = post_sealed(client)
    assert (refused.status_code, post_sealed(other).status_code) == (401, 200)
    assert gateway.host.heard(frames.AuthFailed)[-1].reason == "token-revoked"
    assert main(["token", "restore", state, "--token-file", str(file)]) == 0
    assert post_sealed(client).status_code == 200

    assert main(["token", "revoke", state, "--subject", "bob", "--tenant", "clinic", "--issued-before", "now"]) == 0
    assert (post_sealed(client).status_code, post_sealed(other).status_code) == (200, 401)
    later = gateway.client(token=gateway.token(subject="bob", now=now_us() + 2_000_000))
    assert post_sealed(later).status_code == 200

    (deployment.tokens / "revoked.toml").write_text("[[revoked")
    assert post_sealed(client).status_code == 401
    assert gateway.host.heard(frames.AuthFailed, 3)[-1].reason == "revocations-unreadable"
    assert post_sealed(client).content == refused.content
    assert token not in "".join(capsys.readouterr())
