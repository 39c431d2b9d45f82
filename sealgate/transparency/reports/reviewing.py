"""What an auditor states after looking: which records, under which signed root, what was found, by which report.

The statement becomes the detail of an `audit.review` record. Trusts nothing: every field is bounded here, on both sides
of the wire. Never: carries what was in the records.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from sealgate.errors import DecodeError
from sealgate.limits import MAX_ADMIN_NOTE, MAX_NAME

Finding = Literal["nothing", "questions", "problems"]
_Index = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
_Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class ReviewStatement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Records first..last were looked at, as part of the tree of `size` records with that root."""

    first: _Index
    last: _Index
    size: _Index
    root: _Digest
    finding: Finding
    note: Annotated[str, msgspec.Meta(pattern=rf"^[^\x00-\x1f\x7f-\x9f]{{0,{MAX_ADMIN_NOTE}}}\Z")] = ""
    report: Annotated[str, msgspec.Meta(pattern=rf"^[a-z-]{{0,{MAX_NAME}}}\Z")] = ""
    report_digest: _Digest | Literal[""] = ""

    def require_range(self) -> None:
        """Raises DecodeError unless the range lies in the tree."""
        if not self.first <= self.last < self.size:
            raise DecodeError("a review is of records first..last of a tree that holds them", code="review-range")

    def detail(self) -> dict[str, str]:
        """As the record carries it."""
        fields = {name: str(getattr(self, name)) for name in self.__struct_fields__}
        return {name: value for name, value in fields.items() if value}
