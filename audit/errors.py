"""What the log raises on purpose.

SealgateError
├── ConfigurationError
│   └── LogInUse            another writer holds the log, or the file is another log
├── LogError (verification)
│   └── LogDamaged          the stored log contradicts itself; the writer refuses to start
└── AuditError
    ├── LogUnavailable      nothing can be recorded now; carries when to try again
    ├── AppendRefused       this one record is not fit to be appended
    ├── QueryRefused        a filter, cursor, limit, range or name that cannot be answered
    └── PrivacyRefused      an erasure, hold or pruning that cannot be done as asked
"""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError

from sealgate.errors import ConfigurationError, LogError, SealgateError


class AuditError(SealgateError):
    """Root of what concerns one call, not the whole log."""

    code = "audit"


class LogUnavailable(AuditError):
    """Nothing can be recorded, or nothing that would allow inference.

    Codes: `log-failed` (sticky until restart), `log-closed`, `disk-reserve`, `queue-full`, `reader` (the file cannot be
    read now), `reader-busy` (the query ran too long), `not-published` (no signed checkpoint covers the range yet).
    """

    code = "log-unavailable"

    def __init__(self, message: str, *, code: str, retry_after_s: int) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class AppendRefused(AuditError):
    """The record breaks a rule of the log. Nothing was written; the log goes on.

    Codes: `record-malformed`, `grant-not-open` (an end without its beginning, or a second end), `end-differs` (an end
    that names another caller, purpose or index than its beginning).
    """

    code = "append-refused"


class QueryRefused(AuditError):
    """The question cannot be answered as asked. Codes: `cursor`, `limit`, `filter`, `range`, `not-found`."""

    code = "query"


class PrivacyRefused(AuditError):
    """An erasure, hold, release or pruning that changes nothing and is no record.

    Codes: `subject-unknown`, `hold-exists`, `hold-unknown`, `too-many-holds`, `pruning-under-way`, `nothing-due`,
    `not-due`.
    """

    code = "privacy"


class LogInUse(ConfigurationError):
    """Another writer holds this log, or the file belongs to another origin or a newer release."""

    code = "log-in-use"


class LogDamaged(LogError):
    """What is stored contradicts itself or the newest signed checkpoint. Needs a person, never a retry."""

    code = "log-damaged"


def reason_of(error: BaseException) -> str:
    """A stable word for operators: the database's name of the error, or the exception's own; never its text."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(original, "sqlite_errorname", "") or getattr(original, "code", "") or type(original).__name__)
