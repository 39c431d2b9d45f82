"""Records of every kind, and hostile ones, for the forms that they are exported in."""

from __future__ import annotations

import string
from collections.abc import Iterator

import msgspec
from hypothesis import strategies as st

from sealgate.ambient import uuid7
from sealgate.transparency.exports.leaves import PlacedLeaf, place
from sealgate.transparency.record import KINDS, Record, leaf_bytes

DIGEST = "cd" * 32
_NUMBERS = st.integers(0, 2**53 - 1)
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=24)
_KEYS = st.text(string.ascii_lowercase + "_", min_size=1, max_size=10)


def record_of(kind: str, number: int = 0, **fields: object) -> Record:
    base: dict[str, object] = {
        "v": 1,
        "log": "example.com/log",
        "id": uuid7(1_700_000_000_000_000 + number, lambda count: number.to_bytes(count, "big")),
        "kind": kind,
        "ts_us": 1_700_000_000_123_456 + number,
        "salt": f"{number:032x}",
    }
    return Record(**{**base, **fields})  # type: ignore[arg-type]


def placed(record: Record, index: int = 0) -> PlacedLeaf:
    return place(index, leaf_bytes(record))


def one_of_each() -> Iterator[PlacedLeaf]:
    """Every kind, bare and with every field that there is."""
    full = {
        "tenant": "clinic",
        "actor": "a" * 32,
        "authn": "token",
        "model": "breast-cancer",
        "model_digest": DIGEST,
        "certificate_digest": DIGEST,
        "policy_digest": DIGEST,
        "policy_ids": ("permit-clinic", "noise"),
        "runtime_instance": "worker-1",
        "runtime_seq": 7,
        "runtime_sig": "c2ln",
        "operation": "infer",
        "purpose": "care",
        "outcome": "refused",
        "reason": "some-reason",
        "units": 3,
        "eps_micro": 500_000,
        "budget_after_micro": 9_500_000,
        "req_commit": DIGEST,
        "resp_commit": DIGEST,
        "intent_seq": 3,
        "grant": "0190" * 8,
        "evidence_digest": DIGEST,
        "assurance": "software",
        "degraded": True,
        "detail": {"name": "shipped", "what": "token", "fingerprint": DIGEST, "count": "17", "question": "records"},
    }
    for number, kind in enumerate(KINDS):
        yield placed(record_of(kind, number), number)
        yield placed(record_of(kind, number, **full), 2**40 + number)


def hostile_records() -> st.SearchStrategy[PlacedLeaf]:
    """Any text in any field that holds text."""
    names = [one.name for one in msgspec.structs.fields(Record) if one.type is str]
    free = [name for name in names if name not in ("id", "kind", "salt")]
    fields = st.fixed_dictionaries(
        {
            "kind": st.sampled_from(sorted(KINDS)),
            "ts_us": st.integers(1, 2**53 - 1),
            "log": _TEXT.filter(bool),
            "units": _NUMBERS,
            "degraded": st.booleans(),
            "intent_seq": st.integers(-1, 2**50),
            "policy_ids": st.lists(_TEXT, max_size=3).map(tuple),
            "detail": st.dictionaries(_KEYS, _TEXT, max_size=3),
        },
        optional=dict.fromkeys([name for name in free if name != "log"], _TEXT),
    )

    def build(given: dict[str, object], index: int) -> PlacedLeaf:
        given = dict(given)
        return placed(record_of(str(given.pop("kind")), **given), index)

    return st.builds(build, fields, st.integers(0, 2**53 - 1))
