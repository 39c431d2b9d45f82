"""What the writer checks before it writes: that the log on disk is whole and is the one it signed last.

    1. the file is a log of this origin and of a schema that this release knows
    2. the newest leaves re-hash to the stored hashes, and the right edge to the root in `head`
    3. the newest stored checkpoint was signed by this log's key, and its root is the root the tree had at that size;
       only a log that holds nothing but openings may have none. The newest cosigned one likewise, if there is one
    4. every record was written by this log's writer: the seal over size, root and holds is the writer's. A log from
       before there were seals has none: then its first record must say so, and its newest checkpoint be of all its
       records. In one from before holds were chained every leaf is read once, to find them
    5. the requests that were under way when the last writer stopped are found

Trusts: nothing on disk beyond what it recomputes. Never: repairs; a contradiction raises LogDamaged for a person.
It does not re-read the whole log: the offline verifier does that.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, Table, func, insert, select, update

from audit.errors import LogDamaged, LogInUse
from audit.holds import NO_HOLDS, chain_of_leaves
from audit.limits import TILE_HEIGHT, TILE_WIDTH
from audit.sealing import SEALED, HeadSeal
from audit.tables import SCHEMA_VERSION
from audit.tables import checkpoint as checkpoint_table
from audit.tables import cosigned as cosigned_table
from audit.tables import head as head_table
from audit.tables import leaf as leaf_table
from audit.tables import open_intent as intent_table
from audit.tables import record as record_table
from audit.tree import StoredTree, TileWriter, read_tile
from sealgate.ambient import Entropy
from sealgate.errors import DecodeError, LogError
from sealgate.transparency.cosignatures import Cosigner, verify_cosignatures
from sealgate.transparency.merkle import (
    EMPTY_ROOT,
    HASH_SIZE,
    Frontier,
    inclusion_proof,
    inclusion_root,
    leaf_hash,
    root_at,
)
from sealgate.transparency.notes import NoteVerifier, VerifiedCheckpoint, open_checkpoint
from sealgate.transparency.record import Record, parse_leaf


@dataclass(frozen=True)
class Intent:
    """An `inference.authorized` that has no end yet."""

    index: int
    record: Record


@dataclass(frozen=True)
class Opened:
    """A log that passed the checks above, ready for its writer."""

    frontier: Frontier
    tiles: TileWriter
    intents: dict[str, Intent]
    checkpoint: VerifiedCheckpoint | None
    cosigned_size: int  # of the newest checkpoint that witnesses cosigned; -1 if there is none
    holds: bytes  # the chain of holds: see audit.holds


def read_log(
    connection: Connection, *, verifier: NoteVerifier, seal: HeadSeal, mldsa: Cosigner | None, entropy: Entropy
) -> Opened:
    """Check and load the log of the verifier's name; creates the head of an empty one. Raises LogInUse, LogDamaged."""
    size, root, sealed, held = _head(connection, verifier.name, seal, entropy)  # 1
    tree = StoredTree(connection, size)
    _check_newest_leaves(connection, size)  # 2
    frontier = Frontier.restore(size, tree)
    if frontier.root() != root:
        raise LogDamaged("the log's hashes do not lead to its stored root")
    checkpoint = _check_checkpoint(connection, size, tree, verifier, mldsa)  # 3
    cosigned = _newest_note(connection, cosigned_table, size, tree, verifier)
    if sealed is None:
        _require_begun_without_seals(connection, size, root, tree)
    _check_seal(seal, sealed, size=size, root=root, holds=held, signed=checkpoint)  # 4
    tiles = TileWriter(size, lambda level, index, width: read_tile(connection, level, index, width))
    cosigned_size = cosigned.checkpoint.size if cosigned else -1
    holds = _take_in_holds(connection, seal, size=size, root=root) if held is None else held
    return Opened(frontier, tiles, _open_intents(connection), checkpoint, cosigned_size, holds)  # 5


def _head(
    connection: Connection, origin: str, seal: HeadSeal, entropy: Entropy
) -> tuple[int, bytes, bytes | None, bytes | None]:
    """Size, root, seal, chain of holds; the last two are None where the log is older than they are."""
    row = connection.execute(select(head_table).where(head_table.c.id == 1)).one_or_none()
    leaves, records = (
        connection.execute(select(func.max(table.c.idx))).scalar_one() for table in (leaf_table, record_table)
    )
    if row is None:
        if leaves is not None or records is not None:
            raise LogDamaged("the log has leaves but no head")
        sealed = seal.over(0, EMPTY_ROOT, holds=NO_HOLDS)
        connection.execute(
            insert(head_table).values(
                id=1,
                schema_version=SCHEMA_VERSION,
                origin=origin,
                size=0,
                root=EMPTY_ROOT,
                cursor_key=entropy(32),
                seal=sealed,
                holds=NO_HOLDS,
            )
        )
        return 0, EMPTY_ROOT, sealed, NO_HOLDS
    if row.schema_version != SCHEMA_VERSION:
        raise LogInUse("the log was written by another release; its tables have another layout")
    if row.origin != origin:
        raise LogInUse(f"this database is the log of '{row.origin}', not of '{origin}'")
    expected = row.size - 1 if row.size else None
    if leaves != expected or records != expected:
        raise LogDamaged("the log's head does not name its newest leaf")
    return row.size, row.root, row.seal, row.holds


def _take_in_holds(connection: Connection, seal: HeadSeal, *, size: int, root: bytes) -> bytes:
    """Chain the holds of a log from before they were, after everything else was found to be in order."""
    holds = chain_of_leaves(connection)
    values = {"holds": holds, "seal": seal.over(size, root, holds=holds)}
    connection.execute(update(head_table).where(head_table.c.id == 1).values(**values))
    return holds


def _check_newest_leaves(connection: Connection, size: int) -> None:
    """Re-hash the leaves of the last full row and of the partial one."""
    if not size:
        return
    last_full = (size >> TILE_HEIGHT) - 1
    first = max(last_full, 0) << TILE_HEIGHT
    rows = connection.execute(
        select(leaf_table.c.leaf).where(leaf_table.c.idx >= first).order_by(leaf_table.c.idx)
    ).scalars()
    hashes = [leaf_hash(row) for row in rows]
    if len(hashes) != size - first:
        raise LogDamaged("leaves are missing from the log")
    if last_full >= 0:
        stored = read_tile(connection, 0, last_full, TILE_WIDTH)
        if b"".join(hashes)[: TILE_WIDTH * HASH_SIZE] != stored:
            raise LogDamaged("a leaf does not have its stored hash")


def _check_checkpoint(
    connection: Connection, size: int, tree: StoredTree, verifier: NoteVerifier, mldsa: Cosigner | None
) -> VerifiedCheckpoint | None:
    verified = _newest_note(connection, checkpoint_table, size, tree, verifier)
    if verified is None:
        _require_nothing_recorded(connection)
        return None
    try:
        # There may be none: the checkpoint may be from before there was a key.
        verify_cosignatures(verified.note, [] if mldsa is None else [mldsa.public])
    except LogError as error:
        raise LogDamaged("the newest checkpoint's ML-DSA-44 signature does not hold") from error
    return verified


def _newest_note(
    connection: Connection, table: Table, size: int, tree: StoredTree, verifier: NoteVerifier
) -> VerifiedCheckpoint | None:
    row = connection.execute(select(table.c.size, table.c.note).order_by(table.c.size.desc()).limit(1)).one_or_none()
    if row is None:
        return None
    try:
        verified = open_checkpoint(row.note, [verifier])
    except LogError as error:
        raise LogDamaged("the newest checkpoint is not signed by this log's key") from error
    signed = verified.checkpoint
    if signed.size != row.size or signed.size > size or root_at(signed.size, tree) != signed.root:
        raise LogDamaged("the log is not the one that its newest checkpoint was signed over")
    return verified


def _require_begun_without_seals(connection: Connection, size: int, root: bytes, tree: StoredTree) -> None:
    """Taking the seal away would let whoever can write the database roll the log back to any checkpoint that it keeps.
    Only a log that began before there were seals may have none; its first record, which the root covers, tells. (It is
    there: those releases pruned nothing.)"""
    if not size:
        return
    stripped = LogDamaged("the head has no seal, but the log was sealed from its beginning")
    leaf = connection.execute(select(leaf_table.c.leaf).where(leaf_table.c.idx == 0)).scalar_one_or_none()
    try:
        first = parse_leaf(bytes(leaf or b""))
        path = inclusion_proof(0, size, tree)
        shown = inclusion_root(hashed_leaf=leaf_hash(bytes(leaf or b"")), index=0, size=size, proof=path)
    except (DecodeError, LogError) as error:
        raise stripped from error
    if shown != root or SEALED in first.detail:
        raise stripped


def _check_seal(
    seal: HeadSeal,
    sealed: bytes | None,
    *,
    size: int,
    root: bytes,
    holds: bytes | None,
    signed: VerifiedCheckpoint | None,
) -> None:
    """Records beyond the newest checkpoint are a crash's, or somebody else's: only the writer can have sealed them."""
    if sealed is None:
        if size and (signed is None or signed.checkpoint.size != size):
            raise LogDamaged(
                "the newest records have no seal and no checkpoint covers them; if the release that wrote this log "
                "had no seals, start it once more and stop it in order"
            )
        return
    try:
        seal.require(sealed, size=size, root=root, holds=holds)
    except LogError as error:
        raise LogDamaged("the newest records were not written by this log's writer") from error


def _require_nothing_recorded(connection: Connection) -> None:
    """The writer stores a checkpoint before it takes its first record. A log with records and none was not written by
    it, and signing it would vouch for a past that somebody else invented."""
    for leaf in connection.execute(select(leaf_table.c.leaf).order_by(leaf_table.c.idx)).scalars():
        try:
            opening = parse_leaf(leaf).kind == "log.opened"
        except DecodeError:
            opening = False
        if not opening:
            raise LogDamaged("the log has records but no checkpoint that was signed over them")


def _open_intents(connection: Connection) -> dict[str, Intent]:
    rows = connection.execute(
        select(intent_table.c.grant_id, intent_table.c.idx, leaf_table.c.leaf)
        .join(leaf_table, leaf_table.c.idx == intent_table.c.idx, isouter=True)
        .order_by(intent_table.c.idx)
    )
    intents: dict[str, Intent] = {}
    for grant, index, leaf in rows:
        try:
            record = parse_leaf(leaf or b"")
        except DecodeError as error:
            raise LogDamaged("an open request's leaf is not a record") from error
        if record.id != grant or record.kind != "inference.authorized":
            raise LogDamaged("an open request's leaf is not its authorization")
        intents[grant] = Intent(index, record)
    return intents
