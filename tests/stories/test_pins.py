"""A client that pins what serves it, against a real runtime: what is pinned right is served, wrong sends nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from sealgate import Session
from sealgate.ambient import now_us
from sealgate.errors import SealgateError
from tests.live import MODEL, Live

WRONG = "0" * 64
HOUR_US = 3600 * 1_000_000


@pytest.fixture(scope="module")
def told(live: Live) -> dict[str, str]:
    """What the runtime says of itself, as pins write it."""
    with live.session() as session:
        evidence = session.infer(MODEL, live.rows[:1]).evidence
    facts, claims = evidence.model(MODEL), evidence.claims
    on = sorted(name for name, layer in claims.layers.items() if layer.state == "on")
    return {
        # Host and worker read the same files, one after the other: who works on the checkout may save one in between.
        "code": '", "'.join(sorted({claims.measurements["code"], claims.measurements["worker.code"]})),
        "configuration": claims.measurements["configuration"],
        "policy": claims.policy_digest,
        "weights": facts.model_digest,
        "certificate": facts.certificate_digest,
        "epsilon": f"{facts.epsilon_micro // 1_000_000 + 1}",
        "layer": on[0],
        "profile": claims.profile if not claims.degraded else "dev",
    }


def heard(live: Live) -> list[str]:
    """What the runtime has put on record, but for failed authentications: those of earlier stories with this
    deployment are counted for a while and told together."""
    return [record.id for record in live.records() if record.kind != "auth.failed"]


def pinned(live: Live, folder: Path, values: dict[str, str]) -> Session:
    """A session under the deployment's trust file with every pin there is."""
    for file in live.trust.parent.iterdir() if live.trust.is_file() else live.trust.iterdir():
        if file.is_file():
            shutil.copy(file, folder / file.name)
    trust = folder / "trust.toml"
    kept = [line for line in trust.read_text().splitlines() if not line.startswith(("profiles", "max_epsilon"))]
    head = "\n".join(
        [
            *kept,
            f'profiles = ["{values["profile"]}"]',
            f'required_layers = ["{values["layer"]}"]',
            f'max_epsilon = "{values["epsilon"]}"',
            f'policy_digests = ["{values["policy"]}"]',
        ]
    )
    trust.write_text(
        f'{head}\n[measurements]\ncode = ["{values["code"]}"]\nconfiguration = ["{values["configuration"]}"]\n'
        f'[models.{MODEL}]\nmodel_digest = "{values["weights"]}"\ncertificate_digest = "{values["certificate"]}"\n'
        f'max_epsilon = "{values.get("model-epsilon", values["epsilon"])}"\n'
    )
    return Session(folder, purpose="treatment", token=live.token(), trust_env=False, timeout=60)


def test_what_is_pinned_right_is_served_with_every_check_passed(
    live: Live, told: dict[str, str], tmp_path: Path
) -> None:
    with pinned(live, tmp_path, told) as session:
        result = session.infer(MODEL, live.rows[:2])
    outcomes = {(check.name, check.outcome) for check in result.evidence.transcript}
    for name in ("profile", "pins", "policy", "measurements", "layers", "time", "nonce"):
        assert (name, "pass") in outcomes
        assert (name, "skipped") not in outcomes or name == "pins"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"code": WRONG}, "measurements"),
        ({"configuration": WRONG}, "measurements"),
        ({"policy": WRONG}, "policy"),
        ({"weights": WRONG}, "pins"),
        ({"certificate": WRONG}, "pins"),
        ({"epsilon": "0.000001"}, "pins"),
        ({"model-epsilon": "0.000001"}, "pins"),
        ({"layer": "no-such-layer"}, "layers"),
    ],
)
def test_a_pin_that_does_not_hold_is_refused_before_anything_is_sent(
    live: Live, told: dict[str, str], tmp_path: Path, changes: dict[str, str], code: str
) -> None:
    before = heard(live)
    with pinned(live, tmp_path, told | changes) as session, pytest.raises(SealgateError) as failure:
        session.infer(MODEL, live.rows[:2])
    assert failure.value.code == code
    assert heard(live) == before  # the runtime never heard of it


def test_expired_evidence_is_refused_before_each_request(live: Live) -> None:
    """A client whose clock is past the evidence's end asks anew; what comes has expired by its clock too."""
    moment = {"offset": 0}
    with live.session(clock=lambda: now_us() + moment["offset"]) as session:
        first: Any = session.infer(MODEL, live.rows[:1])
        assert first.evidence.expires_us <= now_us() + HOUR_US
        moment["offset"] = HOUR_US + 60 * 1_000_000
        before = heard(live)
        with pytest.raises(SealgateError) as failure:
            session.infer(MODEL, live.rows[:1])
        assert failure.value.code == "time"
        assert heard(live) == before
        moment["offset"] = 0
        session.infer(MODEL, live.rows[:1])
