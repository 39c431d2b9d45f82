"""What a request may cost and did cost: effects on the ledger in the log's own transaction; how a refusal is told.

Reserved at `authorized`, settled to the worker's signed word at the end, spent whole where nobody knows. On record:
`eps_micro` is what is held on an `inference.authorized` and what was spent on its end; `budget_after_micro` is what
that left in the privacy budget that the detail names, which is the one with least.

Trusts: the gateway's word for the obligations, the signed completion for what was spent, never above what was held.
Never: lets a noised answer be forwarded that no privacy budget pays for; says more of a budget, to who is refused, than
name and renewal. Who is answered has in the receipt what is left, and so sees what others spend who share the budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from audit.effects import LedgerEffect
from policy.budget import BudgetBook, BudgetExhausted, Ended, Left, NoPrivacyBudget
from policy.errors import PrivacyBudgetHeld
from policy.ledger import Ledger
from policy.limits import MAX_NOISE_EPSILON_MICRO, MAX_NOISE_ROWS
from sealgate.ambient import Clock
from sealgate.errors import DecodeError
from sealgate.protocol.completion import Statement
from sealgate.protocol.frames import Grant, Obligations, Refused, Submit
from sealgate.transparency.record import Record
from secure_runtime.limits import MAX_EXHAUSTIONS

if TYPE_CHECKING:
    from audit.log import Appended


def most_epsilon(obligations: Obligations, operation: str) -> int:
    """The most millionths that one request may spend: every row that it may have. 0 if its answer needs no noise.

    Raises DecodeError for noise that no policy can have demanded.
    """
    epsilon_micro, rows = obligations.noise_epsilon_micro, obligations.noise_rows
    if not epsilon_micro and not rows:
        return 0
    if not (0 < epsilon_micro <= MAX_NOISE_EPSILON_MICRO and 0 < rows <= MAX_NOISE_ROWS):
        raise DecodeError("the gateway demands noise that no policy can demand")
    return 0 if operation in ("read-model", "explain") else epsilon_micro * rows  # neither has noise: see the engine


def epsilon_fits(statement: Statement, grant: Grant) -> bool:
    """Whether the worker spent what it may have: whole rows, at least one for an answer, no more than was held."""
    most = most_epsilon(grant.obligations, grant.operation)
    if not most or statement.outcome == "refused":
        return statement.eps_micro == 0
    one_row = grant.obligations.noise_epsilon_micro
    least = one_row if statement.outcome == "completed" else 0
    return least <= statement.eps_micro <= most and statement.eps_micro % one_row == 0


def reserve(budgets: BudgetBook, frame: Submit, *, clock: Clock) -> LedgerEffect[Ledger]:
    """The authorization, with what is held and left; or the denial, naming the budget."""
    eps_micro = most_epsilon(frame.decision.obligations, frame.operation)
    caller = frame.caller
    claim = budgets.claim(tenant=caller.tenant, subject=caller.subject, model=frame.model, eps_micro=eps_micro)

    def expect(ledger: Ledger, _: Record) -> None:
        budgets.expect(ledger, claim)

    def reserved(ledger: Ledger, draft: Record) -> Record:
        try:
            left = budgets.reserve(ledger, claim, grant=draft.id, now_us=clock())
        except BudgetExhausted as error:
            detail = {"budget": error.name, "renews_us": str(error.renews_us)}
            return _with(draft, kind="inference.denied", reason=error.code, detail=detail)
        except NoPrivacyBudget as error:
            return _with(draft, kind="inference.denied", reason=error.code)
        if left.requests is not None:
            draft = _with(draft, detail={**draft.detail, "requests_left": str(left.requests)})
        return _with_left(_with(draft, eps_micro=eps_micro), left.privacy) if eps_micro else draft

    return LedgerEffect(Ledger, expect, reserved)


def settle(budgets: BudgetBook, granted: Record, *, clock: Clock) -> LedgerEffect[Ledger]:
    """The end that the worker signed: what it cost replaces what was held for the authorization `granted`."""
    noised = granted.eps_micro > 0

    def expect(ledger: Ledger, draft: Record) -> None:
        budgets.expect_end(ledger, grant=draft.grant, noised=noised)

    def settled(ledger: Ledger, draft: Record) -> Record:
        spent_micro = draft.eps_micro if noised else None
        ended = budgets.settle(ledger, grant=draft.grant, units=draft.units, eps_micro=spent_micro, now_us=clock())
        return _with_left(draft, ended.left if ended else None)

    return LedgerEffect(Ledger, expect, settled)


def abandon(budgets: BudgetBook) -> LedgerEffect[Ledger]:
    """An end that nobody signed, also of a request that a crash cut off: it may have run, so all that was held counts
    as spent."""

    def expect(ledger: Ledger, draft: Record) -> None:
        budgets.expect_end(ledger, grant=draft.grant, noised=True)

    def abandoned(ledger: Ledger, draft: Record) -> Record:
        ended: Ended | None = budgets.abandon(ledger, grant=draft.grant)
        if ended is None:
            return draft
        return _with_left(_with(draft, eps_micro=ended.spent_micro), ended.left)

    return LedgerEffect(Ledger, expect, abandoned)


def refusal(denied: Appended) -> Refused:
    """How the caller is told of a denial that `reserve` made."""
    record = denied.record
    told = Refused(status=403, code="forbidden", log=record.log, record=denied.index, receipt=denied.receipt)
    if "budget" not in record.detail:
        return told
    if record.reason == PrivacyBudgetHeld.code:
        return msgspec.structs.replace(told, status=503, code="busy", retry_after_s=1)
    renews_us = int(record.detail["renews_us"])
    told = msgspec.structs.replace(told, budget=record.detail["budget"], renews_us=renews_us)
    if not renews_us:
        return msgspec.structs.replace(told, code="privacy-budget-exhausted")
    wait_s = max(1, -(-(renews_us - record.ts_us) // 1_000_000))
    return msgspec.structs.replace(told, status=429, code="budget-exhausted", retry_after_s=wait_s)


class Exhaustions:
    """Which budgets were found exhausted in the window that they are in now, since the host started. Owned by its event
    loop; of more than MAX_EXHAUSTIONS the oldest are forgotten, and then said anew."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str], str] = {}

    def first(self, denied: Record) -> Record | None:
        """The `budget.exhausted` that belongs to a denial, if it is the first one of a budget's window."""
        budget, renews_us = denied.detail.get("budget", ""), denied.detail.get("renews_us", "")
        if denied.kind != "inference.denied" or not budget or denied.reason == PrivacyBudgetHeld.code:
            return None
        key = (denied.tenant, denied.actor, budget)
        if self._known.pop(key, None) == renews_us:
            self._known[key] = renews_us
            return None
        self._known[key] = renews_us
        if len(self._known) > MAX_EXHAUSTIONS:
            del self._known[next(iter(self._known))]
        return Record(
            kind="budget.exhausted",
            tenant=denied.tenant,
            actor=denied.actor,
            model=denied.model,
            purpose=denied.purpose,
            policy_digest=denied.policy_digest,
            outcome="exhausted",
            reason=denied.reason,
            detail={"budget": budget, "renews_us": renews_us, "denied": denied.id},
        )


def _with_left(record: Record, left: Left | None) -> Record:
    if left is None:
        return record
    return _with(record, budget_after_micro=left.micro, detail={**record.detail, "privacy_budget": left.budget})


def _with(record: Record, **changes: object) -> Record:
    return msgspec.structs.replace(record, **changes)
