"""The Cedar engine, held so that it fails closed. The only module that imports cedarpy.

Cedar alone does not: a `forbid` that errors (a missing attribute, a wrong type, an overflow) is skipped, and the answer
may then be Allow. Therefore here: every policy is validated against the schema before anything starts; arithmetic,
templates and unknown annotations do not load; requests and entities are checked against the schema each time; an
answer counts as allowed only if it is Allow AND the engine reported no error; and any exception is a refusal.

Trusts: cedarpy's evaluation of policies that validated. Never: decides by partial evaluation.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import cedarpy

from policy.errors import PolicyFileError
from policy.limits import (
    MAX_NESTING,
    MAX_NOISE_EPSILON_MICRO,
    MAX_NOISE_ROWS,
    MAX_OPERATORS,
    MAX_POLICIES,
    MAX_ROUND_DIGITS,
    MAX_TOP_K,
    MAX_TREE,
    NOISE_ROWS,
)
from policy.literals import first_mistake
from policy.store import SCHEMA_FILE, PolicyFiles
from policy.tenants import micro
from sealgate.protocol.frames import Obligations

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")
_ARITHMETIC = frozenset({"+", "-", "*", "neg"})
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,2})(?:\.[0-9]{1,6})?")
_OBLIGATIONS = ("round_digits", "top_k", "hide_scores", "noise_epsilon", "noise_rows", "receipt_required", "single_use")
_ANNOTATIONS = frozenset({"id", "says", *_OBLIGATIONS})
_NAMED = re.compile(r"policy `([^`]*)`")
_LEXEME = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|[\[({<\])}>;]|&&|\|\||[.*+-]|\bif\b', re.DOTALL)
_TOO_DEEP = "nests too deeply, or is too long, for the engine; say it in several policies"

Entity = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One policy: its `@id`, what `@says` it means, whether it forbids, and what its permit obliges the runtime to."""

    id: str
    file: str
    forbids: bool
    says: str
    obligations: Obligations


_LATER = {
    "audited": 'permit (principal, action == Action::"infer", resource) '
    'when { resource has audited && resource.audited like "x" };'
}
"""Facts of models that schemas of older deployments do not declare, each with a policy of a wrong type, which passes
only where what stands behind `has` can never be reached."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The engine's answer to one question. `ids` determined it; with errors, they are the policies that erred."""

    allowed: bool
    ids: tuple[str, ...] = ()
    errors: tuple[str, ...] = field(default=(), repr=False)


class Engine:
    """Policies, schema and standing entities, parsed once. Immutable, so it may be shared by threads."""

    def __init__(self, *, schema: str, policies: dict[str, Any], entities: list[Entity]) -> None:
        """`policies` maps `@id` to a policy in Cedar's JSON form. Raises ValueError if any part does not parse."""
        self._schema = cedarpy.Schema.from_str(schema)
        document = {"staticPolicies": policies, "templates": {}, "templateLinks": []}
        self._policies = cedarpy.PolicySet.from_json_str(json.dumps(document))
        self._entities = cedarpy.Entities.from_json_str(json.dumps(entities), self._schema)
        self._undeclared = frozenset(name for name, ask in _LATER.items() if _validates(ask, self._schema))

    def ask(self, requests: list[dict[str, Any]], entities: list[Entity]) -> list[Verdict]:
        """One verdict for each request, with `entities` known beside the standing ones. Never raises Exception."""
        if self._undeclared:
            entities = [_without(entity, self._undeclared) for entity in entities]
        try:
            known = self._entities.with_added_json_str(json.dumps(entities), self._schema)
            results = cedarpy.is_authorized_batch(requests, self._policies, known, self._schema)
            verdicts = [_verdict(result) for result in results]
            if len(verdicts) != len(requests):
                raise ValueError("the engine left questions unanswered")
        except Exception as error:  # whatever the engine throws, the answer is no
            return [Verdict(allowed=False, errors=(f"{type(error).__name__}: {error}",))] * len(requests)
        return verdicts


def _validates(text: str, schema: cedarpy.Schema) -> bool:
    return bool(cedarpy.validate_policies(text, schema).validation_passed)


def _without(entity: Entity, names: frozenset[str]) -> Entity:
    """The entity without these facts, if it is a model. No policy under such a schema can ask for them."""
    if entity["uid"]["type"] != "Model":
        return entity
    return {**entity, "attrs": {name: one for name, one in entity["attrs"].items() if name not in names}}


def _verdict(result: cedarpy.AuthzResult) -> Verdict:
    errors = tuple(str(error) for error in result.diagnostics.errors)
    if errors or result.decision is cedarpy.Decision.NoDecision:
        ids = {match for error in errors for match in _NAMED.findall(error)}
        return Verdict(allowed=False, ids=tuple(sorted(ids)), errors=errors or ("no decision",))
    return Verdict(allowed=result.allowed, ids=tuple(sorted(result.diagnostics.reasons)))


def read_policies(files: PolicyFiles) -> tuple[dict[str, Any], dict[str, Rule]]:
    """The validated policies of a directory in Cedar's JSON form, and their rules, both by `@id`.

    Raises PolicyFileError that names the file and the policy.
    """
    _require_shallow(files.schema, opening="[({<", closing="])}>", where=str(files.path / SCHEMA_FILE))
    try:
        schema = cedarpy.Schema.from_str(files.schema)
    except ValueError as error:
        raise PolicyFileError(f"{files.path / SCHEMA_FILE}: {_one_line(error)}") from error
    policies: dict[str, Any] = {}
    rules: dict[str, Rule] = {}
    for name, text in files.policies.items():
        where = str(files.path / name)
        document = _validated(text, schema, where=where)
        if document["templates"]:
            raise PolicyFileError(f"{where}: templates (?principal, ?resource) are not supported; write the policy out")
        for policy in document["staticPolicies"].values():
            rule = _rule(policy, file=name, where=where)
            if mistake := first_mistake(policy, tenants=files.tenants.tenants):
                raise PolicyFileError(f'{where}: policy "{rule.id}": {mistake}')
            if rule.id in rules:
                raise PolicyFileError(f'{where}: @id("{rule.id}") is also in {rules[rule.id].file}; ids must differ')
            policies[rule.id], rules[rule.id] = policy, rule
    if not any(not rule.forbids for rule in rules.values()):
        raise PolicyFileError(f"{files.path}: no policy permits anything; add a permit, or stop the service instead")
    if len(rules) > MAX_POLICIES:
        raise PolicyFileError(f"{files.path}: more than {MAX_POLICIES} policies")
    return policies, rules


def _require_shallow(text: str, *, opening: str, closing: str, where: str) -> None:
    """Raise PolicyFileError for what would end this process: the engine's parser uses as much stack as a text asks
    for. Strings and comments do not count; a policy ends at its semicolon."""
    depth = operators = 0
    for match in _LEXEME.finditer(text):
        lexeme = match[0]
        if lexeme == ";":
            operators = 0
        elif lexeme in opening:
            depth += 1
        elif lexeme in closing:
            depth -= 1
        elif lexeme[0] not in '"/':
            operators += 1
        if depth > MAX_NESTING or operators > MAX_OPERATORS:
            raise PolicyFileError(f"{where}: a policy or type {_TOO_DEEP}")


def _validated(text: str, schema: cedarpy.Schema, *, where: str) -> dict[str, Any]:
    _require_shallow(text, opening="[({", closing="])}", where=where)
    try:
        result = cedarpy.validate_policies(text, schema)
        if not result.validation_passed:
            first = result.errors[0] if result.errors else None
            name = result.id_annotations_by_policy_id.get(first.policy_id, "") if first else ""
            policy = f' policy "{name}":' if name else ""
            raise PolicyFileError(f"{where}:{policy} {_plain(first.error) if first else 'does not validate'}")
        document: dict[str, Any] = json.loads(cedarpy.policies_to_json_str(text))
    except RecursionError:
        raise PolicyFileError(f"{where}: a policy {_TOO_DEEP}") from None
    except ValueError as error:
        raise PolicyFileError(f"{where}: {_one_line(error)}") from error
    return document


def _rule(policy: dict[str, Any], *, file: str, where: str) -> Rule:
    annotations: dict[str, str] = {name: value or "" for name, value in policy.get("annotations", {}).items()}
    identity = annotations.get("id", "")
    if not _ID.fullmatch(identity):
        raise PolicyFileError(f'{where}: every policy needs @id("lower-case-words"), unique and at most 64 characters')
    where = f'{where}: policy "{identity}"'
    unknown = sorted(annotations.keys() - _ANNOTATIONS)
    if unknown:
        raise PolicyFileError(
            f"{where}: unknown annotation @{unknown[0]}; known are: {', '.join(sorted(_ANNOTATIONS))}"
        )
    names, depth = _names_and_depth(policy)
    if depth > MAX_TREE:
        raise PolicyFileError(f"{where}: it {_TOO_DEEP}")
    if not _ARITHMETIC.isdisjoint(names):
        raise PolicyFileError(
            f"{where}: arithmetic may overflow at the wrong moment and does not load; compare instead"
        )
    forbids = policy["effect"] == "forbid"
    obligations = _obligations(annotations, where=where)
    if forbids and not annotations.keys().isdisjoint(_OBLIGATIONS):
        raise PolicyFileError(f"{where}: a forbid cannot oblige the runtime to anything; annotate the permit")
    return Rule(id=identity, file=file, forbids=forbids, says=annotations.get("says", ""), obligations=obligations)


def _names_and_depth(policy: dict[str, Any]) -> tuple[set[str], int]:
    """Every name in a policy's JSON form, among them its operators; and how many levels that has."""
    names: set[str] = set()
    deepest = 0
    left: list[tuple[Any, int]] = [(policy, 1)]
    while left:
        node, depth = left.pop()
        deepest = max(deepest, depth)
        if isinstance(node, dict):
            names |= node.keys()
            left += [(item, depth + 1) for item in node.values()]
        elif isinstance(node, list):
            left += [(item, depth + 1) for item in node]
    return names, deepest


def _obligations(annotations: dict[str, str], *, where: str) -> Obligations:
    noise = _epsilon(annotations, where=where)
    rows = _number(annotations, "noise_rows", 1, MAX_NOISE_ROWS, where=where)
    if rows is not None and not noise:
        raise PolicyFileError(f"{where}: @noise_rows is for permits with @noise_epsilon")
    return Obligations(
        round_digits=_number(annotations, "round_digits", 0, MAX_ROUND_DIGITS, where=where),
        top_k=_number(annotations, "top_k", 1, MAX_TOP_K, where=where),
        hide_scores=_flag(annotations, "hide_scores", where=where),
        noise_epsilon_micro=noise,
        noise_rows=(rows or NOISE_ROWS) if noise else 0,
        receipt_required=_flag(annotations, "receipt_required", where=where),
        single_use=_flag(annotations, "single_use", where=where),
    )


def _epsilon(annotations: dict[str, str], *, where: str) -> int:
    """In millionths; 0 where no noise is demanded."""
    if "noise_epsilon" not in annotations:
        return 0
    text = annotations["noise_epsilon"]
    epsilon_micro = micro(text) if _DECIMAL.fullmatch(text) else 0
    if not 0 < epsilon_micro <= MAX_NOISE_EPSILON_MICRO:
        raise PolicyFileError(
            f"{where}: @noise_epsilon is a number above 0 and up to {MAX_NOISE_EPSILON_MICRO // 1_000_000}, with at "
            "most six decimal places, in quotation marks"
        )
    return epsilon_micro


def _flag(annotations: dict[str, str], name: str, *, where: str) -> bool:
    text = annotations.get(name, "false")
    if text not in ("true", "false"):
        raise PolicyFileError(f'{where}: @{name} is "true" or "false"')
    return text == "true"


def _number(annotations: dict[str, str], name: str, low: int, high: int, *, where: str) -> int | None:
    if name not in annotations:
        return None
    text = annotations[name]
    if not _NUMBER.fullmatch(text) or not low <= int(text) <= high:
        raise PolicyFileError(f"{where}: @{name} is a whole number from {low} to {high}, in quotation marks")
    return int(text)


def _plain(error: str) -> str:
    """The engine's words without its own name for the policy, which is named already."""
    return re.sub(r"^for policy `policy\d+`, ", "", _one_line(error))


def _one_line(error: object) -> str:
    return re.sub(r"\s+", " ", str(error))[:300]
