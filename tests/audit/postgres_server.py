"""A real PostgreSQL server of the tests' own: Debian's binaries, a temporary folder, one UNIX socket, fsync on.

It runs as an unprivileged user when the tests run as root (PostgreSQL refuses root). Databases are made and dropped one
a test. Only who may enter the folder reaches the socket, so `trust` lets a test connect as any role.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name.split(".")[0]))
HOW_TO_INSTALL = (
    "NEEDS PostgreSQL 15 or newer: nothing of the log in PostgreSQL was tested. Install it with "
    "`apt-get install --no-install-recommends postgresql` (no service needs to run)"
)


def missing() -> str:
    """Why no server can be started here; "" if one can."""
    if not BINARIES or int(BINARIES[-1].parent.name.split(".")[0]) < 15:
        return HOW_TO_INSTALL
    return ""


class PostgresServer:
    """One cluster. `start` and `stop` may be repeated; `remove` ends it."""

    def __init__(self) -> None:
        self._bin = BINARIES[-1]
        self._user = _unprivileged()
        self.folder = Path(tempfile.mkdtemp(prefix="sealgate-pg-", dir="/tmp"))
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        self._data = self.folder / "data"
        self._numbers = itertools.count(1)
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        self.start()

    def start(self, *settings: str) -> None:
        wanted = ("fsync=on", "listen_addresses=", f"unix_socket_directories={self.folder}", "max_connections=90")
        options = " ".join(f"-c {setting}" for setting in (*wanted, *settings))
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", mode, "stop")

    def remove(self) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: str) -> None:
        who: dict[str, Any] = {}
        if self._user is not None:
            who = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        subprocess.run(
            [self._bin / program, *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
            **who,
        )

    # Databases -------------------------------------------------------------------------------------------------------

    def url(self, database: str, user: str = "postgres") -> str:
        return f"postgresql+psycopg://{user}@/{database}?host={self.folder}"

    def connect(self, database: str = "postgres", user: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(host=str(self.folder), dbname=database, user=user, autocommit=True)

    def create(self, template: str = "template0") -> str:
        name = f"log{next(self._numbers)}"
        self.admin(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        self.admin(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def admin(self, statement: str) -> None:
        with self.connect() as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def wait_until_up(self) -> None:
        """After a crash of a server process the others are restarted too."""
        deadline = time.monotonic() + 30
        while True:
            try:
                self.connect().close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "the server did not come back"
                time.sleep(0.05)
            else:
                return


def _unprivileged() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("no unprivileged user to run PostgreSQL as")
