"""The errors of the policy package.

    SealgateError
    ├── ConfigurationError
    │   └── PolicyFileError     a policy directory is not fit to decide anything; nothing starts with it
    └── PolicyError
        ├── BudgetExhausted     a budget has nothing left for this request until its window renews
        │   └── PrivacyBudgetExhausted  likewise, of epsilon; some never renew
        │       └── PrivacyBudgetHeld   what is left is held for requests that are under way
        ├── NoPrivacyBudget     an answer must be noised, but nothing bounds what such answers may cost
        └── LedgerUnreadable    the log's database does not tell what budgets were used for

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


class PrivacyBudgetExhausted(BudgetExhausted):
    """The privacy budget `name` has too little epsilon left for this request; `renews_us` is 0 if it never renews."""

    code = "privacy-budget-exhausted"


class PrivacyBudgetHeld(PrivacyBudgetExhausted):
    """What was spent leaves enough for this request, but the rest is held for others that are under way. They mostly
    spend less than is held for them, so asking again soon may succeed."""

    code = "privacy-budget-held"


class NoPrivacyBudget(PolicyError):
    """A permit demands noise, and no privacy budget covers the model: nobody counts what its answers cost."""

    code = "no-privacy-budget"

    def __init__(self, model: str) -> None:
        super().__init__(f"no privacy budget covers the model '{model}'")


class LedgerUnreadable(PolicyError):
    """What budgets were used for cannot be read."""

    code = "ledger-unreadable"
