"""The command `sealgate` as a runtime host that kills itself in the middle of a change of models: when the list of what
is unloaded stands in its file and nothing is on record ("kept"), or when the record is durable and the new worker not
yet published ("recorded")."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from sealgate.cli import main
from secure_runtime.host import repository
from secure_runtime.host.fleet import Fleet

KILLED = "SEALGATE_TEST_KILLED"

_keep = repository.keep_withheld


def _kept_and_killed(*arguments: Any, **more: Any) -> None:
    _keep(*arguments, **more)
    os.kill(os.getpid(), signal.SIGKILL)


async def _killed(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if os.environ[KILLED] == "kept":
        repository.keep_withheld = _kept_and_killed
    else:
        Fleet._put_in_force = _killed  # type: ignore[method-assign]
    sys.exit(main())
