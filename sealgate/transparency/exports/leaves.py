"""A leaf at its place in the log: what the forms of export are made of.

Trusts: whoever says the index; a proof shows it, a line of an export does not. Never: a leaf that is no record.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sealgate.errors import DecodeError
from sealgate.transparency.merkle import MAX_TREE_SIZE, leaf_hash
from sealgate.transparency.record import Record, parse_leaf

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class PlacedLeaf:
    """The exact bytes of a leaf, what they say, and where they are said to stand.

    Made by `place`, one proves that the bytes are a record in canonical form. It does not prove that any log holds it.
    """

    index: int
    leaf: bytes
    record: Record

    @property
    def hash(self) -> str:
        """The leaf hash of RFC 9162 section 2.1.1, hex."""
        return leaf_hash(self.leaf).hex()


def place(index: int, leaf: bytes) -> PlacedLeaf:
    """The leaf at its index; raises DecodeError if it is no record."""
    if not 0 <= index < MAX_TREE_SIZE:
        raise DecodeError("no log has a record of that index")
    return PlacedLeaf(index, leaf, parse_leaf(leaf))


def rfc3339(time_us: int) -> str:
    """The moment in UTC, to the microsecond (RFC 3339 section 5.6); raises DecodeError where a date has no year."""
    try:
        moment = _EPOCH + timedelta(microseconds=time_us)
    except OverflowError as error:
        raise DecodeError("a record's time is no date") from error
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond:06d}Z"
