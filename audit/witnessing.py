"""Asking witnesses to cosign what the log publishes (C2SP tlog-witness, `add-checkpoint`), beside the log.

A thread of its own goes round the witnesses of a policy (C2SP tlog-policy) every so often, with the newest published
checkpoint and the proof that it extends what that witness saw last. When a quorum has cosigned, the log's writer gets
the note to publish. No request ever waits for a witness, and a witness that is away delays nothing but cosignatures.
Each is asked in a thread of its own: one that answers a byte at a time, without end, holds up its own answers alone.

Trusts: the policy's keys; of what a witness answers, the cosignatures that verify. Never: submits what the log's own
key did not sign, follows a redirect, speaks in clear to another machine, or sends anything but hashes and sizes.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import httpx

from audit.errors import AuditError, QueryRefused
from audit.limits import MAX_WITNESS_ANSWER, WITNESS_CLOSE_S, WITNESS_TIMEOUT_S
from audit.shards import Shards
from sealgate.ambient import monotonic_ns
from sealgate.errors import ConfigurationError, LogError, SealgateError
from sealgate.transparency.cosignatures import CosignerKey, verify_cosignatures
from sealgate.transparency.notes import (
    Checkpoint,
    NoteVerifier,
    VerifiedCheckpoint,
    open_checkpoint,
    parse_decimal,
    parse_signature_line,
)
from sealgate.transparency.witness_policy import WitnessPolicy
from sealgate.witness.witness import MEDIA_SIZE, Submission, encode_submission

_WHOLE_ANSWER = 3  # times WITNESS_TIMEOUT_S: how long a round waits for one witness
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TLS_FAILED = "its TLS certificate is not one that is trusted here"


class WitnessFailed(SealgateError):
    """A witness did not cosign; the text says why, for the operator."""

    code = "witness"


class Published(Protocol):
    """Where the published log is read: an `AuditReader`."""

    def shards(self) -> Shards: ...

    def checkpoint(self, *, cosigned: bool = False, origin: str | None = None) -> bytes: ...

    def size(self, *, origin: str | None = None) -> int: ...

    def consistency(self, first: int, second: int, *, origin: str | None = None) -> list[bytes]: ...


@dataclass
class _Place:
    """One submission prefix, and the witnesses that answer there."""

    url: str
    keys: list[CosignerKey]
    seen: int = 0  # size of the tree that was cosigned there last, as far as is known
    lines: tuple[int, bytes] = (0, b"")  # its cosignatures on the checkpoint of that size
    trouble: str = ""  # what was told last
    asking: threading.Thread | None = None

    @property
    def name(self) -> str:
        return self.keys[0].name


@dataclass
class WitnessClient:
    """Goes round the witnesses. `start` and `close` from one thread; everything else belongs to its own."""

    reader: Published
    verifier: NoteVerifier
    policy: WitnessPolicy
    publish: Callable[[int, bytes], None]  # gets the size and the cosigned note
    tell: Callable[[str], None]
    every_s: float
    tls: ssl.SSLContext
    _stop: threading.Event = field(default_factory=threading.Event)
    _fault: str = ""  # of this client, told last
    _origin: str = ""  # of the shard that `_places` and `_done` are about
    _done: int = -1  # size of the checkpoint that a quorum cosigned last
    _left: dict[str, list[_Place]] = field(default_factory=dict)  # shards that ended without a quorum
    _finished: set[str] = field(default_factory=set)  # shards whose last checkpoint a quorum cosigned

    def __post_init__(self) -> None:
        self._places = submission_places(self.policy)
        self._thread = threading.Thread(target=self._run, name="audit-witnesses", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop. Waits a moment for an answer that is under way: a witness that hangs does not hold up the host's end,
        and what it says later is lost. Harmless if it never started."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(WITNESS_CLOSE_S)

    def trouble(self) -> str:
        """What keeps witnesses from cosigning now, for the operator; "" if nothing is known to. From any thread."""
        said = [f"{place.name}: {place.trouble}" for place in self._places if place.trouble]
        return "; ".join([*said, *filter(None, (self._fault,))])

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._go_round_and_round()
            except Exception as error:  # this thread must not end without a word
                self._fault = f"internal fault: {type(error).__name__}"
                self.tell(f"witnesses: {self._fault}")
            self._stop.wait(self.every_s)

    def _go_round_and_round(self) -> None:
        """Until it is stopped, or something fails that nobody expected: making the client, for example, with a proxy in
        the environment that cannot be used."""
        with httpx.Client(verify=self.tls, timeout=WITNESS_TIMEOUT_S, follow_redirects=False) as client:
            while not self._stop.is_set():
                self.go_round(client)
                self._fault = ""
                self._stop.wait(self.every_s)

    def go_round(self, client: httpx.Client) -> bool:
        """Ask each witness once, about the last checkpoints of shards that ended and about the newest one. True if a
        quorum has cosigned the newest; what went wrong is told."""
        try:
            for ended in self._ended():
                self._have_cosigned(client, ended, self._left.setdefault(ended.checkpoint.origin, self._new_places()))
            verified = open_checkpoint(self.reader.checkpoint(), [self.verifier])
        except (AuditError, LogError):
            return False  # the log itself says what is wrong with it
        newest = verified.checkpoint
        if newest.origin != self._origin:
            self._origin, self._done = newest.origin, -1
            self._places = self._new_places()
        if newest.size == self._done:
            return True
        if not self._have_cosigned(client, verified, self._places):
            return False
        self._done = newest.size
        return True

    def _new_places(self) -> list[_Place]:
        return [_Place(place.url, place.keys) for place in self._places]

    def _ended(self) -> list[VerifiedCheckpoint]:
        """The last checkpoints of ended shards that no quorum has cosigned, as far as is known. Each is asked about
        once: an outage at the turn must not leave the last records of a half-year without a witness."""
        found = []
        for shard in self.reader.shards().all[:-1]:
            if shard.origin in self._finished:
                continue
            last = open_checkpoint(self.reader.checkpoint(origin=shard.origin), [self.verifier])
            if self._cosigned_size(shard.origin) == last.checkpoint.size:
                self._finished.add(shard.origin)
            else:
                found.append(last)
        return found

    def _cosigned_size(self, origin: str) -> int:
        try:
            note = self.reader.checkpoint(cosigned=True, origin=origin)
        except QueryRefused:
            return -1
        return open_checkpoint(note, [self.verifier]).checkpoint.size

    def _have_cosigned(self, client: httpx.Client, verified: VerifiedCheckpoint, places: Sequence[_Place]) -> bool:
        """True if a quorum has; then it is published."""
        size = verified.checkpoint.size
        for place in places:
            if self._stop.is_set():
                return False
            if place.lines[0] != size:
                self._ask_in_time(client, place, verified)
        note = verified.note + b"".join(place.lines[1] for place in places if place.lines[0] == size)
        try:
            witnessed = self.policy.require_witnessed(note, logs=(self.verifier,))
        except LogError:
            return False
        if witnessed.cosignatures:
            self.publish(size, note)
        return True

    def _ask_in_time(self, client: httpx.Client, place: _Place, verified: VerifiedCheckpoint) -> None:
        """Timeouts are of parts of an answer; this one is of all of it. Who is late is not asked anew meanwhile."""
        if place.asking is not None and place.asking.is_alive():
            return
        place.asking = threading.Thread(
            target=self._ask, args=(client, place, verified), name="audit-witness", daemon=True
        )
        place.asking.start()
        place.asking.join(_WHOLE_ANSWER * WITNESS_TIMEOUT_S)
        if place.asking.is_alive():
            self._say(place, "it does not answer in time")

    def _say(self, place: _Place, trouble: str) -> None:
        if trouble != place.trouble:
            self.tell(f"witness {place.name}: {trouble or 'cosigns again'}")
        place.trouble = trouble

    def _ask(self, client: httpx.Client, place: _Place, verified: VerifiedCheckpoint) -> None:
        trouble = ""
        try:
            self._submit(client, place, verified)
        except WitnessFailed as error:
            trouble = str(error)
        except httpx.TimeoutException:
            trouble = "it does not answer in time"
        except httpx.ConnectError as error:
            trouble = _TLS_FAILED if "CERTIFICATE_VERIFY_FAILED" in str(error) else "it cannot be reached"
        except httpx.HTTPError as error:
            trouble = f"the exchange failed ({type(error).__name__})"
        except (AuditError, LogError) as error:
            trouble = f"the log cannot be read for it ({error.code})"
        except Exception as error:  # nobody else would hear of it
            trouble = f"internal fault: {type(error).__name__}"
        self._say(place, trouble)

    def _submit(self, client: httpx.Client, place: _Place, verified: VerifiedCheckpoint) -> None:
        """One submission, and a second one if the witness says that it saw another size last."""
        newest = verified.checkpoint
        for attempt in range(2):
            proof: Sequence[bytes] = ()
            if 0 < place.seen < newest.size:
                proof = self.reader.consistency(place.seen, newest.size, origin=newest.origin)
            body = encode_submission(Submission(place.seen, tuple(proof), verified.note))
            status, media_type, answer = _post(client, place.url, body)
            if status == 200:
                place.lines = (newest.size, _own_lines(verified.note, answer, place.keys))
                place.seen = newest.size
                return
            if status != 409 or media_type != MEDIA_SIZE or attempt:
                raise WitnessFailed(_refusal(status, answer, newest))
            place.seen = self._size_seen_there(answer, newest)

    def _size_seen_there(self, answer: bytes, newest: Checkpoint) -> int:
        try:
            size = parse_decimal(answer.decode("ascii").removesuffix("\n"))
        except (ValueError, IndexError) as error:
            raise WitnessFailed("it answers with something else than a size") from error
        if size > self.reader.size(origin=newest.origin):
            raise WitnessFailed(
                f"it cosigned {size} records of this log, which now has {newest.size}: this log was rolled back, "
                "or another writes under its name and key"
            )
        if size > newest.size:
            raise WitnessFailed("somebody showed it a newer checkpoint than is published; it is asked again")
        return size


def submission_places(policy: WitnessPolicy) -> list[_Place]:
    """Where to submit, each prefix once. Raises ConfigurationError if the policy's quorum cannot be reached there."""
    places: dict[str, _Place] = {}
    for witness in policy.witnesses.values():
        if witness.url:
            _require_private(witness.url)
            place = places.setdefault(witness.url.rstrip("/"), _Place(witness.url.rstrip("/"), []))
            place.keys.append(witness.key)
    if not places:
        raise ConfigurationError("the witness policy names no witness with a URL, so nobody could be asked to cosign")
    return list(places.values())


def witness_tls(authority: Path | None) -> ssl.SSLContext:
    """TLS towards witnesses: under this authority alone if one is given, else under those of the system."""
    try:
        context = ssl.create_default_context(cafile=None if authority is None else str(authority))
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{authority} cannot be used to know witnesses by: {error.strerror}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _require_private(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, sound = parts.hostname, parts.port != 0 and not (parts.query or parts.fragment or parts.username)
    except ValueError:
        host, sound = None, False
    if not host or not sound or not (parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)):
        raise ConfigurationError(f"a witness is asked at https://HOST[:PORT][/PREFIX] (http on this machine): {url}")


def _post(client: httpx.Client, url: str, body: bytes) -> tuple[int, str, bytes]:
    answer = bytearray()
    deadline = monotonic_ns() + int(2 * WITNESS_TIMEOUT_S * 1e9)
    with client.stream("POST", f"{url}/add-checkpoint", content=body) as response:
        for part in response.iter_raw():
            answer += part
            if len(answer) > MAX_WITNESS_ANSWER:
                raise WitnessFailed("its answer is larger than cosignatures are")
            if monotonic_ns() > deadline:
                raise WitnessFailed("it does not answer in time")
        return response.status_code, response.headers.get("content-type", ""), bytes(answer)


def _own_lines(note: bytes, answer: bytes, keys: Sequence[CosignerKey]) -> bytes:
    """Of an answer, the verified cosignature lines of the witnesses that were asked; at least one."""
    known = {(key.name, key.key_id) for key in keys}
    kept: list[bytes] = []
    try:
        for line in answer.decode().removesuffix("\n").split("\n"):
            if parse_signature_line(line)[:2] in known:
                kept.append(line.encode() + b"\n")
        found = verify_cosignatures(note + b"".join(kept), keys) if kept else ()
    except (LogError, UnicodeDecodeError) as error:
        raise WitnessFailed("its answer is no cosignature that holds") from error
    if not found:
        raise WitnessFailed("its answer has no cosignature under the key that the witness policy names")
    return b"".join(kept)


def _refusal(status: int, answer: bytes, newest: Checkpoint) -> str:
    meaning = {
        403: "it does not know this log's key",
        404: "it does not know this log",
        409: f"it cosigned another tree of {newest.size} records of this log, or another writes under its name",
        422: "it says that this log does not extend what it saw before",
    }
    return meaning.get(status, f"it answers with status {status}")
