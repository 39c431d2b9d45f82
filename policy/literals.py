"""What a policy names must be there: a `forbid` of a tenant that does not exist, or of a name with a letter that looks
like another, would load, match nothing, and be taken for protection.

Pure. Trusts: the schema's check of types and actions. Never: judges what cannot be known beforehand, as which callers
or models there will be; of these only the form is judged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator
from typing import Any

from sealgate.limits import MAX_NAME

_CALLERS = frozenset({"Client", "Auditor", "Operator"})
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}")
_SUBJECT = re.compile(rf"[\x21-\x7e]{{1,{MAX_NAME}}}")
_LOG_OF = "tenant:"


def first_mistake(policy: dict[str, Any], *, tenants: Container[str]) -> str:
    """What a policy in Cedar's JSON form names that nothing can ever be called, in words; "" if there is nothing."""
    without_annotations = {name: value for name, value in policy.items() if name != "annotations"}
    return next(_mistakes(without_annotations, tenants), "")


def _mistakes(policy: dict[str, Any], tenants: Container[str]) -> Iterator[str]:
    left: list[Any] = [policy]
    while left:
        node = left.pop()
        if isinstance(node, list):
            left += node
        elif isinstance(node, dict):
            kind, identity = node.get("type"), node.get("id")
            if isinstance(kind, str) and isinstance(identity, str) and not _may_be(kind, identity, tenants):
                yield f"{kind}::{json.dumps(identity)} is nobody's name here"
            for name in ("Value", "Literal"):
                text = node.get(name)
                if isinstance(text, str) and not (text.isascii() and text.isprintable()):
                    yield f"{json.dumps(text)} equals nothing: names are plain ASCII"
            left += node.values()


def _may_be(kind: str, identity: str, tenants: Container[str]) -> bool:
    if kind in _CALLERS:
        tenant, _, subject = identity.partition("/")
        return tenant in tenants and _SUBJECT.fullmatch(subject) is not None
    if kind == "Tenant":
        return identity in tenants
    if kind == "Log":
        return identity == "all" or (identity.startswith(_LOG_OF) and identity.removeprefix(_LOG_OF) in tenants)
    return kind != "Model" or _NAME.fullmatch(identity) is not None
