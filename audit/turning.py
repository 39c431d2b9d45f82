"""What the writer says at the turn of a half-year: the end of one shard, and what the next one begins with.

What is in force (`sealgate.transparency.standing`), the requests under way and the balances of privacy budgets become
`log.carried` records (`sealgate.transparency.carried`).

Trusts: the records that its own log wrote. Never: carries what ended; reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from audit.limits import CARRIED_TEXT
from sealgate.transparency.carried import (
    BUDGETS,
    KIND,
    NEXT,
    PREVIOUS_ORIGIN,
    PREVIOUS_ROOT,
    PREVIOUS_SIZE,
    STANDS_FOR,
    TURNED,
    balances,
)
from sealgate.transparency.notes import Checkpoint
from sealgate.transparency.record import Record
from sealgate.transparency.standing import InForce, Placed, again


def closing(origin: str) -> Record:
    """The last record of a shard, which names the next one."""
    return Record(kind="log.closed", outcome=TURNED, detail={NEXT: origin})


def beginning(
    before: Checkpoint, in_force: InForce, *, under_way: Iterable[Placed], left: Mapping[str, tuple[int, int]]
) -> list[Record]:
    """The first records of a shard. `under_way` are open authorizations and their indices in the shard before."""
    said = {
        PREVIOUS_ORIGIN: before.origin,
        PREVIOUS_SIZE: str(before.size),
        PREVIOUS_ROOT: before.root.hex(),
    }
    drafts = [Record(kind="log.opened", outcome=TURNED, detail=said), *in_force.carried()]
    drafts += [Record(kind=KIND, detail={STANDS_FOR: BUDGETS} | part) for part in _parts(balances(left))]
    return [*drafts, *map(again, under_way)]


def _parts(detail: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The same in parts that each fit into a leaf."""
    part: dict[str, str] = {}
    length = 0
    for name, text in detail.items():
        length += len(name) + len(text)
        if length > CARRIED_TEXT:
            yield part
            part, length = {}, len(name) + len(text)
        part[name] = text
    if part:
        yield part
