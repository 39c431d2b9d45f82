"""Pipelines: models that are one model by name. Which members, who reads whom, and what comes out. No own weights.

Each member is a certified bundle of its own, named by the digest of its `bundle.sig`, and answers once. What a member
reads is an input of the whole, or what members before it gave, side by side in one row of numbers. What was not read by
another member comes out: one member's answer, or several fused by public weights.

Trusts: nothing. Never: says that members fit each other; `sealgate.certificate.wiring` looks at their manifests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Self

import msgspec

from sealgate.certificate.architectures.spec import DeclaredInputs, Spec
from sealgate.certificate.decimals import parse_decimal
from sealgate.errors import DecodeError
from sealgate.limits import MAX_INPUTS, MAX_MEMBERS, MAX_NAME, MAX_VOCABULARY

TAKES = ("scores", "value", "features")
FUSIONS = ("mean", "log-mean")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the parts."""


class Reading(_Part, frozen=True):
    """One input of a member, and where it comes from: names of inputs of the whole, or of members before it."""

    input: str
    sources: tuple[str, ...]


class Member(_Part, frozen=True):
    """`take` is what others get of it: its class scores, its value, or the features of its fixed public part.

    `people` is a word for whose data it was trained on. Members with different words are declared to be trained on
    different people; a member without one is taken to be trained on everybody's.
    """

    name: str
    bundle_digest: str
    take: str
    reads: tuple[Reading, ...]
    people: str = ""


class Fused(_Part, frozen=True):
    """One member's part in the answer; weights are decimal texts and sum to one."""

    member: str
    weight: str


class Fusion(_Part, frozen=True):
    """ "mean": of probabilities or values. "log-mean": of log-probabilities, normalised again."""

    how: str
    parts: tuple[Fused, ...]


class PipelineSpec(Spec, frozen=True, kw_only=True, tag="pipeline"):
    """`shapes` and `tokens` are the whole's inputs as models see them; `numbers` and `work` are its members' sizes
    together. Who verifies the members finds the same."""

    members: tuple[Member, ...]
    fusion: Fusion | None
    shapes: tuple[tuple[int, ...], ...]
    tokens: int
    numbers: int
    work: int

    @property
    def vocabulary(self) -> int:
        return self.tokens

    @property
    def read(self) -> frozenset[str]:
        """Every name that some member reads."""
        return frozenset(source for member in self.members for one in member.reads for source in one.sources)

    @property
    def answering(self) -> tuple[Member, ...]:
        """The members whose answers are the whole's: nobody reads them."""
        read = self.read
        return tuple(member for member in self.members if member.name not in read)

    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        return self.shapes

    def tensors(self) -> dict[str, tuple[int, ...]]:
        return {}

    def row_numbers(self) -> int:
        return self.numbers

    def row_work(self) -> int:
        return self.work

    def size_refusals(self) -> Iterator[str]:
        names = [member.name for member in self.members]
        if not 0 < len(names) <= MAX_MEMBERS or len(set(names)) != len(names):
            yield f"a pipeline has at most {MAX_MEMBERS} members, each with its own name"
            return
        if self.numbers <= 0 or self.work <= 0 or not 0 <= self.tokens <= MAX_VOCABULARY:
            yield "the sizes of its members are out of range"
        for at, member in enumerate(self.members):
            yield from _member_refusals(member, later=frozenset(names[at:]))
        yield from self._fusion_refusals()

    def _fusion_refusals(self) -> Iterator[str]:
        answering = self.answering
        if any(member.take == "features" for member in answering):
            yield "features are for other members to read, and no answer"
        if self.fusion is None:
            if len(answering) != 1:
                yield "without a fusion, exactly one member is not read by another"
            return
        if len(answering) < 2 or [part.member for part in self.fusion.parts] != [one.name for one in answering]:
            yield "its fusion does not name, in order, exactly the members that no other reads"
        if self.fusion.how not in FUSIONS or (self.fusion.how == "log-mean" and not self.classes):
            yield f"its fusion is not one of {', '.join(FUSIONS)}, or is log-mean of values"
        try:
            weights = [parse_decimal(part.weight) for part in self.fusion.parts]
            if min(weights) < 0 or sum(weights) != Decimal(1):
                raise DecodeError("not convex")
        except (DecodeError, ValueError):
            yield "the weights of its fusion are not decimal numbers from 0 on that sum to 1"

    @classmethod
    def declared(cls, options: Mapping[str, Any], *, inputs: DeclaredInputs, classes: int) -> Self:
        raise DecodeError("it is not trained: `sealgate models pipeline` makes it from trained models")


def _member_refusals(member: Member, *, later: frozenset[str]) -> Iterator[str]:
    if not _NAME.match(member.name) or not _SHA256.match(member.bundle_digest) or member.take not in TAKES:
        yield "a member has no proper name or digest, or gives what members do not give"
    if len(member.people) > MAX_NAME:
        yield "a member's word for its people is too long"
    inputs = [one.input for one in member.reads]
    if not 0 < len(inputs) <= MAX_INPUTS or len(set(inputs)) != len(inputs):
        yield "a member reads no inputs, or one twice"
    for one in member.reads:
        if not 0 < len(one.sources) <= MAX_MEMBERS or len(set(one.sources)) != len(one.sources):
            yield "a member's input comes from nowhere, or twice from one place"
        if not later.isdisjoint(one.sources):
            yield "a member reads one that comes after it"
