"""Statistics of a model for one caller: what that caller's own requests to it came to, since this worker started.

Triton's statistics count everybody's requests. Here that would tell one tenant what the others do, and when; times
would tell with whom a request shared its batch. So a caller sees counts of its own requests, no times, and nobody sees
more: what an operator may know stands in the log and in the runtime's metrics. A worker that starts anew counts anew,
and what ran in a process of its own is not counted, because that process ends with what it knows.

Trusts: the grant's pseudonym. Never: holds more callers than it may; who asked least recently is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from secure_runtime.limits import MAX_COUNTED_CALLERS


@dataclass
class Counts:
    """Of one caller and one version of one model."""

    rows: int = 0
    answered: int = 0
    failed: int = 0
    explained: int = 0
    last_us: int = 0

    def document(self, name: str, version: str) -> dict[str, object]:
        """As in Triton's `model_stats`, without what it has of times and of batches."""
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_us // 1000,
            "inference_count": self.rows,
            "execution_count": self.answered,
            "inference_stats": {"success": {"count": self.answered}, "fail": {"count": self.failed}},
            "explanation_count": self.explained,
        }


class Statistics:
    """Owned by the worker's only thread."""

    def __init__(self) -> None:
        self._counts: OrderedDict[tuple[str, str, str], Counts] = OrderedDict()

    def of(self, actor: str, model: str, version: str) -> Counts:
        """The counts of this caller so far, to read or to add to."""
        key = (actor, model, version)
        found = self._counts.setdefault(key, Counts())
        self._counts.move_to_end(key)
        if len(self._counts) > MAX_COUNTED_CALLERS:
            self._counts.popitem(last=False)
        return found
