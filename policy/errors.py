"""The errors of the policy package.

    SealgateError
    ├── ConfigurationError
    │   └── PolicyFileError     a policy directory is not fit to decide anything; nothing starts with it
    └── PolicyError
        └── BudgetExhausted     a budget has nothing left for this request until its window renews

A denial is not an error: `PolicySet.decide` returns it.
"""

from __future__ import annotations

from sealgate.errors import ConfigurationError, SealgateError


class PolicyFileError(ConfigurationError):
    """A file of a policy directory is wrong. The text is one line that names the file and the field or policy."""

    code = "policy-file"


class PolicyError(SealgateError):
    """Root of what this package raises about requests."""

    code = "policy"


class BudgetExhausted(PolicyError):
    """The budget `name` has nothing left; it renews at `renews_us` (microseconds since the epoch, UTC)."""

    code = "budget-exhausted"

    def __init__(self, name: str, *, renews_us: int) -> None:
        super().__init__(f"the budget '{name}' is exhausted")
        self.name = name
        self.renews_us = renews_us
