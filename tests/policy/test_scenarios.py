"""Scenario files: what they ask is what the gateway would ask, and what differs is said."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy import facts
from policy.decide import Deny, PolicySet, load_policy
from policy.errors import PolicyFileError
from policy.scenarios import Caller, Circumstances, Result, Scenario, load_scenarios, parse_scenarios, run_scenarios
from sealgate.protocol.frames import ModelFacts

MODEL = '[model.tumour]\nepsilon = "3"\npurposes = ["treatment"]\n'
PLAIN = (
    MODEL
    + """
[[scenario]]
name = "plain"
model = "tumour"
purpose = "treatment"
expect = "permit"
[scenario.caller]
tenant = "clinic"
"""
)


def run(policy_set: PolicySet, text: str, **bundles: ModelFacts) -> list[Result]:
    found = parse_scenarios({"a.toml": text.encode()}, where=Path("scenarios"), bundles=bundles)
    return run_scenarios(policy_set, found.questions)


def test_every_shipped_scenario_passes_on_the_shipped_policy(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    (folder / "scenarios").mkdir(parents=True)
    for where, target in (("", folder), ("scenarios", folder / "scenarios")):
        for item in (resources.files("policy.shipped") / where).iterdir():
            if item.name.endswith((".cedar", ".cedarschema", ".toml")):
                (target / item.name).write_bytes(item.read_bytes())
    policy_set = load_policy(folder)
    found = load_scenarios(folder)
    results = run_scenarios(policy_set, found.questions)
    assert len(results) >= 18
    assert [result.differences for result in results if result.differences] == []
    deciding = {name for result in results for name in result.answer.decision.policy_ids}
    permits = {rule.id for rule in policy_set.rules.values() if not rule.forbids}
    assert permits <= deciding, "every shipped permit is shown at work"
    # And they are of use: without its forbids, the policy fails some of them.
    for name in ("20-separation.cedar", "30-privacy.cedar", "40-circumstances.cedar"):
        (folder / name).unlink()
        assert any(result.differences for result in run_scenarios(load_policy(folder), found.questions)), name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('expect = "permit"', 'expect = "deny"'), ["answered permit, not deny"]),
        (("[scenario.caller]", 'by = ["other"]\n[scenario.caller]'), ["decided by clients-infer, not by other"]),
        (
            ("[scenario.caller]", "[scenario.obligations]\nround_digits = 5\n[scenario.caller]"),
            ["demands round_digits=6, not round_digits=5"],
        ),
        (
            ("[scenario.caller]", "[scenario.obligations]\n[scenario.caller]"),
            ["demands round_digits=6, not nothing"],
        ),
        (
            ("[scenario.caller]", '[scenario.obligations]\nround_digits = 6\nnoise_epsilon = "0.5"\n[scenario.caller]'),
            ["demands round_digits=6, not round_digits=6 noise_epsilon=0.5 noise_rows=32"],
        ),
        (
            ('expect = "permit"', 'expect = "deny"\nreason = "no-role"\nby = []'),
            ["answered permit, not deny", "decided by clients-infer, not by no policy", "the reason is none"],
        ),
        (
            ('tenant = "clinic"', 'tenant = "suspended"'),
            ["answered deny, not permit"],
        ),
    ],
)
def test_what_differs_is_said(policy_set: PolicySet, change: tuple[str, str], says: list[str]) -> None:
    assert run(policy_set, PLAIN)[0].differences == ()
    assert change[0] in PLAIN
    (result,) = run(policy_set, PLAIN.replace(*change))
    assert len(result.differences) == len(says)
    assert all(found.startswith(said) for found, said in zip(result.differences, says, strict=True))


@pytest.mark.parametrize(
    ("mistake", "reason"),
    [('tenant = "clinc"', "unknown-tenant"), ('tenant = "clinic"\nroles = []', "no-role")],
)
def test_a_denial_for_a_mistake_in_the_question_is_no_pass(policy_set: PolicySet, mistake: str, reason: str) -> None:
    text = PLAIN.replace('tenant = "clinic"', mistake).replace('"permit"', '"deny"')
    (result,) = run(policy_set, text)
    assert result.answer.decision.reason == reason
    assert len(result.differences) == 1
    assert f"denied before any policy decided ({reason})" in result.differences[0]
    assert run(policy_set, text.replace('"deny"', f'"deny"\nreason = "{reason}"'))[0].differences == ()


def test_a_denial_because_a_policy_erred_is_no_pass(policy_set: PolicySet, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("engine")

    monkeypatch.setattr(policy_set, "_ask", fail)
    (result,) = run(policy_set, PLAIN.replace('"permit"', '"deny"'))
    assert result.answer.decision.reason == "policy-error"
    assert result.differences, "the engine broke, and a scenario that expects a denial would have passed"


def test_records_that_may_be_read(policy_set: PolicySet) -> None:
    ask = '[[scenario]]\nname = "r"\naction = "query-audit"\nexpect = "permit"\nrecords_of = "%s"\n'
    who = '[scenario.caller]\ntenant = "%s"\nroles = ["auditor"]\n'
    assert run(policy_set, ask % "own" + who % "clinic")[0].differences == ()
    assert run(policy_set, ask % "all" + who % "oversight")[0].differences == ()
    assert run(policy_set, ask % "all" + who % "clinic")[0].differences == ("allows own records, not all",)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("expect", "expects", r"no setting 'expects'|set 'expect'"),
        ('"permit"', '"yes"', r"\[\[scenario\]\] number 1 expect must be one of"),
        ('name = "plain"', "", "must set 'name'"),
        ('model = "tumour"', 'model = "tumor"', r"there is no model 'tumor' \(known: tumour\)"),
        ('model = "tumour"', "", "say which model to infer"),
        ('model = "tumour"', 'action = "query-audit"\nmodel = "tumour"', "query-audit is not about a model"),
        ('expect = "permit"', 'expect = "permit"\nreason = "no-role"', "a permit has none"),
        ('expect = "permit"', 'expect = "deny"\nreason = "because"', "there is no reason 'because'"),
        ('expect = "permit"', 'expect = "deny"\nrecords_of = "own"', "are of permits"),
        ('expect = "permit"', 'expect = "permit"\ncircumstances = { hour = 24 }', r"hour"),
        ('expect = "permit"', 'expect = "permit"\ncircumstances = { wekday = 3 }', r"wekday"),
        ('tenant = "clinic"', 'tenant = "clinic"\nroles = ["root"]', r"roles"),
        ('tenant = "clinic"', 'tenant = "clinic"\nauthn = "password"', r"authn"),
        ('epsilon = "3"', "epsilon = 3", r"epsilon"),
        (
            "[[scenario]]",
            '[[scenario]]\nname = "other"\n[[scenario]]',
            r"\[\[scenario\]\] number 1 needs the table \[scenario.caller\]",
        ),
        (PLAIN, MODEL, "must set 'scenario'"),
        (PLAIN, "x" * 10, "a.toml: "),
    ],
)
def test_scenarios_refused(policy_set: PolicySet, old: str, new: str, says: str) -> None:
    assert old in PLAIN
    with pytest.raises(PolicyFileError) as caught:
        run(policy_set, PLAIN.replace(old, new))
    assert re.search(says, str(caught.value)), str(caught.value)
    assert "a.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_are_unique_over_all_files() -> None:
    with pytest.raises(PolicyFileError, match=r"b\.toml: scenario\[0\]\.name: 'plain' is also in a\.toml"):
        parse_scenarios({"a.toml": PLAIN.encode(), "b.toml": PLAIN.encode()}, where=Path("s"))


def test_a_model_may_be_a_bundle_of_the_deployment(policy_set: PolicySet, model: Callable[..., ModelFacts]) -> None:
    text = PLAIN.replace(MODEL, "")
    assert run(policy_set, text, tumour=model())[0].differences == ()
    strict = run(policy_set, text, tumour=model(epsilon_micro=9_000_000))[0]
    assert strict.answer.decision.policy_ids == ("epsilon-within-purpose",)
    stated = run(policy_set, PLAIN, tumour=model(epsilon_micro=9_000_000))[0]
    assert stated.differences == (), "what a file states counts before a bundle of that name"


@settings(max_examples=60, deadline=None)
@given(hour=st.integers(0, 23), weekday=st.integers(1, 7), mtls=st.booleans())
def test_circumstances_are_those_that_the_policy_sees(hour: int, weekday: int, mtls: bool) -> None:
    scenario = Scenario(
        name="s",
        caller=Caller(tenant="clinic", authn="jwt+mtls" if mtls else "jwt"),
        expect="deny",
        purpose="treatment",
        circumstances=Circumstances(hour=hour, weekday=weekday, sealed=False, assurance="hardware"),
    )
    seen = facts.circumstances(scenario.principal(), scenario.context())
    assert (seen["hour"], seen["weekday"], seen["mtls"]) == (hour, weekday, mtls)
    assert (seen["sealed"], seen["assurance"], seen["purpose"]) == (False, "hardware", "treatment")
    assert scenario.principal().purposes == {"treatment"}


def test_a_certificate_alone_is_bound_to_itself() -> None:
    def binding(**caller: str) -> str:
        return Scenario(name="s", caller=Caller(tenant="c", **caller), expect="deny").principal().token_binding  # type: ignore[arg-type]

    assert binding(authn="mtls") == "certificate"
    assert binding(authn="jwt+mtls") == "none"
    assert binding(authn="jwt", token_binding="dpop") == "dpop"


def test_an_erring_policy_never_passes_for_a_denial_with_another_reason(policy_dir: Path) -> None:
    """A scenario that expects a denial by a policy is not satisfied by an error, which denies too."""
    policy_set = load_policy(policy_dir)
    text = PLAIN.replace('expect = "permit"', 'expect = "deny"\nreason = "policy-forbids"')
    broken = PolicySet(
        digest=policy_set.digest,
        rules=policy_set.rules,
        tenants=policy_set.tenants,
        budgets=(),
        engine=None,  # type: ignore[arg-type]
    )
    (result,) = run(broken, text)
    assert isinstance(result.answer, Deny)
    assert result.answer.decision.reason == "policy-error"
    assert result.differences == ("the reason is policy-error, not policy-forbids",)
