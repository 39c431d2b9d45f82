"""What would change if one policy took the place of another: in its files, and in its answers.

Answers are compared by asking both policies the same questions: every scenario of either, and a grid of tenants, roles,
actions, models, purposes, credentials and circumstances. Models of the grid are those given, and one on either side of
every epsilon that a tenant allows. A grid is a sample: that no answer changes in it is no proof that none does; that is
why the text of policies is compared too.

Pure, but for the loading. Trusts: that both directories validate. Never: says that nothing changed without asking.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy.cedar import Rule, read_policies
from policy.decide import MODEL_ACTIONS, Deny, Permit, PolicySet, load_policy
from policy.entities import Action, Role
from policy.limits import MAX_GRID
from policy.scenarios import Caller, Circumstances, Model, Question, Scenario, Scenarios, demanded, load_scenarios
from policy.store import PolicyFiles, load_files, read_contents
from sealgate.protocol.frames import ModelFacts

_SHOWN = {  # what callers show, by the words that a difference is told in
    "a token": ("jwt", "none"),
    "a token and a certificate": ("jwt+mtls", "mtls"),
    "a token and a key": ("jwt", "dpop"),
    "a certificate": ("mtls", "certificate"),
}
_AROUND = {
    "by day": Circumstances(),
    "on a Sunday night": Circumstances(hour=3, weekday=7),
    "with evidence of a TPM": Circumstances(assurance="tpm"),
    "with hardware evidence": Circumstances(assurance="hardware"),
}


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two, as loaded."""

    files: PolicyFiles
    contents: Mapping[str, bytes]
    policies: Mapping[str, Any]  # by @id, in Cedar's JSON form
    rules: Mapping[str, Rule]
    decides: PolicySet
    scenarios: Scenarios


@dataclass(frozen=True, kw_only=True)
class Change:
    """Something that is in one of the two, or differs between them."""

    what: str  # "file", "policy", "tenant", "client", "budget"
    name: str
    how: str  # "added", "removed", "changed"


@dataclass(frozen=True, kw_only=True)
class Changed:
    """Questions that are answered differently, all in the same way: `cases` of the `of` that were asked of such a
    caller and action. `by` are the policies (or reasons) of the denials among the answers; `which` names, for every
    axis of the grid on which only some values are concerned, those values."""

    who: str
    action: str
    before: str
    after: str
    by: tuple[str, ...]
    cases: int
    of: int
    which: dict[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """All of it. `asked` counts the questions; `left_out` those of the grid that there was no room for."""

    changes: tuple[Change, ...]
    answers: tuple[Changed, ...]
    asked: int
    left_out: int

    @property
    def nothing(self) -> bool:
        return not self.changes and not self.answers


def load_side(
    path: Path,
    *,
    digest: str | None = None,
    scenarios: Scenarios | None = None,
    bundles: Mapping[str, ModelFacts] | None = None,
) -> Side:
    """A policy directory, or a stored version with its `digest` and the scenarios that were stored beside it."""
    files = load_files(path, digest=digest)
    policies, rules = read_policies(files)
    return Side(
        files=files,
        contents=read_contents(path, stored=digest is not None),
        policies=policies,
        rules=rules,
        decides=load_policy(path, digest=digest),
        scenarios=load_scenarios(path, bundles=bundles) if scenarios is None else scenarios,
    )


def compare(before: Side, after: Side, *, models: Iterable[ModelFacts] = ()) -> Difference:
    """What is different in `after`. Where nothing that decides differs, nothing is asked."""
    if _decides_alike(before, after):
        return Difference(changes=tuple(_changes(before, after)), answers=(), asked=0, left_out=0)
    grid, left_out = _grid(before, after, list(models))
    asked = [*_scenario_questions(before, after), *grid]
    return Difference(
        changes=tuple(_changes(before, after)),
        answers=tuple(_answers(before.decides, after.decides, asked)),
        asked=len(asked),
        left_out=left_out,
    )


def _decides_alike(before: Side, after: Side) -> bool:
    """Budgets and scenarios decide nothing, and comments are not part of a policy."""
    old, new = before.files, after.files
    parts = ((before.policies, after.policies), (before.rules, after.rules))
    return all(a == b for a, b in (*parts, (old.schema, new.schema), (old.tenants, new.tenants)))


# Contents ------------------------------------------------------------------------------------------------------------


def _changes(before: Side, after: Side) -> Iterator[Change]:
    old, new = before.files, after.files
    yield from _compared("file", before.contents, after.contents)
    yield from _compared("policy", before.policies, after.policies)
    yield from _compared("tenant", old.tenants.tenants, new.tenants.tenants)
    yield from _compared("client", _clients(old), _clients(new))
    yield from _compared("budget", _budgets(old), _budgets(new))


def _compared(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for name in sorted({*old, *new}):
        if name not in old:
            yield Change(what=what, name=name, how="added")
        elif name not in new:
            yield Change(what=what, name=name, how="removed")
        elif old[name] != new[name]:
            yield Change(what=what, name=name, how="changed")


def _clients(files: PolicyFiles) -> dict[str, Any]:
    rules = files.tenants.clients
    named = itertools.chain(rules.exact.values(), rules.below.values())
    return {f"{rule.certificate}{f' below {rule.authority}' if rule.authority else ''}": rule for rule in named}


def _budgets(files: PolicyFiles) -> dict[str, Any]:
    requests: dict[str, Any] = {budget.name: budget for budget in files.budgets}
    return requests | {budget.name: budget for budget in files.privacy_budgets}


# Answers -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A question: what it is filed under, and where it stands within that."""

    who: str
    action: str
    place: Mapping[str, str]
    question: Question


def _answers(before: PolicySet, after: PolicySet, asked: Sequence[_Asked]) -> Iterator[Changed]:
    """Questions of one kind of caller and action whose answers changed in the same way are one difference."""
    found: dict[tuple[str, str, str, str], list[tuple[_Asked, Permit | Deny, Permit | Deny]]] = {}
    every: dict[tuple[str, str], list[_Asked]] = {}
    for one in asked:
        every.setdefault((one.who, one.action), []).append(one)
        old, new = one.question.ask(before), one.question.ask(after)
        if answer_in_words(old) != answer_in_words(new):
            found.setdefault((one.who, one.action, answer_in_words(old), answer_in_words(new)), []).append(
                (one, old, new)
            )
    for (who, action, old_words, new_words), cases in found.items():
        whole = every[who, action]
        decided = {name for _, old, new in cases for name in (*_forbidding(old), *_forbidding(new))}
        yield Changed(
            who=who,
            action=action,
            before=old_words,
            after=new_words,
            by=tuple(sorted(decided)),
            cases=len(cases),
            of=len(whole),
            which=_narrowed([case.place for case, _, _ in cases], [case.place for case in whole]),
        )


def _narrowed(found: Sequence[Mapping[str, str]], whole: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """On which axes only some values are concerned, and which."""
    axes = list(whole[0])
    values = {axis: dict.fromkeys(place[axis] for place in found) for axis in axes}
    return {axis: tuple(values[axis]) for axis in axes if len(values[axis]) < len({place[axis] for place in whole})}


def _forbidding(answer: Permit | Deny) -> tuple[str, ...]:
    return (answer.decision.policy_ids or (answer.decision.reason,)) if isinstance(answer, Deny) else ()


def answer_in_words(answer: Permit | Deny) -> str:
    """ "permit: round_digits=6", "deny": answers that whoever asked could tell apart read differently."""
    if isinstance(answer, Deny):
        return "deny"
    more = f"records of {answer.records_of}" if answer.records_of else demanded(answer.decision.obligations)
    return f"permit: {more}" if more else "permit"


def _scenario_questions(before: Side, after: Side) -> Iterator[_Asked]:
    newer = {question.scenario.name for question in after.scenarios.questions}
    older = [question for question in before.scenarios.questions if question.scenario.name not in newer]
    for question in (*after.scenarios.questions, *older):
        action = question.scenario.action.value
        yield _Asked(who=f"scenario: {question.scenario.name}", action=action, place={}, question=question)


def _grid(before: Side, after: Side, models: Sequence[ModelFacts]) -> tuple[list[_Asked], int]:
    """The questions, and how many there was no room for."""
    every = _grid_questions(before, after, models)
    room = list(itertools.islice(every, MAX_GRID))
    return room, sum(1 for _ in every)


def _grid_questions(before: Side, after: Side, models: Sequence[ModelFacts]) -> Iterator[_Asked]:
    tenants = sorted({*before.files.tenants.tenants, *after.files.tenants.tenants})
    purposes = _purposes(before, after, models)
    known = [*models, *_models_of_scenarios(before, after), *_models_at_limits(before, after, purposes)]
    distinct = {_called(model): model for model in reversed(known)}  # of those called the same, the first
    about: list[tuple[Action, str, str]] = [
        (action, called, purpose)
        for action in Action
        if action in MODEL_ACTIONS
        for called in reversed(distinct)
        for purpose in purposes
    ]
    about += [(action, "", "") for action in Action if action not in MODEL_ACTIONS]
    for tenant, role, (action, called, purpose) in itertools.product(tenants, Role, about):
        for (shown, (authn, binding)), (around, circumstances) in itertools.product(_SHOWN.items(), _AROUND.items()):
            model = distinct.get(called)
            scenario = Scenario(
                name="grid",
                caller=Caller(tenant=tenant, roles=(role,), authn=authn, token_binding=binding),  # type: ignore[arg-type]
                expect="permit",
                action=action,
                model=model.name if model else None,
                purpose=purpose,
                circumstances=circumstances,
            )
            place = {"model": called, "purpose": purpose, "shown": shown, "when": around}
            asked = Question(file="", scenario=scenario, model=model)
            yield _Asked(who=f"{role.value} of {tenant}", action=action.value, place=place, question=asked)


def _called(model: ModelFacts) -> str:
    whole, rest = divmod(model.epsilon_micro, 1_000_000)
    return f"{model.name} (epsilon {f'{whole}.{rest:06d}'.rstrip('0').rstrip('.')})"


def _purposes(before: Side, after: Side, models: Sequence[ModelFacts]) -> list[str]:
    """All that anybody speaks of, and one that nobody does."""
    found = {purpose for model in models for purpose in model.purposes}
    for side in (before, after):
        found |= {purpose for tenant in side.files.tenants.tenants.values() for purpose in tenant.max_epsilon_micro}
        found |= {question.scenario.purpose for question in side.scenarios.questions}
    return sorted(found - {""} | {"some-other-purpose"})


def _models_of_scenarios(before: Side, after: Side) -> list[ModelFacts]:
    questions = (*before.scenarios.questions, *after.scenarios.questions)
    return [question.model for question in questions if question.model is not None]


def _models_at_limits(before: Side, after: Side, purposes: Sequence[str]) -> Iterator[ModelFacts]:
    """For every epsilon that a tenant allows: a model that just has it, and one that has a millionth more."""
    limits = {
        limit
        for side in (before, after)
        for tenant in side.files.tenants.tenants.values()
        for limit in tenant.max_epsilon_micro.values()
    }
    for epsilon_micro in sorted({limit + more for limit in limits for more in (0, 1)}):
        epsilon = f"{epsilon_micro // 1_000_000}.{epsilon_micro % 1_000_000:06d}"
        yield Model(epsilon=epsilon, purposes=tuple(purposes)).facts("any-model")
