"""Every shipped rule: one case that it refuses, and beside it the same case made right."""

from __future__ import annotations

import shutil
from importlib import resources
from typing import get_args, get_type_hints

import msgspec
import pytest

from policy import tenants
from policy.decide import Deny, Permit, load_policy
from policy.entities import Action, Role
from policy.errors import PolicyFileError
from policy.scenarios import Circumstances
from sealgate.evidence.verify import GRADES
from sealgate.protocol.frames import Obligations

A, R = Action, Role

# (what is special, roles, principal, action, model, context, the policies that must determine the denial)
DENIED = [
    (
        "purpose not in credential",
        [R.CLIENT],
        {"purposes": frozenset()},
        A.INFER,
        {},
        {},
        ["purpose-granted-to-caller"],
    ),
    (
        "purpose not the tenant's",
        [R.CLIENT],
        {"purposes": frozenset({"marketing"})},
        A.INFER,
        {"purposes": ("marketing",)},
        {"purpose": "marketing"},
        ["epsilon-within-purpose", "purpose-allowed-for-tenant"],
    ),
    ("purpose not the model's", [R.CLIENT], {}, A.INFER, {"purposes": ("billing",)}, {}, ["purpose-of-model"]),
    ("epsilon above", [R.CLIENT], {}, A.INFER, {"epsilon_micro": 8_000_001}, {}, ["epsilon-within-purpose"]),
    (
        "epsilon above this purpose's",
        [R.CLIENT],
        {"purposes": frozenset({"billing"})},
        A.INFER,
        {"epsilon_micro": 1_000_001},
        {"purpose": "billing"},
        ["epsilon-within-purpose"],
    ),
    ("auditor infers", [R.AUDITOR], {}, A.INFER, {}, {}, ["auditors-never-infer"]),
    ("auditor who is a client infers", [R.AUDITOR, R.CLIENT], {}, A.INFER, {}, {}, ["auditors-never-infer"]),
    ("operator infers", [R.OPERATOR], {}, A.INFER, {}, {}, ["operators-never-read-payload-derived-data"]),
    (
        "operator who is a client infers",
        [R.OPERATOR, R.CLIENT],
        {},
        A.INFER,
        {},
        {},
        ["operators-never-read-payload-derived-data"],
    ),
    ("operator reads records", [R.OPERATOR], {}, A.QUERY_AUDIT, {}, {}, ["operators-never-read-payload-derived-data"]),
    (
        "operator who is an auditor exports records",
        [R.OPERATOR, R.AUDITOR],
        {"tenant": "oversight"},
        A.EXPORT_AUDIT,
        {},
        {},
        ["operators-never-read-payload-derived-data"],
    ),
    ("not sealed", [R.CLIENT], {}, A.INFER, {}, {"sealed": False}, ["sealed-always"]),
    ("not sealed read-model", [R.AUDITOR], {}, A.READ_MODEL, {}, {"sealed": False}, ["sealed-always"]),
    ("suspended", [R.CLIENT], {"tenant": "suspended"}, A.INFER, {}, {}, ["tenant-not-suspended"]),
    ("suspended auditor", [R.AUDITOR], {"tenant": "suspended"}, A.QUERY_AUDIT, {}, {}, ["tenant-not-suspended"]),
    ("no mTLS", [R.CLIENT], {"tenant": "careful"}, A.INFER, {}, {}, ["mtls-where-demanded"]),
    ("no mTLS, auditor", [R.AUDITOR], {"tenant": "careful"}, A.QUERY_AUDIT, {}, {}, ["mtls-where-demanded"]),
    ("token not bound", [R.CLIENT], {"tenant": "bound-any"}, A.INFER, {}, {}, ["token-binding-where-demanded"]),
    ("software evidence", [R.CLIENT], {"tenant": "hardened"}, A.INFER, {}, {}, ["evidence-floor"]),
    ("TPM is no hardware", [R.CLIENT], {"tenant": "hardened"}, A.INFER, {}, {"assurance": "tpm"}, ["evidence-floor"]),
    ("software is no TPM", [R.CLIENT], {"tenant": "measured"}, A.INFER, {}, {}, ["evidence-floor"]),
    (
        "nobody vouches",
        [R.CLIENT],
        {"tenant": "measured"},
        A.INFER,
        {},
        {"assurance": "self-asserted"},
        ["evidence-floor"],
    ),
    (
        "unknown assurance",
        [R.CLIENT],
        {"tenant": "hardened"},
        A.READ_MODEL,
        {},
        {"assurance": "self-asserted"},
        ["evidence-floor"],
    ),
    ("client reads records", [R.CLIENT], {}, A.QUERY_AUDIT, {}, {}, []),
    ("client exports records", [R.CLIENT], {}, A.EXPORT_AUDIT, {}, {}, []),
    (
        "read-model, purpose not carried",
        [R.CLIENT],
        {"purposes": frozenset()},
        A.READ_MODEL,
        {},
        {},
        ["purpose-granted-to-caller"],
    ),
    (
        "empty purpose",
        [R.CLIENT],
        {"purposes": frozenset({""})},
        A.READ_MODEL,
        {},
        {"purpose": ""},
        ["purpose-allowed-for-tenant"],
    ),
]

ALLOWED = [
    ("client infers", [R.CLIENT], {}, A.INFER, {}, {}, ["clients-infer"]),
    ("epsilon exactly at the limit", [R.CLIENT], {}, A.INFER, {"epsilon_micro": 8_000_000}, {}, ["clients-infer"]),
    (
        "this purpose's epsilon",
        [R.CLIENT],
        {"purposes": frozenset({"billing"})},
        A.INFER,
        {"epsilon_micro": 1_000_000},
        {"purpose": "billing"},
        ["clients-infer"],
    ),
    ("mTLS where demanded", [R.CLIENT], {"tenant": "careful", "mtls": True}, A.INFER, {}, {}, ["clients-infer"]),
    ("hardware", [R.CLIENT], {"tenant": "hardened"}, A.INFER, {}, {"assurance": "hardware"}, ["clients-infer"]),
    ("TPM", [R.CLIENT], {"tenant": "measured"}, A.INFER, {}, {"assurance": "tpm"}, ["clients-infer"]),
    ("more than a TPM", [R.CLIENT], {"tenant": "measured"}, A.INFER, {}, {"assurance": "hardware"}, ["clients-infer"]),
    ("client reads a model", [R.CLIENT], {}, A.READ_MODEL, {}, {}, ["clients-read-models"]),
    ("read-model above epsilon", [R.CLIENT], {}, A.READ_MODEL, {"epsilon_micro": 9**12}, {}, ["clients-read-models"]),
    ("auditor reads a model", [R.AUDITOR], {"purposes": frozenset()}, A.READ_MODEL, {}, {}, ["overseers-read-models"]),
    (
        "operator reads a model",
        [R.OPERATOR],
        {"purposes": frozenset()},
        A.READ_MODEL,
        {},
        {},
        ["overseers-read-models"],
    ),
    (
        "auditor, own records",
        [R.AUDITOR],
        {},
        A.QUERY_AUDIT,
        {},
        {"purpose": "", "sealed": False},
        ["auditors-read-own-records"],
    ),
    ("auditor exports own", [R.AUDITOR], {}, A.EXPORT_AUDIT, {}, {}, ["auditors-read-own-records"]),
    (
        "both roles read a model",
        [R.CLIENT, R.AUDITOR],
        {},
        A.READ_MODEL,
        {},
        {},
        ["clients-read-models", "overseers-read-models"],
    ),
    (
        "client who is an auditor reads records",
        [R.CLIENT, R.AUDITOR],
        {},
        A.QUERY_AUDIT,
        {},
        {},
        ["auditors-read-own-records"],
    ),
]


BINDINGS = ("none", "mtls", "dpop", "mtls+dpop", "certificate")
ENOUGH = {  # what each demand is satisfied with
    "clinic": set(BINDINGS),
    "bound-any": {"mtls", "dpop", "mtls+dpop", "certificate"},
    "bound-mtls": {"mtls", "mtls+dpop", "certificate"},
    "bound-dpop": {"dpop", "mtls+dpop"},
}


@pytest.mark.parametrize("shown", [*BINDINGS, "", "DPOP", "something new"])
@pytest.mark.parametrize("tenant", list(ENOUGH))
@pytest.mark.parametrize("action", [Action.INFER, Action.READ_MODEL, Action.QUERY_AUDIT])
def test_what_a_tenant_demands_of_tokens(policy_set, principal, model, context, tenant, shown, action):
    role = Role.AUDITOR if action is Action.QUERY_AUDIT else Role.CLIENT
    answer = policy_set.decide(principal(role, tenant=tenant, token_binding=shown), action, model(), context())
    if shown in ENOUGH[tenant] or tenant == "clinic":
        assert isinstance(answer, Permit)
    else:
        assert isinstance(answer, Deny)
        assert answer.decision.policy_ids == ("token-binding-where-demanded",)


def test_an_answer_for_a_bound_token_is_not_remembered_for_another(policy_set, principal, model, context):
    bound, bare = (principal(tenant="bound-dpop", token_binding=shown) for shown in ("dpop", "none"))
    for _ in range(2):
        assert isinstance(policy_set.decide(bound, Action.INFER, model(), context()), Permit)
        assert isinstance(policy_set.decide(bare, Action.INFER, model(), context()), Deny)


@pytest.mark.parametrize("demand", ["", "MTLS", "certificate", "dpop ", "mtls+dpop"])
def test_a_demand_that_nobody_knows_does_not_load(policy_dir, demand):
    path = policy_dir / "tenants.toml"
    path.write_text(path.read_text().replace('token_binding = "any"', f'token_binding = "{demand}"'))
    with pytest.raises(PolicyFileError, match="token_binding"):
        load_policy(policy_dir)


@pytest.mark.parametrize(
    ("roles", "who", "action", "what", "when", "ids"), [c[1:] for c in DENIED], ids=[c[0] for c in DENIED]
)
def test_denied(policy_set, principal, model, context, roles, who, action, what, when, ids):
    answer = policy_set.decide(principal(*roles, **who), action, model(**what), context(**when))
    assert isinstance(answer, Deny)
    assert list(answer.decision.policy_ids) == ids
    assert answer.decision.reason == ("policy-forbids" if ids else "no-policy-permits")
    assert answer.decision.policy_digest == policy_set.digest
    assert answer.errors == ()


@pytest.mark.parametrize(
    ("roles", "who", "action", "what", "when", "ids"), [c[1:] for c in ALLOWED], ids=[c[0] for c in ALLOWED]
)
def test_allowed(policy_set, principal, model, context, roles, who, action, what, when, ids):
    answer = policy_set.decide(principal(*roles, **who), action, model(**what), context(**when))
    assert isinstance(answer, Permit), answer
    assert list(answer.decision.policy_ids) == ids
    assert answer.decision.policy_digest == policy_set.digest
    assert answer.decision.reason == ""


def test_every_shipped_policy_decides_somewhere(policy_set):
    """The two tables above leave no policy untested (the one for overseeing tenants has its own test below)."""
    seen = {name for case in DENIED + ALLOWED for name in case[6]}
    assert seen | {"oversight-reads-every-record"} == set(policy_set.rules)


def test_each_forbid_is_needed(policy_dir, principal, model, context):
    """Take any one forbid away, and what it alone refused is allowed: no rule is there for show."""
    sole = {case[6][0]: case for case in DENIED if len(case[6]) == 1}  # the last case of each
    for file in policy_dir.glob("*.cedar"):
        text = file.read_text()
        for name, (_, roles, who, action, what, when, _) in sole.items():
            if f'"{name}"' not in text:
                continue
            statements = text.split("@id(")
            file.write_text("@id(".join(part for part in statements if not part.startswith(f'"{name}"')))
            answer = load_policy(policy_dir).decide(principal(*roles, **who), action, model(**what), context(**when))
            file.write_text(text)
            assert isinstance(answer, Permit), name


def test_whose_records(policy_set, principal, context):
    own = policy_set.decide(principal(Role.AUDITOR), Action.QUERY_AUDIT, None, context())
    every = policy_set.decide(principal(Role.AUDITOR, tenant="oversight"), Action.QUERY_AUDIT, None, context())
    assert isinstance(own, Permit)
    assert own.records_of == "clinic"
    assert isinstance(every, Permit)
    assert every.records_of is None
    assert every.decision.policy_ids == ("oversight-reads-every-record",)


def test_answers_that_need_no_policy(policy_set, principal, model, context):
    for who, action, what, reason in (
        (principal(tenant="nobody"), Action.INFER, model(), "unknown-tenant"),
        (principal(roles=frozenset()), Action.INFER, model(), "no-role"),
        (principal(), Action.INFER, None, "unknown-model"),
        (principal(), Action.READ_MODEL, None, "unknown-model"),
    ):
        answer = policy_set.decide(who, action, what, context())
        assert isinstance(answer, Deny)
        assert (answer.decision.reason, answer.decision.policy_ids) == (reason, ())


def test_shipped_obligation_reaches_the_permit(policy_set, principal, model, context):
    answer = policy_set.decide(principal(), Action.INFER, model(), context())
    assert answer.decision.obligations == Obligations(round_digits=6)


@pytest.mark.parametrize(
    ("hour", "day", "allowed"),
    [
        (6, 0, True),
        (19, 0, True),
        (5, 0, False),
        (20, 0, False),
        (12, 2, True),
        (12, 3, False),
        (12, 4, False),
        (12, 5, True),
    ],
)
def test_business_hours_is_an_example_that_works_when_copied(policy_dir, principal, model, context, hour, day, allowed):
    wednesday = context().now_us - context().now_us % 86_400_000_000  # and `day` days later
    at = context(now_us=wednesday + (day * 24 + hour) * 3_600_000_000)
    assert isinstance(load_policy(policy_dir).decide(principal(), Action.INFER, model(), at), Permit)
    with resources.as_file(resources.files("policy.shipped") / "examples" / "business-hours.cedar") as example:
        shutil.copy(example, policy_dir)
    answer = load_policy(policy_dir).decide(principal(), Action.INFER, model(), at)
    assert isinstance(answer, Permit) is allowed
    if not allowed:
        assert answer.decision.policy_ids == ("business-hours",)


def test_strange_names_decide_nothing_they_should_not(policy_set, principal, model, context):
    """Quotes, newlines and Cedar syntax in a subject or purpose are data, never policy."""
    for strange in ('x" in Role', "a\nb", 'Client::"clinic/other"', "\u0000", "𝕏", "x" * 5000):
        answer = policy_set.decide(principal(subject=strange), Action.INFER, model(), context())
        assert isinstance(answer, Permit), strange
        purposes = frozenset({strange})
        answer = policy_set.decide(principal(purposes=purposes), Action.INFER, model(), context(purpose=strange))
        assert isinstance(answer, Deny), strange
    # A lone surrogate has no UTF-8 form: the engine refuses it, so we do.
    assert isinstance(policy_set.decide(principal(subject="\ud800"), Action.INFER, model(), context()), Deny)


def test_the_words_of_assurance_are_those_of_evidence() -> None:
    """Who can vouch for evidence, and what policies, scenarios and tenants can ask for, are one list."""
    words = GRADES[GRADES.index("software") :]
    assert get_args(get_type_hints(Circumstances)["assurance"]) == words
    for word in words:
        assert msgspec.convert({"name": "t", "evidence_floor": word}, tenants._Tenant).evidence_floor == word
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": "t", "evidence_floor": GRADES[0]}, tenants._Tenant)
