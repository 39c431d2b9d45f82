"""A tenant's demand for bound tokens, asked as a security team writes it down: in a scenario file."""

from __future__ import annotations

from pathlib import Path

import pytest

from policy.decide import load_policy
from policy.scenarios import load_scenarios, run_scenarios

QUESTIONS = """
[model.tumour]
epsilon = "3"
purposes = ["treatment"]

[[scenario]]
name = "a token that is bound to nothing"
model = "tumour"
purpose = "treatment"
expect = "deny"
by = ["token-binding-where-demanded"]
reason = "policy-forbids"
[scenario.caller]
tenant = "bound-dpop"
token_binding = "none"

[[scenario]]
name = "a certificate alone is not a proof of possession of a key"
model = "tumour"
purpose = "treatment"
expect = "deny"
by = ["token-binding-where-demanded"]
[scenario.caller]
tenant = "bound-dpop"
authn = "mtls"

[[scenario]]
name = "a token with a proof by its key"
model = "tumour"
purpose = "treatment"
expect = "permit"
by = ["clients-infer"]
[scenario.caller]
tenant = "bound-dpop"
token_binding = "dpop"
"""


@pytest.fixture
def asked(policy_dir: Path) -> Path:
    (policy_dir / "scenarios").mkdir()
    (policy_dir / "scenarios" / "binding.toml").write_text(QUESTIONS)
    return policy_dir


def failures(folder: Path) -> dict[str, bool]:
    results = run_scenarios(load_policy(folder), load_scenarios(folder).questions)
    assert len(results) == 3
    return {result.question.scenario.name: bool(result.differences) for result in results}


def test_the_shipped_policy_answers_them(asked: Path) -> None:
    assert not any(failures(asked).values())


def test_a_policy_without_the_rule_is_found_out(asked: Path) -> None:
    path = asked / "40-circumstances.cedar"
    text = path.read_text()
    start = text.index('@id("token-binding-where-demanded")')
    path.write_text(text[:start] + text[text.index("@id(", start + 1) :])
    assert list(failures(asked).values()) == [True, True, False]
