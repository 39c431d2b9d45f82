"""A remembered answer is always the answer that would be given now."""

from __future__ import annotations

import threading

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy import decide as module
from policy.decide import Deny, Permit, load_policy
from policy.entities import Action, Context, Principal, Role
from sealgate.protocol.frames import ModelFacts

principals = st.builds(
    Principal,
    tenant=st.sampled_from(["clinic", "careful", "suspended", "hardened", "oversight", "nobody"]),
    subject=st.sampled_from(["a", "b"]),
    roles=st.frozensets(st.sampled_from(list(Role))),
    purposes=st.frozensets(st.sampled_from(["treatment", "billing"])),
    authn=st.sampled_from(["jwt", "mtls"]),
    mtls=st.booleans(),
    credential_binding=st.just(""),
    expires_us=st.integers(0, 2),
)
models = st.none() | st.builds(
    ModelFacts,
    name=st.sampled_from(["m", "n"]),
    version=st.just("1"),
    model_digest=st.just(""),
    certificate_digest=st.just(""),
    epsilon_micro=st.sampled_from([1_000_000, 3_000_000, 9_000_000]),
    delta=st.just("0"),
    privacy_unit=st.just("example"),
    sensitivity=st.just("personal"),
    purposes=st.sampled_from([("treatment",), ("billing", "treatment"), ()]),
)
contexts = st.builds(
    Context,
    purpose=st.sampled_from(["treatment", "billing", "other"]),
    sealed=st.booleans(),
    assurance=st.sampled_from(["software", "hardware"]),
    now_us=st.integers(0, 200).map(lambda hours: hours * 3_600_000_000),
)
questions = st.tuples(principals, st.sampled_from(list(Action)), models, contexts)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(questions, min_size=2, max_size=20))
def test_same_answers_with_and_without(policy_set, items):
    for item in items * 2:
        assert policy_set.decide(*item) == policy_set._decide(*item)


def test_a_remembered_answer_is_the_same_object(policy_set, principal, model, context):
    first = policy_set.decide(principal(), Action.INFER, model(), context())
    again = policy_set.decide(
        principal(credential_binding="other", expires_us=1), Action.INFER, model(), context(now_us=context().now_us + 1)
    )
    assert again is first


def test_every_fact_that_matters_is_part_of_the_key(policy_set, principal, model, context):
    """Warm the cache with an allowed question, then change one fact at a time to one that is refused."""
    assert isinstance(policy_set.decide(principal(), Action.INFER, model(), context()), Permit)
    for who, what, when in (
        ({"tenant": "careful"}, {}, {}),
        ({"roles": frozenset({Role.AUDITOR})}, {}, {}),
        ({"purposes": frozenset()}, {}, {}),
        ({}, {"epsilon_micro": 9_000_000}, {}),
        ({}, {"purposes": ()}, {}),
        ({}, {}, {"purpose": "billing"}),
        ({}, {}, {"sealed": False}),
    ):
        answer = policy_set.decide(principal(**who), Action.INFER, model(**what), context(**when))
        assert isinstance(answer, Deny), (who, what, when)
    careful = principal(tenant="careful", mtls=True)
    assert isinstance(policy_set.decide(careful, Action.INFER, model(), context()), Permit)
    hardened = principal(tenant="hardened")
    assert isinstance(policy_set.decide(hardened, Action.INFER, model(), context(assurance="hardware")), Permit)
    assert isinstance(policy_set.decide(hardened, Action.INFER, model(), context()), Deny)


def test_subject_and_authn_and_hour_are_part_of_the_key(policy_dir, principal, model, context):
    (policy_dir / "own.cedar").write_text(
        '@id("who") forbid (principal is Client, action, resource) when { principal.subject == "b" };\n'
        '@id("how") forbid (principal is Client, action, resource) when { principal.authn == "mtls" };\n'
        '@id("when") forbid (principal is Client, action, resource) when { context.hour == 11 };\n'
    )
    policy_set = load_policy(policy_dir)
    assert isinstance(policy_set.decide(principal(), Action.INFER, model(), context()), Permit)
    assert policy_set.decide(principal(subject="b"), Action.INFER, model(), context()).decision.policy_ids == ("who",)
    assert policy_set.decide(principal(authn="mtls"), Action.INFER, model(), context()).decision.policy_ids == ("how",)
    later = context(now_us=context().now_us + 3_600_000_000)
    assert policy_set.decide(principal(), Action.INFER, model(), later).decision.policy_ids == ("when",)


def test_a_new_version_of_a_model_is_a_new_question(policy_set, principal, model, context):
    first = policy_set.decide(principal(), Action.INFER, model(), context())
    changed = msgspec.structs.replace(model(), certificate_digest="cc")
    assert policy_set.decide(principal(), Action.INFER, changed, context()) is not first


def test_a_changed_policy_is_a_new_set_with_nothing_remembered(policy_dir, principal, model, context):
    before = load_policy(policy_dir)
    assert isinstance(before.decide(principal(), Action.INFER, model(), context()), Permit)
    tenants = policy_dir / "tenants.toml"
    tenants.write_text(tenants.read_text().replace('max_epsilon = "8"', 'max_epsilon = "2"', 1))
    after = load_policy(policy_dir)
    answer = after.decide(principal(), Action.INFER, model(), context())
    assert isinstance(answer, Deny)
    assert answer.decision.policy_digest == after.digest != before.digest


def test_bounded_and_least_recently_used_goes_first(policy_set, principal, model, context, monkeypatch):
    monkeypatch.setattr(module, "MAX_CACHED_DECISIONS", 4)
    answers = [policy_set.decide(principal(subject=f"s{n}"), Action.INFER, model(), context()) for n in range(4)]
    assert policy_set.decide(principal(subject="s0"), Action.INFER, model(), context()) is answers[0]
    policy_set.decide(principal(subject="s4"), Action.INFER, model(), context())
    assert len(policy_set._cache) == 4
    assert policy_set.decide(principal(subject="s0"), Action.INFER, model(), context()) is answers[0]
    assert policy_set.decide(principal(subject="s1"), Action.INFER, model(), context()) is not answers[1]


@pytest.mark.parametrize("threads", [8])
def test_threads_get_their_own_answers(policy_set, principal, model, context, threads):
    wrong: list[object] = []
    start = threading.Barrier(threads)

    def ask(number: int) -> None:
        start.wait()
        for turn in range(40):
            allowed = (number + turn) % 2 == 0
            who = principal(subject=f"s{turn % 7}", purposes=frozenset({"treatment"} if allowed else ()))
            answer = policy_set.decide(who, Action.INFER, model(), context())
            if isinstance(answer, Permit) is not allowed:
                wrong.append((number, turn, answer))

    running = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert wrong == []
