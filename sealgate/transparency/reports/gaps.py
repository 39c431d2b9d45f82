"""Records that were not shown: what lies between the indices that were, because it is no longer kept.

Whether each of them was announced, the verifier's own step says (`sealgate.transparency.pruned`). Pure. Never: knows
what stood before the first record that was shown.
"""

from __future__ import annotations


class Gaps:
    """Is told of each index that is shown, in order."""

    def __init__(self) -> None:
        self._next = -1

    def before(self, index: int) -> range:
        """The indices that are missing between the record shown last and this one."""
        missing = range(self._next, index) if self._next >= 0 else range(0)
        self._next = index + 1
        return missing
