"""Exceptions of the runtime.

SealgateError
├── SandboxRefused            a required isolation layer is missing or a probe got through
├── TurnedAway                the gatekeeper refuses a request; the reason is for the record only
├── BadInput                  an opened request that cannot be answered; the text goes back inside the seal
├── WorkerGone                the worker died, hung or said something it may not say
├── EndorserFailed            a TPM or the like did not vouch for evidence; no evidence is given then
├── SwitchRefused             the workers that should take over cannot; those that serve go on
└── RuntimeUnavailable        the host cannot serve now
"""

from __future__ import annotations

from sealgate.errors import SealgateError

GATEKEEPER_REASONS = frozenset(
    {
        "audience-mismatch",
        "cancelled",
        "cannot-open",
        "credential-mismatch",
        "credential-unbound",
        "date-missing",
        "date-outside-window",
        "field-repeated",
        "grant-expired",
        "key-unknown",
        "malformed",
        "model-mismatch",
        "no-memory",
        "operation-mismatch",
        "purpose-mismatch",
        "replay-set-full",
        "replayed",
        "single-use-died",
        "single-use-not-made",
        "single-use-not-offered",
        "single-use-timed-out",
        "target-unknown",
        "truncated",
    }
)
"""Why the gatekeeper turns a request away. The host takes no others: a worker cannot put its own words on record."""

ENGINE_REASONS = frozenset(
    {
        "bad-input",
        "explain-not-offered",
        "explain-not-permitted",
        "input-datatype",
        "input-not-finite",
        "input-range",
        "input-shape",
        "model-error",
        "model-not-loaded",
        "noise-without-bounds",
        "too-many-noised-rows",
    }
)
"""Why an admitted request was answered with an error inside the seal."""


class SandboxRefused(SealgateError):
    """The worker may not start: a required layer is missing, or something that must be denied was possible."""

    code = "sandbox-refused"


class TurnedAway(SealgateError):
    """The gatekeeper's refusal. `code` is the reason for the record, `problem` the uniform public code."""

    def __init__(self, reason: str, *, problem: str = "sealed-request-refused") -> None:
        super().__init__("the sealed request was refused", code=reason)
        self.problem = problem


class BadInput(SealgateError):
    """An admitted request asks for something that cannot be done. The text is sealed to the caller, `code` recorded."""

    code = "bad-input"

    def __init__(self, message: str, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.status = status


class WorkerGone(SealgateError):
    """The worker cannot be reached any more. `code` says why: worker-died, worker-hung, worker-protocol."""

    code = "worker-died"


class SwitchRefused(SealgateError):
    """Models were not changed; the text is one line for the operator. `code` is one of the administration socket's."""

    code = "switch-failed"


class RuntimeUnavailable(SealgateError):
    """The host cannot serve now; `code` says why."""

    code = "unavailable"


class EndorserFailed(SealgateError):
    """What should vouch for evidence did not. `code` says which: tpm-failed, report-failed, gpu-failed."""

    code = "endorser-failed"
