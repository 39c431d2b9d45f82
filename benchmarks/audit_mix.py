"""A made-up year of a gateway's records, as fast as Python can: leaves from templates, each of them a real one.

    requests        authorized and ended, a few of them open at once; the worker's counter is contiguous
    noised answers  pay from their tenant's privacy budget of a day, which is exhausted now and then
    the rest        denials, failed authentications, auditors' reads and reviews, policies, workers, models, keys

A template is what `leaf_bytes` makes of a record with marks in it; filling the marks in gives what `leaf_bytes` would
make of the filled record (a test compares). Commitments are random bytes, and so are workers' signatures of records
after the first `signed`. Seeded: the same arguments give the same records. Never: reads a clock.
"""

from __future__ import annotations

import base64
import functools
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealgate.ambient import uuid7
from sealgate.protocol.completion import Statement, sign_completion
from sealgate.transparency.record import Record, leaf_bytes

START_US = 1_735_689_600_000_000  # the first of January 2025
DAY_US = 86_400_000_000
TENANTS = ("clinic", "hospital", "insurer", "lab", "registry", "university")
SUBJECTS = 60  # of each tenant
MODELS = ("claims", "imaging", "risk", "summary", "triage")
PURPOSES = ("billing", "care", "quality", "research")
NOISED = "risk"
_ROW_EPS, _FULL_EPS = 500_000, 400_250_000  # millionths: one row's, a tenant's of a day; never used up to the last
_HELD = 32 * _ROW_EPS
_TEXTS = ("id", "salt", "req", "resp", "grant", "sig", "instance")
_NUMBERS = {"ts": 9_007_199_254_740_001, "seq": 9_007_199_254_740_002, "intent": 9_007_199_254_740_003,
            "left": 9_007_199_254_740_004, "eps": 9_007_199_254_740_005, "units": 9_007_199_254_740_006}  # fmt: skip
_MARK = {name: f"<{name}>".ljust(32, "-") for name in _TEXTS}
_OTHERS = (  # of ten thousand records, besides requests and denials
    ("auth.failed", 40, {"reason": "token-expired", "detail": {"count": "7", "source": "ipv4"}}),
    ("audit.query", 150, {"tenant": "clinic", "detail": {"question": "tenant=clinic"}}),
    ("audit.export", 5, {"tenant": "clinic", "detail": {"question": "first=0 last=999"}}),
    ("audit.review", 2, {"tenant": "clinic", "detail": {"first": "10", "last": "999", "finding": "nothing"}}),
    ("credential.revoke", 1, {"detail": {"what": "token", "by": "uid 0"}}),
)
_DENIED = 700


@functools.cache
def digest_of(name: str) -> str:
    """What stands for a digest of that thing."""
    return random.Random(name).randbytes(32).hex()


@dataclass(frozen=True)
class Written:
    """A leaf, and of its record what the tables and the roll-ups take."""

    leaf: bytes
    record: Record


@dataclass(frozen=True)
class _Template:
    text: str
    names: dict[str, Any]  # what the index takes of it

    @classmethod
    def of(cls, origin: str, **fields: Any) -> _Template:
        marked: dict[str, Any] = {"id": _MARK["id"], "ts_us": _NUMBERS["ts"], "salt": _MARK["salt"]}
        text = leaf_bytes(Record(v=1, log=origin, **marked, **fields)).decode().replace("%", "%%")
        for name in _TEXTS:
            text = text.replace(_MARK[name], f"%({name})s")
        for name, mark in _NUMBERS.items():
            text = text.replace(str(mark), f"%({name})d")
        taken = ("kind", "tenant", "actor", "model", "model_digest", "operation", "purpose", "outcome", "reason")
        return cls(text, {name: fields[name] for name in (*taken, "detail") if name in fields})


@dataclass(frozen=True)
class _Habit:
    """What somebody asks for again and again."""

    tenant: str
    model: str
    begun: _Template
    completed: _Template
    failed: _Template
    denied: _Template
    exhausted: _Template


class Mix:
    """The records of one log, from `first` on. `actors` are pseudonyms by tenant and number."""

    def __init__(
        self, *, origin: str, actors: dict[tuple[str, int], str], first: int, day: int, seed: int, signed: int
    ) -> None:
        self._origin = origin
        self._random = random.Random(seed)
        self._step = DAY_US // day
        self._signed = signed
        self._index, self._ts = first, START_US
        self._key = Ed25519PrivateKey.from_private_bytes(self._random.randbytes(32))
        self._habits = [self._habit(tenant, actor) for (tenant, _), actor in actors.items() for _ in range(2)]
        auditor = next(iter(actors.values()))
        self._others = {
            kind: _Template.of(origin, kind=kind, **named, **({"actor": auditor} if "tenant" in named else {}))
            for kind, _, named in _OTHERS
        }
        self._kinds, self._weights = [kind for kind, _, _ in _OTHERS], [weight for _, weight, _ in _OTHERS]
        self._rare = sum(self._weights)
        self._open: deque[tuple[int, str, int, _Habit, dict[str, Any]]] = deque()
        self._left = dict.fromkeys(TENANTS, _FULL_EPS)
        self._day, self._renewed = -1, dict.fromkeys(TENANTS, -1)
        self._instance, self._seq = "", 0

    def records(self, count: int) -> Iterator[Written]:
        """So many: an opening, a host's life, a closing in order with nothing left open."""
        yield self._simple("log.opened", outcome="opened", detail={"size": str(self._index), "aborted": "0"})
        last = self._index + count - 2
        while self._index + len(self._open) < last:
            if self._ts // DAY_US != self._day and last - self._index > 30:
                yield from self._new_day()
            if self._open and (self._random.random() < 0.5 or len(self._open) > 8):
                yield self._end()
            else:
                yield from self._next(last - self._index - len(self._open))
        while self._open:
            yield self._end()
        yield self._simple("log.closed", outcome="closed")

    # What happens ----------------------------------------------------------------------------------------------------

    def _next(self, room: int) -> Iterator[Written]:
        draw = self._random.random() * 10_000 / 2  # every other record is an end
        if draw < self._rare:
            kind = self._random.choices(self._kinds, self._weights)[0]
            yield self._write(self._others[kind])
            return
        habit = self._habits[int(len(self._habits) * self._random.random() ** 2)]  # some ask much more than others
        if draw < self._rare + _DENIED or room < 2:
            yield self._write(habit.denied)
        elif habit.model == NOISED:
            yield from self._noised(habit)
        else:
            yield self._begin(habit)

    def _noised(self, habit: _Habit) -> Iterator[Written]:
        tenant, day = habit.tenant, self._ts // DAY_US
        left = _FULL_EPS if self._renewed[tenant] != day else self._left[tenant]
        if left < _HELD:
            yield self._write(habit.exhausted)
            return
        self._renewed[tenant], self._left[tenant] = day, left - _HELD
        yield self._begin(habit, left=left - _HELD)
        while self._open:  # the last of them is this one: nothing noised is open over midnight
            yield self._end()

    def _begin(self, habit: _Habit, *, left: int = 0) -> Written:
        request = {"req": self._random.randbytes(32).hex(), "left": left, "eps": _HELD if left else 0}
        written = self._write(habit.begun, **request)
        self._open.append((self._index - 1, written.record.id, left, habit, request))
        return written

    def _end(self) -> Written:
        index, grant, left, habit, request = self._open.popleft()
        self._seq += 1
        units = 1 + int(self._random.random() ** 4 * 32)
        failed = self._random.random() < 0.02
        spent = 0 if failed or habit.model != NOISED else units * _ROW_EPS
        template = habit.failed if failed else habit.completed
        if habit.model == NOISED:
            left = self._left[habit.tenant] = left + _HELD - spent
        filled = {**request, "resp": self._random.randbytes(32).hex(), "grant": grant, "intent": index, "left": left,
                  "eps": spent, "units": units, "seq": self._seq}  # fmt: skip
        return self._write(template, **filled, sig=self._signature(template, filled))

    def _signature(self, template: _Template, filled: dict[str, Any]) -> str:
        if self._index >= self._signed:
            return base64.urlsafe_b64encode(self._random.randbytes(64)).rstrip(b"=").decode()
        names = template.names
        statement = Statement(
            instance=self._instance, seq=self._seq, grant=filled["grant"], outcome=names["outcome"],
            reason=names.get("reason", ""), model=names["model"], model_digest=names["model_digest"],
            certificate_digest=digest_of("certificate"), units=filled["units"], req_commit=filled["req"],
            resp_commit=filled["resp"], eps_micro=filled["eps"],
        )  # fmt: skip
        return sign_completion(statement, self._key).signature

    def _new_day(self) -> Iterator[Written]:
        while self._open:
            yield self._end()
        self._day = self._ts // DAY_US
        number = self._day - START_US // DAY_US
        if number % 10 == 0:
            detail = {"name": "hospital", "version": str(number // 10 + 1), "by": "uid 0", "note": "the plan's review"}
            yield self._simple("policy.change", policy_digest=digest_of("policy"), reason="applied", detail=detail)
        if number % 7 == 0:
            yield from self._new_worker()
        yield self._of_worker("key.rotate", detail={"key_ids": "1", "kems": "X25519"})

    def _new_worker(self) -> Iterator[Written]:
        if self._instance:
            yield self._of_worker("worker.stop", outcome="stopped")
        self._instance, self._seq = f"worker-{self._ts}", 0
        key = base64.urlsafe_b64encode(self._key.public_key().public_bytes_raw()).rstrip(b"=").decode()
        yield self._of_worker(
            "worker.start",
            evidence_digest=digest_of("evidence"),
            assurance="software",
            detail={"completion_key": key},
        )
        for model in MODELS:
            digests = {"model_digest": digest_of(model), "certificate_digest": digest_of("certificate")}
            yield self._of_worker("model.load", model=model, detail={"version": "3"}, **digests)

    def _simple(self, kind: str, **fields: Any) -> Written:
        return self._write(_Template.of(self._origin, kind=kind, **fields))

    def _of_worker(self, kind: str, **fields: Any) -> Written:
        return self._simple(kind, runtime_instance=self._instance, **fields)

    def _write(self, template: _Template, **filled: Any) -> Written:
        identifier = uuid7(self._ts, self._random.randbytes)
        filled["id"], filled["ts"], filled["instance"] = identifier, self._ts, self._instance
        filled["salt"] = self._random.randbytes(16).hex()
        numbers = {"units": filled.get("units", 0), "eps_micro": filled.get("eps", 0), "grant": filled.get("grant", "")}
        record = Record(id=identifier, ts_us=self._ts, **numbers, **template.names)
        self._index += 1
        self._ts += 1 + int(self._random.random() * 2 * self._step)
        return Written((template.text % filled).encode(), record)

    # Templates -------------------------------------------------------------------------------------------------------

    def _habit(self, tenant: str, actor: str) -> _Habit:
        model, purpose = self._random.choice(MODELS), self._random.choice(PURPOSES)
        who: dict[str, Any] = {"tenant": tenant, "actor": actor, "authn": "mtls", "model": model, "operation": "infer"}
        who |= {"purpose": purpose, "policy_digest": digest_of("policy"), "policy_ids": ("members-infer", "rounded")}
        ran: dict[str, Any] = {"model_digest": digest_of(model), "certificate_digest": digest_of("certificate")}
        ran |= {"runtime_instance": _MARK["instance"], "req_commit": _MARK["req"], "assurance": "software"}
        paid: dict[str, Any] = {}
        held: dict[str, Any] = {}
        if model == NOISED:
            paid = {"budget_after_micro": _NUMBERS["left"], "detail": {"privacy_budget": f"{tenant}-privacy"}}
            held = {"eps_micro": _NUMBERS["eps"]}
        end: dict[str, Any] = {"resp_commit": _MARK["resp"], "grant": _MARK["grant"], "intent_seq": _NUMBERS["intent"]}
        end |= {"runtime_seq": _NUMBERS["seq"], "runtime_sig": _MARK["sig"], "units": _NUMBERS["units"]}
        make = functools.partial(_Template.of, self._origin, **who)
        return _Habit(
            tenant=tenant,
            model=model,
            begun=make(kind="inference.authorized", **ran, **paid, **held),
            completed=make(kind="inference.completed", outcome="completed", **ran, **end, **paid, **held),
            failed=make(kind="inference.failed", outcome="failed", reason="input-shape", **ran, **end, **paid),
            denied=make(kind="inference.denied", reason=self._random.choice(("purpose", "policy", "budget-exhausted"))),
            exhausted=make(
                kind="inference.denied",
                reason="privacy-budget-exhausted",
                detail={"budget": f"{tenant}-privacy"},
            ),
        )
