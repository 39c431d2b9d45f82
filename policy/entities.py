"""The subjects, objects and circumstances that a policy speaks about.

A `Principal` exists only after authentication. `ModelFacts` come from the verified bundle that a worker loaded, never
from a request. Trusts: its makers (gateway authentication, runtime state). Never: holds tokens, keys or payload.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec


class Role(Enum):
    """What a principal may be. One credential may carry several."""

    CLIENT = "client"
    AUDITOR = "auditor"
    OPERATOR = "operator"


class Action(Enum):
    """What can be asked for. Values are the Cedar action ids and the `operation` field of records."""

    INFER = "infer"
    EXPLAIN = "explain"
    READ_MODEL = "read-model"
    QUERY_AUDIT = "query-audit"
    EXPORT_AUDIT = "export-audit"


@dataclass(frozen=True, kw_only=True)
class Principal:
    """An authenticated caller.

    Holding one proves: the credential verified now against a configured issuer or certificate authority, with every
    required claim. It does not prove that anything is allowed: `policy.decide` says that.
    """

    tenant: str
    subject: str
    roles: frozenset[Role]
    purposes: frozenset[str]
    authn: str  # "jwt", "mtls", "jwt+mtls"
    mtls: bool
    credential_binding: str
    expires_us: int
    # "mtls" (RFC 8705), "dpop" (RFC 9449), "mtls+dpop"; "certificate": no token at all
    token_binding: str = "none"  # noqa: S105  # no password


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """The circumstances of one request."""

    purpose: str
    sealed: bool
    assurance: str  # of the runtime: "software", "tpm", "hardware"
    now_us: int
