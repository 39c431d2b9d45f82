"""The strictest demand of every permit that applies holds."""

from __future__ import annotations

from importlib import resources

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.decide import Deny, Permit, load_policy
from policy.entities import Action, Role
from policy.obligations import merge
from sealgate.protocol.frames import Obligations

reducing = {
    "round_digits": st.none() | st.integers(0, 15),
    "top_k": st.none() | st.integers(1, 100),
    "hide_scores": st.booleans(),
    "receipt_required": st.booleans(),
    "single_use": st.booleans(),
}
demands = st.builds(Obligations, **reducing) | st.builds(
    Obligations, **reducing, noise_epsilon_micro=st.integers(1, 10**8), noise_rows=st.integers(1, 4096)
)


def _at_least_as_strict(left: Obligations, right: Obligations) -> bool:
    digits = right.round_digits is None or (left.round_digits is not None and left.round_digits <= right.round_digits)
    scores = right.top_k is None or (left.top_k is not None and left.top_k <= right.top_k)
    noise = not right.noise_epsilon_micro or (
        0 < left.noise_epsilon_micro <= right.noise_epsilon_micro and 0 < left.noise_rows <= right.noise_rows
    )
    flags = ("hide_scores", "receipt_required", "single_use")
    return digits and scores and noise and all(getattr(left, flag) >= getattr(right, flag) for flag in flags)


@settings(max_examples=200)
@given(st.lists(demands, max_size=5), st.randoms())
def test_merge_is_the_least_that_satisfies_all(items, random):
    merged = merge(items)
    assert all(_at_least_as_strict(merged, item) for item in items)
    assert merged.round_digits in {None, *(item.round_digits for item in items)}
    assert merged.top_k in {None, *(item.top_k for item in items)}
    assert merged.noise_epsilon_micro in {0, *(item.noise_epsilon_micro for item in items)}
    assert merged.noise_rows in {0, *(item.noise_rows for item in items)}
    assert bool(merged.noise_rows) == bool(merged.noise_epsilon_micro)
    for flag in ("hide_scores", "receipt_required", "single_use"):
        assert getattr(merged, flag) == any(getattr(item, flag) for item in items)
    shuffled = list(items)
    random.shuffle(shuffled)
    assert merge(shuffled) == merged
    assert merge([merged, *items]) == merged


def test_two_permits_for_one_request(policy_dir, principal, model, context):
    scope = 'permit (principal is Client, action == Action::"infer", resource is Model)'
    (policy_dir / "own.cedar").write_text(
        f'@id("few") @round_digits("2") @top_k("5") {scope};\n'
        f'@id("labels") @hide_scores("true") @top_k("7") {scope} when {{ resource.sensitivity != "public" }};\n'
    )
    policy_set = load_policy(policy_dir)
    answer = policy_set.decide(principal(), Action.INFER, model(), context())
    assert isinstance(answer, Permit)
    assert answer.decision.policy_ids == ("clients-infer", "few", "labels")
    assert answer.decision.obligations == Obligations(round_digits=2, top_k=5, hide_scores=True)
    public = policy_set.decide(principal(), Action.INFER, model(sensitivity="public"), context())
    assert public.decision.obligations == Obligations(round_digits=2, top_k=5)


def test_obligations_of_every_role_hold(policy_dir, principal, model, context):
    (policy_dir / "own.cedar").write_text(
        '@id("own") @top_k("3") permit (principal is Auditor, action == Action::"read-model", resource is Model);'
    )
    policy_set = load_policy(policy_dir)
    answer = policy_set.decide(principal(Role.CLIENT, Role.AUDITOR), Action.READ_MODEL, model(), context())
    assert answer.decision.obligations == Obligations(top_k=3)


def test_more_determining_policies_than_a_record_has_room_for(policy_dir, principal, model, context):
    scope = 'permit (principal is Client, action == Action::"infer", resource is Model);'
    text = "".join(f'@id("p{number:03}") @top_k("{number + 1}") {scope}\n' for number in reversed(range(100)))
    (policy_dir / "own.cedar").write_text(text)
    answer = load_policy(policy_dir).decide(principal(), Action.INFER, model(), context())
    assert len(answer.decision.policy_ids) == 32
    assert answer.decision.policy_ids[-1] == "and-more"
    assert answer.decision.obligations.top_k == 1  # those that are not named oblige all the same


def test_noise_receipts_and_single_use_as_annotations(policy_dir, principal, model, context):
    scope = 'permit (principal is Client, action == Action::"infer", resource is Model);'
    (policy_dir / "own.cedar").write_text(
        f'@id("noisy") @noise_epsilon("0.5") @receipt_required("true") {scope}\n'
        f'@id("noisier") @noise_epsilon("0.25") @noise_rows("100") {scope}\n'
        f'@id("alone") @single_use("true") {scope}\n'
    )
    answer = load_policy(policy_dir).decide(principal(), Action.INFER, model(), context())
    assert answer.decision.obligations == Obligations(
        round_digits=6, noise_epsilon_micro=250_000, noise_rows=32, receipt_required=True, single_use=True
    )


def test_the_example_of_explanations(policy_dir, principal, model, context):
    assert load_policy(policy_dir).decide(principal(), Action.EXPLAIN, model(), context()).decision.reason == (
        "no-policy-permits"
    )
    example = resources.files("policy.shipped.examples") / "explanations.cedar"
    (policy_dir / "explanations.cedar").write_bytes(example.read_bytes())
    policy_set = load_policy(policy_dir)
    given = policy_set.decide(principal(), Action.EXPLAIN, model(sensitivity="personal"), context())
    assert (given.decision.policy_ids, given.decision.obligations) == (
        ("clients-explain",),
        Obligations(round_digits=6),
    )
    special = policy_set.decide(principal(), Action.EXPLAIN, model(sensitivity="special-category"), context())
    assert isinstance(special, Deny)
    auditor = policy_set.decide(principal(Role.AUDITOR), Action.EXPLAIN, model(), context())
    assert isinstance(auditor, Deny)


def test_a_schema_from_before_explanations_loads_and_permits_none(policy_dir, principal, model, context):
    for path in (*policy_dir.glob("*.cedar"), policy_dir / "schema.cedarschema"):
        older = path.read_text().replace(' Action::"explain",', "").replace("infer, explain,", "infer,")
        path.write_text(older)
    assert "explain" not in (policy_dir / "schema.cedarschema").read_text()
    policy_set = load_policy(policy_dir)
    assert isinstance(policy_set.decide(principal(), Action.INFER, model(), context()), Permit)
    answer = policy_set.decide(principal(), Action.EXPLAIN, model(), context())
    assert isinstance(answer, Deny)
    assert answer.decision.reason == "policy-error"


def test_the_example_of_private_answers(policy_dir, principal, model, context):
    example = resources.files("policy.shipped.examples") / "private-answers.cedar"
    (policy_dir / "private-answers.cedar").write_bytes(example.read_bytes())
    policy_set = load_policy(policy_dir)
    special = policy_set.decide(principal(), Action.INFER, model(sensitivity="special-category"), context())
    assert special.decision.policy_ids == ("clients-infer", "private-answers")
    assert special.decision.obligations == Obligations(
        round_digits=6, noise_epsilon_micro=500_000, noise_rows=32, receipt_required=True
    )
    personal = policy_set.decide(principal(), Action.INFER, model(sensitivity="personal"), context())
    assert personal.decision.obligations == Obligations(round_digits=6)
