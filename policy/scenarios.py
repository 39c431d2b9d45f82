"""Scenario files: questions to a policy with the answers that its writers expect.

    [model.NAME]     what a model of that name states (by default, the facts of a harmless one)
    [[scenario]]     name, caller, action, model, purpose, circumstances; expect; and as wanted
                     by, reason, obligations, records_of

A scenario asks `PolicySet.decide` itself, with a principal as authentication would make it, so what passes here is what
the gateway would answer. Pure, but for `load_scenarios`. Trusts: whoever may write the files. Never: accepts an unknown
field, or a scenario that expects nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from policy.decide import MODEL_ACTIONS, REASONS, Deny, Permit, PolicySet
from policy.entities import Action, Context, Principal, Role
from policy.errors import PolicyFileError
from policy.limits import MAX_NAMED_POLICIES, MAX_PURPOSES, MAX_SCENARIO_TEXT, MAX_SCENARIOS, NOISE_ROWS
from policy.store import SCENARIOS, digest_of_scenarios, read_scenarios
from policy.tenants import micro
from policy.toml import Name, Subject, parse_toml
from sealgate.protocol.frames import ModelFacts, Obligations

_Decimal = Annotated[str, msgspec.Meta(pattern=r"^(0|[1-9][0-9]{0,6})(\.[0-9]{1,6})?\Z")]
_Text = Annotated[str, msgspec.Meta(pattern=rf"^[\x20-\x7e]{{1,{MAX_SCENARIO_TEXT}}}\Z")]
_Delta = Annotated[str, msgspec.Meta(pattern=r"^0\.[0-9]{1,20}\Z")]
_Authn = Literal["jwt", "mtls", "jwt+mtls"]
_TokenBinding = Literal["none", "mtls", "dpop", "mtls+dpop", "certificate"]
_HOUR_US = 3_600_000_000
_EPOCH_WEEKDAY = 4  # the epoch began on a Thursday
_DIGEST = "0" * 64  # of weights and certificates that no policy asks about
_BY_POLICIES = ("policy-forbids", "no-policy-permits")  # denials that say something of the policies


class Caller(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who asks. `token_binding` is, if left out, what `authn` implies at least."""

    tenant: Name
    subject: Subject = "somebody"
    roles: Annotated[tuple[Role, ...], msgspec.Meta(max_length=len(Role))] = (Role.CLIENT,)
    # None: the one asked for
    purposes: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_PURPOSES)] | None = None
    authn: _Authn = "jwt"
    token_binding: _TokenBinding | None = None


class Circumstances(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is around the request; by default, noon of a Wednesday."""

    hour: Annotated[int, msgspec.Meta(ge=0, le=23)] = 12
    weekday: Annotated[int, msgspec.Meta(ge=1, le=7)] = 3  # 1 is Monday
    assurance: Literal["software", "tpm", "hardware"] = "software"
    sealed: bool = True


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a model's bundle states of it."""

    version: Name = "1"
    epsilon: _Decimal = "1"
    delta: _Delta = "0.00001"
    privacy_unit: Name = "example"
    sensitivity: Literal["public", "personal", "special-category"] = "personal"
    audited: bool = False
    purposes: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_PURPOSES)] = ()

    def facts(self, name: str) -> ModelFacts:
        """The same as the runtime would tell it."""
        return ModelFacts(
            name=name,
            version=self.version,
            model_digest=_DIGEST,
            certificate_digest=_DIGEST,
            epsilon_micro=micro(self.epsilon),
            delta=self.delta,
            privacy_unit=self.privacy_unit,
            sensitivity=self.sensitivity,
            purposes=self.purposes,
            audited=self.audited,
        )


class Demands(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Obligations as the annotations of policies write them; what is left out must not be demanded."""

    round_digits: int | None = None
    top_k: int | None = None
    hide_scores: bool = False
    noise_epsilon: _Decimal | None = None
    noise_rows: int | None = None
    receipt_required: bool = False
    single_use: bool = False

    def obligations(self) -> Obligations:
        """The same as a permit carries it."""
        noised = self.noise_epsilon is not None
        return Obligations(
            round_digits=self.round_digits,
            top_k=self.top_k,
            hide_scores=self.hide_scores,
            noise_epsilon_micro=micro(self.noise_epsilon or "0"),
            noise_rows=(NOISE_ROWS if self.noise_rows is None else self.noise_rows) if noised else 0,
            receipt_required=self.receipt_required,
            single_use=self.single_use,
        )


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One question, and what must be answered. What is left out of the answer may be anything."""

    name: _Text
    caller: Caller
    expect: Literal["permit", "deny"]
    action: Action = Action.INFER
    model: Name | None = None
    purpose: Name | Literal[""] = ""
    circumstances: Circumstances = Circumstances()
    by: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_NAMED_POLICIES)] | None = None  # exactly these policies
    reason: str | None = None  # of a denial: a key of policy.decide.REASONS
    obligations: Demands | None = None  # of a permit
    records_of: Literal["own", "all"] | None = None  # of a permit to read the log

    def principal(self) -> Principal:
        """The caller as authentication would make it."""
        caller = self.caller
        mtls = caller.authn != "jwt"
        implied = "certificate" if caller.authn == "mtls" else "none"
        carried = (self.purpose,) if caller.purposes is None else caller.purposes
        return Principal(
            tenant=caller.tenant,
            subject=caller.subject,
            roles=frozenset(caller.roles),
            purposes=frozenset(purpose for purpose in carried if purpose),
            authn=caller.authn,
            mtls=mtls,
            credential_binding="",
            expires_us=0,
            token_binding=caller.token_binding or implied,
        )

    def context(self) -> Context:
        """The circumstances as the gateway would see them."""
        around = self.circumstances
        days = (around.weekday - _EPOCH_WEEKDAY) % 7
        return Context(
            purpose=self.purpose,
            sealed=around.sealed,
            assurance=around.assurance,
            now_us=(days * 24 + around.hour) * _HOUR_US,
        )


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    scenario: Annotated[tuple[Scenario, ...], msgspec.Meta(min_length=1, max_length=MAX_SCENARIOS)]
    model: dict[Name, Model] = {}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A scenario with the facts of its model; ready to be asked. None: there is no such model."""

    file: str
    scenario: Scenario
    model: ModelFacts | None

    def ask(self, policies: PolicySet) -> Permit | Deny:
        """What that policy answers."""
        asked = self.scenario
        return policies.decide(asked.principal(), asked.action, self.model, asked.context())


@dataclass(frozen=True, kw_only=True)
class Scenarios:
    """All scenarios of a policy directory, and the digest of their files ("" if there are none)."""

    questions: tuple[Question, ...]
    digest: str


class _Known:
    """The models that a file may name: those that it states, then bundles. These are looked up one by one: to verify
    a bundle takes a while."""

    def __init__(self, stated: Mapping[str, ModelFacts], bundles: Mapping[str, ModelFacts]) -> None:
        self._stated = stated
        self._bundles = bundles

    def find(self, name: str) -> ModelFacts | None:
        return self._stated.get(name) or self._bundles.get(name)

    def names(self) -> list[str]:
        return sorted({*self._stated, *self._bundles})


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was answered, and in which words it differs from what was expected; none if it does not."""

    question: Question
    answer: Permit | Deny
    differences: tuple[str, ...]


def load_scenarios(path: Path, *, bundles: Mapping[str, ModelFacts] | None = None) -> Scenarios:
    """The scenarios of the policy directory `path`; raises PolicyFileError with one line that names file and field.

    `bundles` are models that scenarios may name beside those that their files state.
    """
    return parse_scenarios(read_scenarios(path), where=path / SCENARIOS, bundles=bundles)


def parse_scenarios(
    contents: Mapping[str, bytes], *, where: Path, bundles: Mapping[str, ModelFacts] | None = None
) -> Scenarios:
    """The same, of files that were read from `where`."""
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for name, data in contents.items():
        file = parse_toml(data, _File, name=str(where / name))
        stated = {model: facts.facts(model) for model, facts in file.model.items()}
        known = _Known(stated, bundles or {})
        for index, scenario in enumerate(file.scenario):
            place = f"{where / name}: scenario[{index}]"
            if scenario.name in seen:
                raise PolicyFileError(f"{place}.name: '{scenario.name}' is also in {seen[scenario.name]}")
            seen[scenario.name] = name
            model = known.find(scenario.model) if scenario.model else None
            _require_sense(scenario, model, known, place=place)
            questions.append(Question(file=name, scenario=scenario, model=model))
    if len(questions) > MAX_SCENARIOS:
        raise PolicyFileError(f"{where}: more than {MAX_SCENARIOS} scenarios")
    return Scenarios(questions=tuple(questions), digest=digest_of_scenarios(dict(contents)))


def run_scenarios(policies: PolicySet, questions: Iterable[Question]) -> list[Result]:
    """Ask each."""
    results = []
    for question in questions:
        answer = question.ask(policies)
        results.append(
            Result(question=question, answer=answer, differences=tuple(_differences(question.scenario, answer)))
        )
    return results


def _require_sense(scenario: Scenario, model: ModelFacts | None, known: _Known, *, place: str) -> None:
    """Refuse what could never be answered as it is written; a typing mistake must not look like a passed test."""
    of_model = scenario.action in MODEL_ACTIONS
    if of_model and scenario.model is None:
        raise PolicyFileError(f"{place}.model: say which model to {scenario.action.value}")
    if not of_model and (scenario.model is not None or scenario.obligations is not None):
        raise PolicyFileError(f"{place}.model: {scenario.action.value} is not about a model")
    if of_model and model is None and scenario.reason != "unknown-model":
        names = ", ".join(known.names()) or "none"
        raise PolicyFileError(
            f"{place}.model: there is no model '{scenario.model}' (known: {names}); state one: [model.{scenario.model}]"
        )
    if scenario.reason is not None and scenario.reason not in REASONS:
        raise PolicyFileError(f"{place}.reason: there is no reason '{scenario.reason}'; one of: {', '.join(REASONS)}")
    if scenario.expect == "permit" and scenario.reason is not None:
        raise PolicyFileError(f"{place}.reason: a permit has none")
    if scenario.expect == "deny" and (scenario.obligations is not None or scenario.records_of is not None):
        raise PolicyFileError(f"{place}: obligations and records_of are of permits")


def _differences(scenario: Scenario, answer: Permit | Deny) -> Iterable[str]:
    got, decision = "permit" if isinstance(answer, Permit) else "deny", answer.decision
    if got != scenario.expect:
        yield f"answered {got}, not {scenario.expect}"
    if scenario.by is not None and set(scenario.by) != set(decision.policy_ids):
        yield f"decided by {_listed(decision.policy_ids)}, not by {_listed(sorted(set(scenario.by)))}"
    if scenario.reason is not None and scenario.reason != decision.reason:
        yield f"the reason is {decision.reason or 'none'}, not {scenario.reason}"
    if scenario.reason is None and scenario.expect == got == "deny" and decision.reason not in _BY_POLICIES:
        # Whoever misspells a tenant is denied too: that must not look like a rule at work.
        yield f'denied before any policy decided ({decision.reason}); if that is meant: reason = "{decision.reason}"'
    if not isinstance(answer, Permit) or got != scenario.expect:
        return
    if scenario.obligations is not None and scenario.obligations.obligations() != decision.obligations:
        wanted, found = demanded(scenario.obligations.obligations()), demanded(decision.obligations)
        yield f"demands {found or 'nothing'}, not {wanted or 'nothing'}"
    whose = "own" if answer.records_of is not None else "all"
    if scenario.records_of not in (None, whose):
        yield f"allows {whose} records, not {scenario.records_of}"


def demanded(obligations: Obligations) -> str:
    """Obligations in short: "round_digits=6 single_use"; "" for none."""
    parts = []
    for field in msgspec.structs.fields(Obligations):
        value = getattr(obligations, field.name)
        if value is True:
            parts.append(field.name)
        elif field.name == "noise_epsilon_micro":
            parts += [f"noise_epsilon={value / 1_000_000:g}"] if value else []
        elif value not in (None, False, 0) or (value == 0 and value is not False and field.default is None):
            parts.append(f"{field.name}={value}")
    return " ".join(parts)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "no policy"
