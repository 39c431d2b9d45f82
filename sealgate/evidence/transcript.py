"""What was checked, in order, with the anchor that decided: the part of a verification that a person reads.

A check passes, fails or is skipped. The first failure ends the verification; a skipped check is shown, and is a failure
where the trust file asks for strictness. Trusts nothing. Never: carries keys, tokens or payload.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from sealgate.errors import EvidenceError, ReceiptError

PASS, FAIL, SKIPPED = "pass", "fail", "skipped"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line: what was checked, how it ended, what was seen, and which anchor decided."""

    name: str
    outcome: str  # "pass", "fail", "skipped"
    detail: str
    anchor: str


class EvidenceRefused(EvidenceError):
    """Evidence is not acceptable; `transcript` holds every check up to the failed one."""

    def __init__(self, message: str, *, code: str, transcript: tuple[Check, ...]) -> None:
        super().__init__(message, code=code)
        self.transcript = transcript


class ReceiptRefused(ReceiptError):
    """A receipt is not about this exchange, or does not verify; `transcript` as above."""

    def __init__(self, message: str, *, code: str, transcript: tuple[Check, ...]) -> None:
        super().__init__(message, code=code)
        self.transcript = transcript


class Transcript:
    """Collects the checks of one verification. `refusal` is what the first failure raises."""

    def __init__(self, *, subject: str, refusal: type[EvidenceRefused] | type[ReceiptRefused], strict: bool) -> None:
        self._subject = subject
        self._refusal = refusal
        self._strict = strict
        self._checks: list[Check] = []

    @property
    def checks(self) -> tuple[Check, ...]:
        return tuple(self._checks)

    def passed(self, name: str, detail: str, *, anchor: str) -> None:
        """The check holds."""
        self._checks.append(Check(name=name, outcome=PASS, detail=detail, anchor=anchor))

    def skipped(self, name: str, why: str, *, anchor: str) -> None:
        """There was nothing to check against. Raises where skipping is a failure."""
        if self._strict:
            self.fail(name, f"{why} (strict: a skipped check is a failure)", anchor=anchor)
        self._checks.append(Check(name=name, outcome=SKIPPED, detail=why, anchor=anchor))

    def fail(self, name: str, why: str, *, anchor: str, cause: BaseException | None = None) -> NoReturn:
        """The check does not hold; the verification ends here."""
        self._checks.append(Check(name=name, outcome=FAIL, detail=why, anchor=anchor))
        raise self._refusal(f"{self._subject} refused: {why}", code=name, transcript=self.checks) from cause

    def require(self, holds: bool, name: str, detail: str, *, anchor: str, otherwise: str) -> None:
        """Pass with `detail` or fail with `otherwise`."""
        if not holds:
            self.fail(name, otherwise, anchor=anchor)
        self.passed(name, detail, anchor=anchor)
