"""Tokens that are refused although nothing else is wrong with them: `tokens/revoked.toml`.

    [[revoked]]
    jti = "0b1f..."                             # this token
    until = 2026-11-23T08:00:00Z                # then the token is over anyway, and the entry can go
    [[revoked]]
    tenant = "clinic"
    subject = "triage-app"                      # this caller's tokens
    issued_before = 2026-11-22T08:00:00Z        # ... if they were issued before this moment
    reason = "laptop lost"

An entry refuses the tokens that everything in it is true of: `issuer`, `tenant`, `subject` (as they are called here),
`jti`, `issued_before`; of the last three at least one must be there. The file is looked at after each request's
arrival, so a change is effective at once, for remembered tokens too.

Trusts: whoever may write the file. Never: accepts a token while the file cannot be read, or forgets an entry that was
there because the file went away or was emptied: an editor that writes in place does that for a moment.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec

from gateway.authentication.claims import VerifiedToken
from gateway.authentication.watched_files import WatchedFiles
from gateway.errors import Unauthenticated
from gateway.limits import MAX_CLAIM_TEXT, MAX_REASON, MAX_REVOCATIONS, MAX_REVOKED_FILE, MAX_URL
from sealgate.ambient import Clock, now_us
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_NAME
from sealgate.toml_words import in_words

FILE = "revoked.toml"

_Name = Annotated[str, msgspec.Meta(pattern=rf"^[\x21-\x7e]{{1,{MAX_NAME}}}\Z")]
_Time = Annotated[datetime.datetime, msgspec.Meta(tz=True)]


class Revocation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One entry."""

    jti: Annotated[str, msgspec.Meta(pattern=rf"^[\x20-\x7e]{{1,{MAX_CLAIM_TEXT}}}\Z")] | None = None
    issuer: Annotated[str, msgspec.Meta(pattern=rf"^[^\x00-\x1f\x7f-\x9f]{{1,{MAX_URL}}}\Z")] | None = None
    tenant: _Name | None = None
    subject: _Name | None = None
    issued_before: _Time | None = None
    until: _Time | None = None
    reason: Annotated[str, msgspec.Meta(pattern=rf"^[^\x00-\x1f\x7f-\x9f]{{0,{MAX_REASON}}}\Z")] = ""

    def __post_init__(self) -> None:
        if self.jti is None and self.subject is None and self.issued_before is None:
            raise ValueError("an entry needs a jti, a subject or issued_before")
        if self.subject is not None and self.tenant is None:
            raise ValueError("a subject needs its tenant: other tenants may have one of the same name")

    def applies_to(self, token: VerifiedToken) -> bool:
        """Whether everything that it says is true of the token."""
        return (
            self.jti in (None, token.jti)
            and self.issuer in (None, token.issuer)
            and self.tenant in (None, token.tenant)
            and self.subject in (None, token.subject)
            and (self.issued_before is None or token.iat < self.issued_before.timestamp())
        )

    def is_over(self, now: int) -> bool:
        """Whether `until` has passed."""
        return self.until is not None and now >= self.until.timestamp() * 1_000_000


class RevocationFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    revoked: Annotated[tuple[Revocation, ...], msgspec.Meta(max_length=MAX_REVOCATIONS)] = ()


def parse_revocations(data: bytes, *, name: str) -> tuple[Revocation, ...]:
    """The entries of a file. Raises ConfigurationError."""
    if len(data) > MAX_REVOKED_FILE:
        raise ConfigurationError(f"{name}: larger than {MAX_REVOKED_FILE} bytes")
    try:
        return msgspec.convert(tomllib.loads(data.decode()), RevocationFile).revoked
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"{name}: {in_words(error, RevocationFile)}") from error


class Revocations:
    """What is revoked now. One per process; a question costs a stat, and a search only after a change."""

    def __init__(self, path: Path, *, clock: Clock = now_us) -> None:
        self._path = path
        self._file = WatchedFiles(path, files_max=1, bytes_max=MAX_REVOKED_FILE, clock=clock)
        self._clock = clock
        self._there = self._unreadable = False
        self._generation = 1
        self._by_jti: dict[str, list[Revocation]] = {}
        self._others: list[Revocation] = []

    def require_accepted(self, token: VerifiedToken, *, accepted_by: int = 0) -> int:
        """The generation of the file that lets the token pass; hand it in when asking again. Raises Unauthenticated.

        A token that passed once passes as long as the file is the same: an entry that ends refuses fewer, not more.
        """
        try:
            self._refresh()
        except (OSError, ValueError, ConfigurationError):
            self._unreadable = True
        if self._unreadable:
            raise Unauthenticated("revocations-unreadable")
        if accepted_by != self._generation:
            self._search(token)
        return self._generation

    def _search(self, token: VerifiedToken) -> None:
        for entries in (self._by_jti.get(token.jti, ()), self._others):
            for entry in entries:
                if entry.applies_to(token) and not entry.is_over(self._clock()):
                    raise Unauthenticated("token-revoked")

    def _refresh(self) -> None:
        contents = self._file.changed()
        if contents is None:
            return
        self._unreadable = True  # until it is read whole; what is wrong is not read again before it changes
        if self._there and not contents:
            raise FileNotFoundError  # it was there: its absence now is a fault, not an amnesty
        data = contents.get(self._path, b"")
        if not data and (self._by_jti or self._others):
            raise ValueError("emptied")
        self._there = bool(contents)
        self._take(parse_revocations(data, name=str(self._path)))
        self._unreadable = False

    def _take(self, entries: Iterable[Revocation]) -> None:
        self._by_jti, self._others = {}, []
        for entry in entries:
            if entry.jti is not None:
                self._by_jti.setdefault(entry.jti, []).append(entry)
            else:
                self._others.append(entry)
        self._generation += 1
