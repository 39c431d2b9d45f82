"""Bundles of several logs together: each host has a log of its own, and one question may be about all of them.

Every bundle is verified by itself (`verifier`), against what was kept or handed in of its own log; nothing of one log
proves anything of another. What is looked at together is whether something is left out: a log that the auditor names,
or the trust file, and of which no bundle is there, and a receipt or a kept checkpoint of such a log.

Trusts: what `LogTrust` says, for every log alike. Never: calls several logs verified while one of them is missing
without saying so; reads which log a bundle is of from anything but what the verifier then checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sealgate.errors import ConfigurationError, DecodeError, LogError, ReceiptError
from sealgate.transparency.bundle import Bundle
from sealgate.transparency.chain import Around, Link, links, order_of
from sealgate.transparency.notes import Checkpoint, open_checkpoint
from sealgate.transparency.pruned import KIND as PRUNED
from sealgate.transparency.pruned import SHARD
from sealgate.transparency.receipt import verify_receipt
from sealgate.transparency.record import Record, parse_leaf
from sealgate.transparency.shards import belongs_to, is_later, log_of
from sealgate.transparency.verifier import LogTrust, Report, verify_bundle


@dataclass(frozen=True, kw_only=True)
class Given:
    """Beside the bundles: receipts, checkpoints kept from earlier audits, and cosigned ones, of any of the logs."""

    receipts: tuple[bytes, ...] = ()
    kept: tuple[bytes, ...] = ()
    cosigned: tuple[bytes, ...] = ()


@dataclass(frozen=True, kw_only=True)
class VerifiedBundle:
    """One of the bundles, and what came of it."""

    path: Path
    report: Report

    @property
    def origin(self) -> str:
        """Which log it is proven to be of; "" if it proves nothing."""
        return self.report.checkpoint.origin if self.report.checkpoint is not None else ""


@dataclass(frozen=True, kw_only=True)
class SeveralReport:
    """What came of all of them. `missing` names logs without a bundle, `unused` what belongs to none of the bundles,
    `links` how shards of one log follow each other."""

    bundles: tuple[VerifiedBundle, ...]
    strict: bool
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()

    @property
    def ok(self) -> bool:
        """Every bundle holds, and shards follow each other; in strict mode, also nothing is missing and nothing was
        left unused."""
        states = {link.verdict.status for link in self.links}
        if "failed" in states:
            return False
        whole = not (self.missing or self.unused or "skipped" in states)
        return all(bundle.report.ok for bundle in self.bundles) and (whole or not self.strict)


def verify_bundles(
    paths: Sequence[Path],
    trust: LogTrust,
    *,
    strict: bool = False,
    given: Given | None = None,
    logs: Sequence[str] = (),
) -> SeveralReport:
    """Check bundles of one or several logs. `logs` names those that must be there (none: all that `trust` knows).

    Raises ConfigurationError for a file that cannot be read, a trust without keys, or a log that it does not know.
    """
    known = tuple(dict.fromkeys(verifier.name for verifier in trust.verifiers))
    for name in logs:
        if name not in known:
            raise ConfigurationError(f"no log key of the trust file is for '{name}'; there are: {', '.join(known)}")
    sorting = _Sorting(trust, given or Given())
    sizes = [_tree_said(path) for path in paths]
    origins = [origin for origin, _ in sizes]
    verified: dict[int, VerifiedBundle] = {}
    around = [Around(told=told) for told in _told(paths, origins)]
    for number in sorted(range(len(paths)), key=lambda one: order_of(origins[one])):  # a shard after the one before it
        path, origin = paths[number], origins[number]
        own = replace(trust, kept_checkpoint=sorting.kept_of(origin), cosigned_checkpoint=sorting.cosigned_of(origin))
        around[number].held = _held(origin, around)
        around[number].watched = frozenset(size for said, size in sizes if said == origin)
        around[number].before = _grown_before(origin, around)
        report = verify_bundle(path, own, strict, sorting.receipts_of(origin), around=around[number])
        verified[number] = VerifiedBundle(path=path, report=report)
    bundles = tuple(verified[number] for number in range(len(paths)))
    return SeveralReport(
        bundles=bundles,
        strict=strict,
        missing=missing_logs(logs or known, [bundle.origin for bundle in bundles]),
        unused=sorting.unused({*filter(None, origins)}),
        links=tuple(links(known, around)),
    )


def _told(paths: Sequence[Path], origins: Sequence[str]) -> list[list[Record]]:
    """For each bundle, what bundles of later shards announce to be pruned of it. (They are verified afterwards, and one
    that does not hold is a failure of the whole.)"""
    said: dict[str, list[Record]] = {}
    if len(set(origins)) > 1:
        for path, origin in zip(paths, origins, strict=True):
            for record in _announcements(path) if origin else ():
                shard = record.detail.get(SHARD, "")
                if belongs_to(shard, log_of(origin)) and is_later(origin, shard) and record.log == origin:
                    said.setdefault(shard, []).append(record)
    return [said.get(origin, []) for origin in origins]


def _announcements(path: Path) -> Iterator[Record]:
    try:
        with path.open("rb") as stream:
            for leaf in Bundle(stream).items():
                if isinstance(leaf, bytes) and PRUNED.encode() in leaf:
                    record = parse_leaf(leaf)
                    if record.kind == PRUNED and SHARD in record.detail:
                        yield record
    except (OSError, DecodeError):  # its own verification says so
        return


def _held(origin: str, around: Sequence[Around]) -> frozenset[str]:
    """Holds over the whole log that the newest shard before this one left in force."""
    before = [one.gone for one in _before(origin, around) if one.gone is not None and one.to_its_end]
    return before[-1].held if before else frozenset()


def _grown_before(origin: str, around: Sequence[Around]) -> Checkpoint | None:
    """Where the newest shard before this one ended, if it is shown that it grew out of a kept checkpoint."""
    before = [one for one in _before(origin, around) if one.sound and one.grown and one.ended]
    return before[-1].checkpoint if before else None


def _before(origin: str, around: Sequence[Around]) -> list[Around]:
    """What was verified of earlier shards of the same log, in their order."""
    there = [(one.checkpoint.origin, one) for one in around if one.checkpoint is not None]
    earlier = [(of, one) for of, one in there if belongs_to(of, log_of(origin)) and is_later(origin, of)]
    return [one for _, one in sorted(earlier, key=lambda pair: order_of(pair[0]))]


def missing_logs(wanted: Iterable[str], origins: Iterable[str]) -> tuple[str, ...]:
    """Which of the logs none of these origins is a tree of."""
    there = [origin for origin in origins if origin]
    return tuple(name for name in wanted if not any(belongs_to(origin, name) for origin in there))


def _tree_said(path: Path) -> tuple[str, int]:
    try:
        with path.open("rb") as stream:
            manifest = Bundle(stream).manifest
            return manifest.origin, manifest.size
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except DecodeError:
        return "", 0


class _Sorting:
    """Which of what was handed in is of which log. What does not verify belongs to every bundle: there it fails."""

    def __init__(self, trust: LogTrust, given: Given) -> None:
        self._receipts = [(_origin_of_receipt(one, trust), one) for one in given.receipts]
        self._kept = [(_origin_of_note(one, trust), one) for one in given.kept]
        self._cosigned = [(_origin_of_note(one, trust), one) for one in given.cosigned]
        self._fallback = trust

    def receipts_of(self, origin: str) -> list[bytes]:
        return [one for of, one in self._receipts if of in ("", origin)]

    def kept_of(self, origin: str) -> bytes | None:
        return _one(self._kept, origin, otherwise=self._fallback.kept_checkpoint, what="kept checkpoints")

    def cosigned_of(self, origin: str) -> bytes | None:
        return _one(self._cosigned, origin, otherwise=self._fallback.cosigned_checkpoint, what="cosigned checkpoints")

    def unused(self, origins: set[str]) -> tuple[str, ...]:
        """What is of a log of which there is no bundle."""
        named = (("receipt", self._receipts), ("kept checkpoint", self._kept), ("cosigned checkpoint", self._cosigned))
        return tuple(
            f"{what} {number} is of {of}, of which no bundle is there"
            for what, things in named
            for number, (of, _) in enumerate(things, 1)
            if of and of not in origins
        )


def _one(things: Sequence[tuple[str, bytes]], origin: str, *, otherwise: bytes | None, what: str) -> bytes | None:
    own = [one for of, one in things if of in ("", origin)]
    if len(own) > 1:
        raise ConfigurationError(f"there are several {what} for {origin}: give one of each log")
    return own[0] if own else otherwise


def _origin_of_receipt(receipt: bytes, trust: LogTrust) -> str:
    try:
        return verify_receipt(receipt, trust.verifiers).checkpoint.origin
    except ReceiptError:
        return ""


def _origin_of_note(note: bytes, trust: LogTrust) -> str:
    try:
        return open_checkpoint(note, trust.verifiers).checkpoint.origin
    except LogError:
        return ""
