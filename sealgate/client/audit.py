"""The auditor's client: reads the log over the gateway's API and checks what can be checked about each answer.

Records come as the exact leaf bytes: they are parsed strictly, and `prove` shows that one stands in the tree behind a
signed checkpoint. A filter's answer is not proven complete by that; an exported range is (`sealgate audit verify`).

Trusts: the trust file's log keys. Never: takes a record or a checkpoint on the gateway's word where a proof exists.
Long, because it is the whole of the auditors' API on one page.
"""

from __future__ import annotations

import base64
import binascii
import copy
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from sealgate.client.credentials import CertificateSource, Credential, TokenSource, take_certificate, take_token
from sealgate.client.dpop import DpopKey, Prover
from sealgate.client.errors import ServiceRefused
from sealgate.client.problems import MAX_PROBLEM, read_problem
from sealgate.client.results import reaching
from sealgate.client.transport import DEFAULT_TIMEOUT, TrustSource, open_trust, reading_proxy, tls_context
from sealgate.errors import DecodeError, LogError
from sealgate.limits import MAX_LEAF, MAX_NAME, MAX_NOTE, MAX_PROOF_HASHES, MAX_RECEIPT
from sealgate.transparency.carried import PREVIOUS_ORIGIN, PREVIOUS_ROOT, PREVIOUS_SIZE, begins_shard
from sealgate.transparency.cose_receipt import build_cose_receipt, verify_cose_receipt
from sealgate.transparency.exports.formats import ExportFormat
from sealgate.transparency.exports.part import ExportLines
from sealgate.transparency.merkle import leaf_hash, verify_consistency, verify_inclusion
from sealgate.transparency.notes import VerifiedCheckpoint, open_checkpoint
from sealgate.transparency.published import open_published
from sealgate.transparency.receipt import verify_receipt
from sealgate.transparency.record import Record, parse_leaf
from sealgate.transparency.reports.form import Report, require_own_word
from sealgate.transparency.reports.question import Question
from sealgate.transparency.reports.reviewing import ReviewStatement
from sealgate.transparency.shards import belongs_to, is_later

MAX_PAGE = 1000
MAX_EMPTY_PAGES = 1000  # in a row: a page looks at a part of the log, and a service must not lead on for ever
MAX_LOGS = 1000
MAX_EXPORT = 4 * 1024**3
_MAX_ANSWER = MAX_PAGE * (MAX_LEAF + 64) + 4096

_Shape = TypeVar("_Shape")


class _Row(msgspec.Struct):
    index: int
    record: msgspec.Raw


class _Page(msgspec.Struct):
    records: list[_Row]
    tree_size: int
    cursor: str | None = None


class _HoldRow(msgspec.Struct):
    placed: _Row
    released: _Row | None = None


class _Holds(msgspec.Struct):
    holds: list[_HoldRow]
    cursor: str | None = None


class _Erasures(msgspec.Struct):
    erasures: list[_Row]
    tree_size: int
    cursor: str | None = None


class _Proof(msgspec.Struct):
    hashes: list[str]


class ServedShard(msgspec.Struct, frozen=True, kw_only=True):
    """One tree of a log, by its origin, and how many records it has."""

    origin: str
    size: int


class ServedLog(msgspec.Struct, frozen=True, kw_only=True):
    """A log that the service says it reads: its own host's, or another's. Its word, until something is proven."""

    origin: str
    own: bool
    reachable: bool
    size: int | None = None
    reason: str = ""
    shards: tuple[ServedShard, ...] = ()


class _Logs(msgspec.Struct):
    logs: list[ServedLog]


@dataclass(frozen=True)
class AuditEntry:
    """A leaf and where the gateway says that it stands. `AuditClient.prove` shows whether it does."""

    index: int
    leaf: bytes
    record: Record


@dataclass(frozen=True)
class AuditPage:
    """Some records. `cursor` asks for the next ones of the same snapshot of `tree_size` records; None at the end."""

    entries: tuple[AuditEntry, ...]
    cursor: str | None
    tree_size: int


@dataclass(frozen=True)
class ListedHold:
    """A legal hold: the record that placed it, and the one that released it, if the service found one."""

    placed: AuditEntry
    released: AuditEntry | None

    @property
    def name(self) -> str:
        return self.placed.record.reason


class AuditClient:
    """Reads with an auditor's credential. Every call is itself put on record by the service."""

    def __init__(
        self,
        trust: TrustSource,
        *,
        token: TokenSource | None = None,
        certificate: CertificateSource = None,
        dpop_key: DpopKey | None = None,
        proxy: str | httpx.URL | httpx.Proxy | None = None,
        trust_env: bool = True,
        timeout: httpx.Timeout | float = DEFAULT_TIMEOUT,
        outer: httpx.BaseTransport | None = None,
    ) -> None:
        self.trust = open_trust(trust)
        self._log = ""  # of another host, if one is asked for
        self._shard = ""  # of the log, if it is not the newest one that is asked about
        self._token = token
        certificate = take_certificate(certificate)
        self._certificate = certificate.leaf() if certificate else None
        self._prover = Prover(dpop_key) if dpop_key else None
        with reading_proxy():
            self._client = httpx.Client(
                verify=tls_context(self.trust, certificate, trust_env=trust_env),
                proxy=proxy,
                trust_env=trust_env,
                timeout=timeout,
                transport=outer,
            )

    def logs(self) -> tuple[ServedLog, ...]:
        """The logs that the service reads: that of its own host, and those of others that `of` takes."""
        logs = self._json("/audit/v1/logs", {}, _Logs).logs
        if len(logs) > MAX_LOGS or len({log.origin for log in logs}) != len(logs):
            raise DecodeError("the service names more logs than there can be")
        return tuple(logs)

    def of(self, origin: str) -> AuditClient:
        """This client, asking the same service for the log of this name. It shares the connection: close one of them.
        What comes is of that log, or LogError is raised."""
        other = copy.copy(self)
        other._log = origin
        return other

    def within(self, shard: str) -> AuditClient:
        """This client, asking about one shard of the log, by its origin: its indices, checkpoints, proofs and bundles.
        It shares the connection: close one of them."""
        other = copy.copy(self)
        other._shard = shard
        return other

    def records(self, wanted: Mapping[str, str], *, cursor: str | None = None, limit: int = 100) -> AuditPage:
        """One page of records that match the filter, newest first unless it says `order=oldest`."""
        query = dict(wanted) | {"limit": str(limit)} | ({"cursor": cursor} if cursor else {})
        page = self._json("/audit/v1/records", query, _Page)
        if len(page.records) > limit:
            raise DecodeError("the service answered with more records than were asked for")
        return AuditPage(tuple(self._entry(row) for row in page.records), page.cursor, page.tree_size)

    def record(self, identifier: str) -> AuditEntry:
        """The record with this id, or at this index."""
        entry = self._entry(self._json(f"/audit/v1/records/{quote(identifier[:MAX_NAME], safe='')}", {}, _Row))
        other_shard = self._shard and identifier != entry.record.id and entry.record.log != self._shard
        if other_shard or identifier not in (entry.record.id, str(entry.index)):
            raise LogError("the service answered with another record than was asked for", code="other-record")
        return entry

    def holds(
        self, *, tenant: str | None = None, in_force: bool = False, cursor: str | None = None
    ) -> tuple[tuple[ListedHold, ...], str | None]:
        """A page of legal holds, newest first, and the cursor of the next. Whether a release was left out, only a
        bundle shows."""
        query = {"tenant": tenant, "cursor": cursor, "in_force": "1" if in_force else None}
        page = self._json("/audit/v1/holds", {name: text for name, text in query.items() if text is not None}, _Holds)
        rows = [
            ListedHold(self._entry(row.placed), None if row.released is None else self._entry(row.released))
            for row in page.holds
        ]
        for hold in rows:
            released = hold.name if hold.released is None else hold.released.record.reason
            kinds = (hold.placed.record.kind, "hold.released" if hold.released is None else hold.released.record.kind)
            if kinds != ("hold.placed", "hold.released") or released != hold.name:
                raise LogError("the service calls records holds that are none", code="other-record")
        return tuple(rows), page.cursor

    def erasures(
        self, *, tenant: str | None = None, refused: bool = False, cursor: str | None = None, limit: int = 100
    ) -> AuditPage:
        """A page of erasures of names, newest first; with `refused`, of those that a hold did not let happen."""
        query = {"tenant": tenant, "cursor": cursor, "limit": str(limit), "outcome": "refused" if refused else "erased"}
        given = {name: text for name, text in query.items() if text is not None}
        page = self._json("/audit/v1/erasures", given, _Erasures)
        entries = tuple(self._entry(row) for row in page.erasures)
        kind = "erasure.refused" if refused else "erasure.completed"
        if any(entry.record.kind != kind for entry in entries):
            raise LogError("the service calls records erasures that are none", code="other-record")
        return AuditPage(entries, page.cursor, page.tree_size)

    def checkpoint(self, *, cosigned: bool = False) -> VerifiedCheckpoint:
        """The newest checkpoint, its signatures verified; raises LogError. With `cosigned`, the newest one that the
        log's own choice of witnesses cosigned: whether those are yours, a `WitnessPolicy` says."""
        note = self._bytes("/audit/v1/checkpoint", {"cosigned": "1"} if cosigned else {}, MAX_NOTE)
        verified = open_published(note, self.trust.log_keys, self.trust.log_mldsa_keys)
        self._require_asked(verified.checkpoint.origin)
        if self._shard and verified.checkpoint.origin != self._shard:
            raise LogError("the service answered with the checkpoint of another shard", code="other-log")
        return verified

    def prove(self, entry: AuditEntry) -> VerifiedCheckpoint:
        """That the entry stands at its index in the tree behind the newest checkpoint; raises LogError.

        The code is `not-covered` for a record so new that no published checkpoint covers it yet.
        """
        return self._proven(entry)[0]

    def cose_receipt(self, entry: AuditEntry) -> tuple[VerifiedCheckpoint, bytes]:
        """The same proof, and as a COSE Receipt (RFC 9942), verified; raises LogError or ReceiptError."""
        verified, proof = self._proven(entry)
        keys = self.trust.log_keys
        receipt = build_cose_receipt(index=entry.index, proof=proof, note=verified.note, verifiers=keys)
        verify_cose_receipt(receipt, entry.leaf, keys)
        return verified, receipt

    def _proven(self, entry: AuditEntry) -> tuple[VerifiedCheckpoint, list[bytes]]:
        verified = self.checkpoint()
        checkpoint = verified.checkpoint
        if entry.record.log != checkpoint.origin and not self._shard:
            return self.within(entry.record.log)._proven(entry)
        return verified, self._proven_in(entry, verified)

    def _proven_in(self, entry: AuditEntry, verified: VerifiedCheckpoint) -> list[bytes]:
        checkpoint = verified.checkpoint
        if entry.record.log != checkpoint.origin:
            raise LogError("the record belongs to another log than the checkpoint", code="other-log")
        if entry.index >= checkpoint.size:
            raise LogError("no published checkpoint covers this record yet; ask again", code="not-covered")
        query = {"index": str(entry.index), "size": str(checkpoint.size)}
        proof = self._hashes("/audit/v1/proofs/inclusion", query)
        hashed = leaf_hash(entry.leaf)
        verify_inclusion(hashed_leaf=hashed, index=entry.index, size=checkpoint.size, proof=proof, root=checkpoint.root)
        return proof

    def prove_growth(self, kept: bytes) -> tuple[VerifiedCheckpoint, VerifiedCheckpoint]:
        """That the log only grew since a kept checkpoint: (kept, newest); raises LogError."""
        old, new = open_checkpoint(kept, self.trust.log_keys), self.checkpoint()
        before, after = old.checkpoint, new.checkpoint
        if before.origin != after.origin and is_later(after.origin, before.origin) and not self._shard:
            self._require_growth_over_turns(old, new)
        else:
            self._require_growth(old, new)
        return old, new

    def _require_growth(self, old: VerifiedCheckpoint, new: VerifiedCheckpoint) -> None:
        before, after = old.checkpoint, new.checkpoint
        if before.origin != after.origin:
            raise LogError(f"the kept checkpoint is of another log, {before.origin}", code="other-log")
        if after.size < before.size:
            raise LogError("the log is smaller than the kept checkpoint: records are gone", code="log-rolled-back")
        proof: list[bytes] = []
        if 0 < before.size < after.size:
            proof = self.consistency(before.size, after.size)
        if before.size:
            verify_consistency(
                first=before.size, second=after.size, first_root=before.root, second_root=after.root, proof=proof
            )

    def _require_growth_over_turns(self, old: VerifiedCheckpoint, new: VerifiedCheckpoint) -> None:
        """The newest shard follows, one after the other, the shard of the kept checkpoint; that one only grew. Of each
        shard one checkpoint is looked at: a second one could be of another tree."""
        later = new
        while is_later(later.checkpoint.origin, old.checkpoint.origin):
            origin = later.checkpoint.origin
            shard = self.within(origin)
            first = shard.record("0")
            shard._proven_in(first, later)
            said = first.record.detail
            follows = said.get(PREVIOUS_ORIGIN, "")
            if first.index or not begins_shard(first.record) or not is_later(origin, follows):
                raise LogError(f"{origin} does not say which shard it follows", code="other-log")
            later = self.within(follows).checkpoint()
            last = later.checkpoint
            if (last.origin, str(last.size), last.root.hex()) != (
                follows,
                said.get(PREVIOUS_SIZE),
                said.get(PREVIOUS_ROOT),
            ):
                raise LogError(f"{origin} follows another tree than the one that {follows} is", code="other-log")
        self.within(later.checkpoint.origin)._require_growth(old, later)

    def consistency(self, first: int, second: int) -> list[bytes]:
        """What the service says proves that its tree of `second` records extends that of `first`; not verified here."""
        return self._hashes("/audit/v1/proofs/consistency", {"first": str(first), "second": str(second)})

    def export(self, first: int, last: int, out: BinaryIO, *, consistent_with: int | None = None) -> int:
        """Write the evidence bundle of a range; returns its size. Verify it before you rely on it."""
        query = {"first": str(first), "last": str(last)}
        query |= {} if consistent_with is None else {"consistent_with": str(consistent_with)}
        written = 0
        with self._asked("/audit/v1/exports", query) as response:
            for part in response.iter_raw():
                written += len(part)
                if written > MAX_EXPORT:
                    raise DecodeError("the export is larger than 4 GiB; ask for fewer records", code="too-large")
                out.write(part)
        return written

    def export_lines(
        self,
        first: int,
        last: int,
        out: BinaryIO,
        *,
        form: ExportFormat,
        with_header: bool = True,
        kept_only: bool = False,
        seen: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Write records of a range, a line each, as they come; `seen` hears how many more whole ones there are.

        The lines prove nothing. When this raises, what whole lines `out` has are good. A range from which records were
        pruned is refused (`not-found`); with `kept_only`, it is written without them.
        """
        query = {"first": str(first), "last": str(last), "format": form.name} | ({"kept": "1"} if kept_only else {})
        lines = ExportLines(form, last - first + 1, gaps=kept_only)
        with self._asked("/audit/v1/exports", query) as response:
            if with_header:
                out.write(form.header)
            for part in response.iter_raw():
                content = lines.take(part)
                out.write(content)
                seen(content.count(b"\n"))
        lines.finish()

    def export_line(self, index: int, *, form: ExportFormat) -> bytes:
        """One record as a line of this form."""
        out = io.BytesIO()
        self.export_lines(index, index, out, form=form, with_header=False)
        return out.getvalue()

    # Reports ---------------------------------------------------------------------------------------------------------

    def report(self, name: str, question: Question) -> Report:
        """What the service's database says; nothing of it is proven (`report_from_bundle` answers what is)."""
        report = self._json(f"/audit/v1/reports/{quote(name[:MAX_NAME], safe='')}", question.given(), Report)
        require_own_word(report, name=name)
        self._require_asked(report.basis.origin)
        return report

    def review(self, statement: ReviewStatement) -> tuple[int, bytes]:
        """Put on record that these records were looked at. Gives the record's index and its receipt, verified."""
        if self._log:
            raise LogError("a review is stated to the service of the log's own host", code="other-log")
        content = msgspec.json.encode(statement)
        with self._asked("/audit/v1/reviews", {}, content) as response:
            receipt = _bounded(response, MAX_RECEIPT)
        verified = verify_receipt(receipt, self.trust.log_keys)
        record = parse_leaf(verified.leaf)
        if record.kind != "audit.review" or record.detail != statement.detail():
            raise LogError("the service put another review on record than this one", code="other-record")
        return verified.index, receipt

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> AuditClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _asked(self, path: str, query: Mapping[str, str], content: bytes | None = None) -> Iterator[httpx.Response]:
        """A successful answer, its body not read yet; a problem raises ServiceRefused. With content, it is posted."""
        credential = Credential(token=take_token(self._token), certificate=self._certificate, prover=self._prover)
        with reaching(self.trust.url):
            response = self._sent(path, query, credential, content)
            if credential.wants_again(response.status_code, response.headers):
                response.close()
                response = self._sent(path, query, credential, content)
                credential.wants_again(response.status_code, response.headers)
            try:
                if response.status_code != 200:
                    raise _refusal(response)
                yield response
            finally:
                response.close()

    def _sent(
        self, path: str, query: Mapping[str, str], credential: Credential, content: bytes | None
    ) -> httpx.Response:
        url = self.trust.url + path
        query = dict(query) | ({"log": self._log} if self._log else {})
        query |= {"shard": self._shard} if self._shard else {}
        method = "GET" if content is None else "POST"
        headers = [("accept-encoding", "identity"), *credential.headers(method, url)]
        headers += [] if content is None else [("content-type", "application/json")]
        request = self._client.build_request(method, url, params=dict(query), headers=headers, content=content)
        return self._client.send(request, stream=True, follow_redirects=False)

    def _bytes(self, path: str, query: Mapping[str, str], limit: int) -> bytes:
        with self._asked(path, query) as response:
            return _bounded(response, limit)

    def _json(self, path: str, query: Mapping[str, str], shape: type[_Shape]) -> _Shape:
        try:
            return msgspec.json.decode(self._bytes(path, query, _MAX_ANSWER), type=shape)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise DecodeError("the service's answer is malformed") from error

    def _hashes(self, path: str, query: Mapping[str, str]) -> list[bytes]:
        texts = self._json(path, query, _Proof).hashes
        if len(texts) > MAX_PROOF_HASHES:
            raise DecodeError("the service's proof is longer than any can be")
        try:
            return [base64.b64decode(text, validate=True) for text in texts]
        except (binascii.Error, ValueError) as error:
            raise DecodeError("the service's proof is malformed") from error

    def _entry(self, row: _Row) -> AuditEntry:
        leaf = bytes(row.record)
        record = parse_leaf(leaf)
        self._require_asked(record.log)
        return AuditEntry(row.index, leaf, record)

    def _require_asked(self, origin: str) -> None:
        """What the answer is of is the log that was asked for, if one was."""
        if self._log and not belongs_to(origin, self._log):
            raise LogError("the service answered from another log than was asked for", code="other-log")


def _bounded(response: httpx.Response, limit: int) -> bytes:
    body = bytearray()
    for part in response.iter_raw():
        body += part
        if len(body) > limit:
            raise DecodeError("the service's answer is larger than it may be", code="too-large")
    return bytes(body)


def _refusal(response: httpx.Response) -> ServiceRefused:
    headers = response.headers
    try:
        body = _bounded(response, MAX_PROBLEM)
    except DecodeError:
        body = b""
    media, wait = headers.get("content-type", ""), headers.get("retry-after", "")
    problem = read_problem(response.status_code, media, wait, body, operation="audit")
    return ServiceRefused(
        problem.text,
        code=problem.code,
        status=problem.status,
        problem_type=problem.type,
        retry_after_s=problem.retry_after_s,
    )
