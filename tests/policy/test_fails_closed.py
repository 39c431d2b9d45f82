"""The known ways in which Cedar answers Allow although a `forbid` erred. Each is first shown to do so without our
wrapper, on the same inputs: otherwise the refusal would prove nothing."""

from __future__ import annotations

import json
from typing import Any

import cedarpy
import pytest

from policy.cedar import Engine
from policy.decide import Deny, Permit, PolicySet, load_policy
from policy.entities import Action, Role
from policy.errors import PolicyFileError

SCHEMA = """
entity U = { level: Long, flag?: Bool };
entity T;
action go appliesTo { principal: U, resource: T, context: {} };
"""
PERMIT = '@id("yes") permit (principal, action, resource);'
REQUEST = {
    "principal": {"type": "U", "id": "u"},
    "action": {"type": "Action", "id": "go"},
    "resource": {"type": "T", "id": "t"},
    "context": {},
}
HOLES: dict[str, tuple[str, dict[str, Any], bool]] = {
    # forbid's condition, the principal's attributes, whether a schema is in play for Cedar alone
    "missing attribute": ("principal.locked", {"level": 1}, False),
    "wrong type": ('principal.level > 3 && principal.level like "x"', {"level": "9"}, False),
    "integer overflow": ("principal.level + 1 > 3", {"level": 2**63 - 1}, True),
    "negation overflow": ("-principal.level > 3", {"level": -(2**63)}, True),
    "multiplication overflow": ("principal.level * 2 > 3", {"level": 2**62}, True),
    "optional attribute": ("principal.flag", {"level": 1}, True),
    "date overflow": (
        'datetime("2026-01-01").offset(duration("9223372036854775807ms")) > datetime("2026-01-01")',
        {"level": 1},
        True,
    ),
    "malformed decimal": ('decimal("1.00001").lessThan(decimal("2.0"))', {"level": 1}, True),
    "missing entity": ('U::"nobody".level > 3 || principal.level > 3', {"level": 9}, True),
}


def _entities(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"uid": {"type": "U", "id": "u"}, "attrs": attributes, "parents": []}]


def _policies(text: str) -> dict[str, Any]:
    document = json.loads(cedarpy.policies_to_json_str(text))["staticPolicies"]
    return {policy["annotations"]["id"]: policy for policy in document.values()}


@pytest.mark.parametrize("hole", HOLES)
def test_cedar_alone_allows_and_we_do_not(hole):
    condition, attributes, with_schema = HOLES[hole]
    text = f'{PERMIT} @id("no") forbid (principal, action, resource) when {{ {condition} }};'
    alone = cedarpy.is_authorized(REQUEST, text, _entities(attributes), SCHEMA if with_schema else None)
    assert alone.allowed, "the hole is gone: this test no longer shows anything"
    assert alone.diagnostics.errors

    verdict = Engine(schema=SCHEMA, policies=_policies(text), entities=[]).ask([REQUEST], _entities(attributes))[0]
    assert not verdict.allowed
    assert verdict.errors


@pytest.mark.parametrize("hole", [name for name, case in HOLES.items() if case[2]])
def test_an_error_names_the_policy_that_erred(hole):
    condition, attributes, _ = HOLES[hole]
    text = f'{PERMIT} @id("no") forbid (principal, action, resource) when {{ {condition} }};'
    verdict = Engine(schema=SCHEMA, policies=_policies(text), entities=[]).ask([REQUEST], _entities(attributes))[0]
    assert verdict.ids == ("no",)


def test_the_same_question_without_the_hole_is_allowed():
    """So the refusals above come from the errors, not from the wrapper refusing everything."""
    text = f'{PERMIT} @id("no") forbid (principal, action, resource) when {{ principal.level + 1 > 3 }};'
    engine = Engine(schema=SCHEMA, policies=_policies(text), entities=[])
    verdicts = engine.ask([REQUEST, REQUEST], _entities({"level": 1}))
    assert [(verdict.allowed, verdict.ids, verdict.errors) for verdict in verdicts] == [(True, ("yes",), ())] * 2
    assert engine.ask([REQUEST], _entities({"level": 3}))[0].ids == ("no",)


@pytest.mark.parametrize(
    ("request_change", "entities"),
    [
        ({"principal": {"type": "Ghost", "id": "u"}}, _entities({"level": 1})),
        ({"action": {"type": "Action", "id": "fly"}}, _entities({"level": 1})),
        ({"context": {"extra": 1}}, _entities({"level": 1})),
        ({"context": "{"}, _entities({"level": 1})),
        ({"principal": 5}, _entities({"level": 1})),
        ({}, _entities({})),
        ({}, _entities({"level": "1"})),
        ({}, _entities({"level": 2**63})),
        ({}, _entities({"level": 1.5})),
        ({}, _entities({"level": 1, "unknown": 1})),
        ({}, _entities({"level": 1}) + _entities({"level": 2})),
        ({}, [{"uid": "nonsense"}]),
        ({}, [object()]),
    ],
)
def test_questions_that_do_not_fit_the_schema_are_refused_without_an_exception(request_change, entities):
    verdict = Engine(schema=SCHEMA, policies=_policies(PERMIT), entities=[]).ask(
        [{**REQUEST, **request_change}], entities
    )[0]
    assert not verdict.allowed
    assert verdict.errors


def test_one_bad_question_of_two_never_turns_into_two_answers_of_one():
    engine = Engine(schema=SCHEMA, policies=_policies(PERMIT), entities=[])
    bad = {**REQUEST, "context": "{"}
    verdicts = engine.ask([REQUEST, bad], _entities({"level": 1}))
    assert len(verdicts) == 2
    assert verdicts[1].errors


# The same, through the whole of `decide` -----------------------------------------------------------------------------


def test_arithmetic_does_not_load(policy_dir):
    (policy_dir / "50-own.cedar").write_text(
        '@id("sum") forbid (principal is Client, action == Action::"infer", resource is Model)\n'
        "when { resource.epsilon_micro + 1 > 9223372036854775807 };"
    )
    with pytest.raises(PolicyFileError, match=r'50-own\.cedar: policy "sum": arithmetic may overflow'):
        load_policy(policy_dir)


def test_overflow_in_a_set_that_got_past_the_loader_is_still_refused(policy_set, principal, model, context):
    """Were the check at load ever to miss one: the permit is there, the forbid overflows, and the answer is no."""
    policies = _policies(
        '@id("yes") permit (principal, action, resource);'
        '@id("sum") forbid (principal is Client, action == Action::"infer", resource is Model)'
        "when { resource.epsilon_micro * 4611686018427387904 > 5 };"
    )
    open_set = _with_engine(policy_set, policies)
    answer = open_set.decide(principal(), Action.INFER, model(), context())
    assert isinstance(answer, Deny)
    assert answer.decision.reason == "policy-error"
    assert answer.decision.policy_ids == ("sum",)
    assert answer.errors


def _with_engine(policy_set: PolicySet, policies: dict[str, Any]) -> PolicySet:
    from importlib import resources

    from policy.facts import standing_entities

    schema = (resources.files("policy.shipped") / "schema.cedarschema").read_text()
    engine = Engine(schema=schema, policies=policies, entities=standing_entities(policy_set.tenants))
    return PolicySet(
        digest=policy_set.digest, rules=policy_set.rules, tenants=policy_set.tenants, budgets=(), engine=engine
    )


@pytest.mark.parametrize(
    "facts",
    [{"epsilon_micro": 2**63}, {"epsilon_micro": 1.5}, {"delta": 5}, {"purposes": ("treatment", 7)}, {"name": None}],
)
def test_model_facts_of_a_wrong_type_are_refused(policy_set, principal, model, context, facts):
    answer = policy_set.decide(principal(), Action.INFER, model(**facts), context())
    assert isinstance(answer, Deny)
    assert answer.decision.reason == "policy-error"
    assert isinstance(policy_set.decide(principal(), Action.INFER, model(), context()), Permit)


@pytest.mark.parametrize("circumstances", [{"sealed": "yes"}, {"sealed": None}, {"purpose": 5}, {"assurance": None}])
def test_circumstances_of_a_wrong_type_are_refused(policy_set, principal, model, context, circumstances):
    answer = policy_set.decide(principal(), Action.INFER, model(), context(**circumstances))
    assert isinstance(answer, Deny)
    assert answer.decision.reason == "policy-error"


def test_an_engine_that_throws_is_a_refusal_and_is_asked_again(policy_set, principal, model, context, monkeypatch):
    """And an error is not remembered: once it is over, the same question is answered."""

    def broken(*_arguments, **_named):
        raise RuntimeError("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(cedarpy, "is_authorized_batch", broken)
        answer = policy_set.decide(principal(), Action.INFER, model(), context())
        assert isinstance(answer, Deny)
        assert answer.decision.reason == "policy-error"
    assert isinstance(policy_set.decide(principal(), Action.INFER, model(), context()), Permit)


def test_an_engine_that_drops_an_answer_is_a_refusal(policy_set, principal, model, context, monkeypatch):
    """A client who is also an auditor may not infer; were only the client's answer to come back, it would be a yes."""
    ask = cedarpy.is_authorized_batch
    both = principal(Role.CLIENT, Role.AUDITOR)
    for kept in (slice(1, 2), slice(0, 1), slice(0, 0)):
        monkeypatch.setattr(cedarpy, "is_authorized_batch", lambda *given, kept=kept: ask(*given)[kept])
        answer = policy_set.decide(both, Action.INFER, model(), context())
        assert isinstance(answer, Deny)
        assert answer.decision.reason == "policy-error"


def test_an_error_about_all_records_is_not_passed_over_for_the_own_ones(policy_set, principal, context):
    policies = _policies(
        '@id("yes") permit (principal, action, resource);'
        '@id("err") forbid (principal, action, resource is Log) when { resource.tenant == Tenant::"oversight" };'
    )
    answer = _with_engine(policy_set, policies).decide(principal(Role.AUDITOR), Action.QUERY_AUDIT, None, context())
    assert isinstance(answer, Deny)
    assert (answer.decision.reason, answer.decision.policy_ids) == ("policy-error", ("err",))
