"""The command `sealgate` with the audit log's clock ahead, by as many microseconds as a file says at each reading.

For tests of a turn with the host's own processes: only the log's time is another, so that credentials, evidence and
certificates stay what they are. `SEALGATE_LOG_AHEAD` names the file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from audit.log import AuditLog
from sealgate.ambient import now_us
from sealgate.cli import main

AHEAD = "SEALGATE_LOG_AHEAD"


def _ahead_us() -> int:
    return now_us() + int(Path(os.environ[AHEAD]).read_text())


def _open(real: Any) -> Any:
    def open_ahead(*arguments: Any, **options: Any) -> AuditLog:
        log: AuditLog = real(*arguments, **{**options, "clock": _ahead_us})
        return log

    return open_ahead


if __name__ == "__main__":
    AuditLog.open = _open(AuditLog.open)  # type: ignore[method-assign]
    sys.exit(main())
