"""A run of `sealgate privacy prune`: the host announces, the host or the pruner deletes, page by page to the end.

Trusts: the host for what may go; a pruner judges once more. Never: deletes what was not announced, or goes on after a
page that could not be deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audit.pruner import Pruner
from audit.retention import load_retention
from sealgate.administration import ask_host
from sealgate.ambient import Clock, now_us
from sealgate.errors import HostRefused
from sealgate.protocol.administration import ForgetUnused, PruneRecords, RecordsPruned, UnusedForgotten
from sealgate.transparency.pruned import Indices

if TYPE_CHECKING:
    from sealgate.deployment import Deployment


@dataclass(frozen=True)
class Run:
    """What was deleted: records, the records that announce it, and names of people of whom no record is left."""

    records: int
    announced_by: tuple[int, ...]
    names: int


def prune_all(
    deployment: Deployment, *, note: str, told: Callable[[RecordsPruned, int], None], clock: Clock = now_us
) -> Run:
    """Prune everything that is due. `told` hears of each page. Raises HostAway, HostRefused, ConfigurationError."""
    announced: list[int] = []
    records, start = 0, 0
    with closing(Pruner(deployment.log_url)) as pruner:
        while start >= 0:
            answer = ask_host(deployment, PruneRecords(start=start, note=note), RecordsPruned)
            if answer.indices:
                indices = Indices.parse(answer.indices)
                if not answer.deleted:
                    if not pruner.needed:
                        raise HostRefused("the runtime host announced records and did not delete them")
                    pruner.delete(indices, load_retention(deployment.retention), now_us=clock())
                announced.append(answer.record)
                records += indices.count
                told(answer, indices.count)
            start = answer.next
    return Run(records, tuple(announced), _forget(deployment, note=note))


def _forget(deployment: Deployment, *, note: str) -> int:
    count, after = 0, ""
    while True:
        answer = ask_host(deployment, ForgetUnused(after=after, note=note), UnusedForgotten)
        count, after = count + answer.count, answer.next
        if not after:
            return count
