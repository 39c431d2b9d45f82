"""Step 7: from a grant and an opaque sealed request to an `Admitted` request, or one refusal.

    1  the grant has not expired
    2  the sealed request's header parses
    3  its key is held and not gone
    4  its encapsulation was not opened before
    5  it opens
    6  the inside is one Binary HTTP request
    7  its Date is within the window
    8  it is meant for this deployment
    9  its target and purpose equal the grant's
    10 it is bound to the credential that the gateway verified

`admission` is all ten. For a single-use process they are divided: the worker, who has keys and replay sets, runs
`accept` (1 to 4), and the process, who is to see the plaintext, runs `unseal` (5) and `inspect` (6 to 10).

Trusts: the grant (the host made it after `authorized` became durable). Never: tells the caller which check failed; the
reason goes to the record only.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Generator
from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import unquote

import msgspec

from sealgate.errors import DecodeError, OpenError, TruncatedError, UnknownKeyError
from sealgate.protocol import bhttp
from sealgate.protocol.frames import Grant
from sealgate.protocol.hpke import Decapsulator
from sealgate.protocol.ohttp import ResponseSealer, SealedRequest, open_request
from sealgate.protocol.secrets import Plaintext
from secure_runtime.errors import TurnedAway
from secure_runtime.worker.keys import HeldKey, KeyRing

_TARGET = re.compile(r"/v2/models/([^/?#]{1,384})(?:/versions/([^/?#]{1,384}))?(/infer|/explain|/ready|/stats)?\Z")
_SERVER = {"/v2": "server", "/v2/health/live": "live", "/v2/health/ready": "server-ready"}


class Target(msgspec.Struct, frozen=True):
    """What an inner request asks for: operation `infer`, `explain` or `read-model`. What of a model can be read is its
    "metadata", "ready" and "stats"; "server", "live" and "server-ready" name none: a grant to read any model will do.
    """

    operation: str
    what: str
    model: str  # "" for a question about the server
    version: str  # "" when the request does not say


class Admitted(msgspec.Struct, frozen=True):
    """A request that passed all ten checks; made only by `inspect`, from what `accept` and `unseal` let through.

    Holding one proves: it was opened once, under a current key, by the one grant that allows exactly this. It does not
    prove that the body makes sense: the engine parses it. The privacy of constructors stops mistakes, not hostile code
    in the same process; the process boundary does that.
    """

    grant: Grant
    target: Target
    request: bhttp.Request  # its body is a view of `plaintext`
    sealer: ResponseSealer
    plaintext: Plaintext


def parse_target(method: str, path: str) -> Target:
    """Which operation on which model a request line means. Raises TurnedAway for anything that is not served."""
    if method == "GET" and path in _SERVER:
        return Target("read-model", _SERVER[path], "", "")
    match = _TARGET.match(path)
    if match is None:
        raise TurnedAway("target-unknown")
    name, version, action = unquote(match[1]), unquote(match[2] or ""), match[3] or ""
    if method == "POST" and action in ("/infer", "/explain"):
        return Target(action[1:], action[1:], name, version)
    if method == "GET" and action in ("", "/ready", "/stats"):
        return Target("read-model", action[1:] or "metadata", name, version)
    raise TurnedAway("target-unknown")


def _require_fresh(date: str, *, now_us: int, window_s: int) -> None:
    try:
        moment = parsedate_to_datetime(date)
        age_s = now_us / 1e6 - (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        raise TurnedAway("date-missing") from None
    if abs(age_s) > window_s:
        raise TurnedAway("date-outside-window")


class Accepted(msgspec.Struct, frozen=True):
    """A request that passed checks 1 to 4. Nothing of it was opened; `key` is the one that it names."""

    sealed: SealedRequest
    key: HeldKey


def _addressed(grant: Grant, raw: bytes, media_type: str, *, keys: KeyRing, now_us: int) -> Accepted:
    """Checks 1 to 3; raises TurnedAway."""
    if now_us >= grant.expires_us:  # 1
        raise TurnedAway("grant-expired", problem="timed-out")
    try:
        sealed = SealedRequest.parse(raw, media_type)  # 2
        key = keys.find(sealed)  # 3
    except UnknownKeyError:
        raise TurnedAway("key-unknown", problem="unknown-key") from None
    except DecodeError:
        raise TurnedAway("malformed") from None
    return Accepted(sealed, key)


def accept(grant: Grant, raw: bytes, media_type: str, *, keys: KeyRing, now_us: int) -> Accepted:
    """Checks 1 to 4; raises TurnedAway. Who goes on marks the encapsulation as used."""
    accepted = _addressed(grant, raw, media_type, keys=keys, now_us=now_us)
    accepted.key.replay.require_new(accepted.sealed.enc)  # 4
    return accepted


def unseal(sealed: SealedRequest, private: Decapsulator) -> tuple[Plaintext, ResponseSealer]:
    """Check 5; raises TurnedAway."""
    try:
        return open_request(sealed, private)
    except UnknownKeyError:
        raise TurnedAway("key-unknown", problem="unknown-key") from None
    except TruncatedError:
        raise TurnedAway("truncated") from None
    except OpenError:
        raise TurnedAway("cannot-open") from None
    except DecodeError:
        raise TurnedAway("malformed") from None


def inspect(
    grant: Grant, opened: tuple[Plaintext, ResponseSealer], *, audience: str, now_us: int, date_window_s: int
) -> Admitted:
    """Checks 6 to 10; raises TurnedAway, and the plaintext is then wiped."""
    plaintext, sealer = opened
    try:
        request = bhttp.decode_request(plaintext.view())  # 6
        target = _judge(request, grant, audience=audience, now_us=now_us, date_window_s=date_window_s)
    except DecodeError as why:
        plaintext.wipe()
        raise TurnedAway("field-repeated" if why.code == "field-repeated" else "malformed") from None
    except TurnedAway:
        plaintext.wipe()
        raise
    return Admitted(grant=grant, target=target, request=request, sealer=sealer, plaintext=plaintext)


def admission(
    grant: Grant, raw: bytes, media_type: str, *, keys: KeyRing, audience: str, now_us: int, date_window_s: int
) -> Generator[None, None, Admitted]:
    """Run the ten checks in order; raises TurnedAway with the reason for the record.

    It pauses before it opens and before it looks inside: one step for many requests is faster than all steps for each.
    Check 4 comes after the pause, or a copy in the same sweep would pass it.
    """
    accepted = _addressed(grant, raw, media_type, keys=keys, now_us=now_us)
    yield
    accepted.key.replay.require_new(accepted.sealed.enc)  # 4
    opened = unseal(accepted.sealed, accepted.key.private)
    accepted.key.replay.remember(accepted.sealed.enc)
    yield
    return inspect(grant, opened, audience=audience, now_us=now_us, date_window_s=date_window_s)


def _judge(request: bhttp.Request, grant: Grant, *, audience: str, now_us: int, date_window_s: int) -> Target:
    """Checks 7 to 10: the opened request is for us, now, and exactly what the grant allows."""
    _require_fresh(request.field("date") or "", now_us=now_us, window_s=date_window_s)  # 7
    if request.scheme != "https" or request.authority != audience:  # 8
        raise TurnedAway("audience-mismatch")
    target = parse_target(request.method, request.path)  # 9
    if target.model not in ("", grant.model):
        raise TurnedAway("model-mismatch")
    if target.operation != grant.operation:
        raise TurnedAway("operation-mismatch")
    if (request.field("purpose") or "") != grant.purpose:
        raise TurnedAway("purpose-mismatch")
    binding = request.field("credential-binding")  # 10
    if not binding:
        raise TurnedAway("credential-unbound")
    if not hmac.compare_digest(binding.encode(), grant.credential_binding.encode()):
        raise TurnedAway("credential-mismatch")
    return target
