"""`policy-history/`: every policy that was in force, whole and read-only, and which of them is in force now.

    DIGEST/              the files of one version, and MANIFEST.json: the listing that DIGEST is of
    scenarios-DIGEST/    the scenario files that a version passed when it was applied
    current              which version is in force, and how it came to be (JSON; replaced by renaming)
    lock                 held shared by the runtime host, exclusively for the moment in which nobody else may change it;
                         open to the folder's owner alone

A version is written beside its place, made durable and moved there, so it is there whole or not at all; what is there
is never written again. When it came into force is in the audit log, and only there.

Trusts: whoever may write the folder, to the extent of its digests: a version that is not what its name says does not
load. Never: deletes a version.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from policy.errors import PolicyFileError
from policy.limits import MAX_CURRENT
from policy.store import (
    LISTING_FILE,
    PolicyFiles,
    digest_of,
    digest_of_scenarios,
    listing,
    load_files,
    read_contents,
    read_scenario_folder,
    read_scenarios,
)
from sealgate.durable_files import sync_folder, write_new
from sealgate.protocol.administration import ApplyPolicy, Digest, Note
from sealgate.protocol.canonical import canonical_json

_DIGEST = re.compile(r"[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]{8,64}")
_READABLE = 0o444  # who may reach the folder may read it: the gateway's user is another than the runtime's
_ENTERABLE = 0o755
_OWNERS = 0o600


class InForce(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `current` says. A policy that was never applied (the first one) has passed nothing."""

    digest: Digest
    note: Note = ""
    scenarios: int = 0
    scenarios_digest: str = ""

    @classmethod
    def applied(cls, frame: ApplyPolicy) -> InForce:
        """As it was asked for."""
        return cls(
            digest=frame.digest,
            note=frame.note,
            scenarios=frame.scenarios,
            scenarios_digest=frame.scenarios_digest,
        )


class PolicyHistory:
    """One deployment's `policy-history/`. Holds no state: the folder does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Where that version is, or would be."""
        if not _DIGEST.fullmatch(digest):
            raise PolicyFileError("a policy's digest is 64 hexadecimal digits")
        return self.folder / digest

    def scenarios_path(self, digest: str) -> Path:
        """Where those scenario files are, or would be."""
        return self.folder / f"scenarios-{self.path(digest).name}"

    # Versions --------------------------------------------------------------------------------------------------------

    def store(self, source: Path) -> str:
        """Keep the policy directory `source` as it is now, with its scenarios; returns its digest.

        Raises PolicyFileError. Doing so again changes nothing.
        """
        contents, scenarios = read_contents(source), read_scenarios(source)
        digest = digest_of(contents)
        with _writing(self.folder):
            self._keep(self.path(digest), {**contents, LISTING_FILE: listing(contents)})
            if scenarios:
                self._keep(self.scenarios_path(digest_of_scenarios(scenarios)), scenarios)
        self.require_whole(digest)
        if scenarios:
            self.scenarios(digest_of_scenarios(scenarios))
        return digest

    def require_whole(self, digest: str) -> Path:
        """Where that version is; raises PolicyFileError unless it is there and what its name says, to the byte."""
        path = self.path(digest)
        if not path.is_dir():
            raise PolicyFileError(f"{self.folder} has no version {digest[:16]}...")
        contents = read_contents(path, stored=True)
        try:
            said = (path / LISTING_FILE).read_bytes()
        except OSError as error:
            raise PolicyFileError(f"{path / LISTING_FILE} cannot be read: {error.strerror}") from error
        if digest_of(contents) != digest or listing(contents) != said:
            raise PolicyFileError(
                f"{path}: has been changed since it was stored; put its files back as they were, or move it away and "
                "apply the policy anew"
            )
        return path

    def load_files(self, digest: str) -> PolicyFiles:
        """What that version says, parsed; raises PolicyFileError unless it is whole."""
        return load_files(self.require_whole(digest), digest=digest)

    def find(self, start: str) -> str:
        """The digest of the one stored version whose digest begins so; raises PolicyFileError."""
        found = [digest for digest in self.versions() if _HEX.fullmatch(start) and digest.startswith(start)]
        if len(found) != 1:
            what = "more than one version" if found else "no version"
            raise PolicyFileError(f"{self.folder} has {what} whose digest begins with {start[:64]!r}")
        return found[0]

    def versions(self) -> list[str]:
        """The digests of the stored versions, in order of digest."""
        if not self.folder.is_dir():
            return []
        with _reading(self.folder):
            return sorted(item.name for item in self.folder.iterdir() if _DIGEST.fullmatch(item.name))

    def _keep(self, place: Path, contents: dict[str, bytes]) -> None:
        if place.is_dir():
            return
        draft = Path(tempfile.mkdtemp(prefix=".new-", dir=self.folder))
        try:
            for name, data in contents.items():
                write_new(draft / name, data, mode=_READABLE)
            draft.chmod(_ENTERABLE)
            sync_folder(draft)
            draft.rename(place)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            if not place.is_dir():  # somebody else may have kept the same in the meantime
                raise
        sync_folder(self.folder)

    def scenarios(self, digest: str) -> dict[str, bytes]:
        """The scenario files with that digest; raises PolicyFileError if they are not there, or changed."""
        contents = read_scenario_folder(self.scenarios_path(digest))
        if digest_of_scenarios(contents) != digest:
            raise PolicyFileError(f"{self.scenarios_path(digest)}: has been changed since it was stored")
        return contents

    # Which one ------------------------------------------------------------------------------------------------------

    @property
    def current_file(self) -> Path:
        return self.folder / "current"

    def current(self) -> InForce | None:
        """What is in force; None in a deployment that has not been started yet. Raises PolicyFileError."""
        path = self.current_file
        try:
            with path.open("rb") as file:
                data = file.read(MAX_CURRENT + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PolicyFileError(f"{path} cannot be read: {error.strerror}") from error
        try:
            return msgspec.json.decode(data, type=InForce)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise PolicyFileError(
                f"{path} does not say which policy is in force; apply one: sealgate policy apply"
            ) from error

    def current_writer(self) -> int:
        """The user who wrote `current`."""
        with _reading(self.folder):
            return self.current_file.stat().st_uid

    def replace_current(self, value: InForce) -> None:
        """Name another version, durably and in one step."""
        with _writing(self.folder):
            draft = Path(tempfile.mkdtemp(prefix=".new-", dir=self.folder))
            try:
                write_new(draft / "current", canonical_json(value) + b"\n", mode=_READABLE)
                (draft / "current").rename(self.current_file)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            sync_folder(self.folder)

    # Who may change it -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """For the life of a runtime host: nobody else changes what is in force. Waits for who does so now."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def change_offline(self) -> Iterator[None]:
        """While no runtime host runs; raises PolicyFileError if one does, and it will not start in here."""
        try:
            with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
                yield
        except BlockingIOError as error:
            raise PolicyFileError("a runtime host is starting or stopping now; try again in a moment") from error

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with _writing(self.folder):
            self.folder.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(self.folder / "lock", os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            # Who can open it can hold it, and so keep a host from starting: not whoever may read the folder.
            with contextlib.suppress(PermissionError):  # root made it, and gave it away
                os.fchmod(handle, _OWNERS)
                os.fchown(handle, self.folder.stat().st_uid, -1)
            fcntl.flock(handle, how)
            yield
        finally:
            os.close(handle)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        raise PolicyFileError(f"{error.filename or folder} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PolicyFileError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
