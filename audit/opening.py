"""What the writer checks before it writes: that the log on disk is whole and is the one it signed last.

    1. the file is a log of this origin and of a schema that this release knows; its newest shard follows the one before
    2. the shard's newest leaves re-hash to the stored hashes, and the right edge to the root in `head`
    3. the newest stored checkpoint was signed by this log's key, and its root is the root the tree had at that size;
       only a log that holds nothing but openings may have none, and a shard that has just begun: then the first record
       of it says which tree the last checkpoint of the shard before is to be signed over. The newest cosigned one
       likewise, if there is one
    4. every record was written by this log's writer: the seal over size, root and holds is the writer's. A log from
       before there were seals has none: then its first record must say so, and its newest checkpoint be of all its
       records. In one from before holds were chained every leaf is read once, to find them
    5. index rows that a crash cut off are written (`indexing`), and the requests found that were under way then

Trusts: nothing on disk beyond what it recomputes. Never: repairs; a contradiction raises LogDamaged for a person.
It does not re-read the whole log: the offline verifier does that. Long, because the five checks are read together.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from sqlalchemy import Connection, Table, bindparam, func, insert, select, update

from audit.errors import LogDamaged, LogInUse
from audit.holds import NO_HOLDS, chain_of_leaves
from audit.indexing import catch_up_index
from audit.limits import INDEX_BEHIND, TILE_HEIGHT, TILE_WIDTH
from audit.sealing import SEALED, HeadSeal
from audit.shards import Shard, Shards, add_shard, read_shards
from audit.tables import SCHEMA_VERSION
from audit.tables import checkpoint as checkpoint_table
from audit.tables import cosigned as cosigned_table
from audit.tables import head as head_table
from audit.tables import leaf as leaf_table
from audit.tables import open_intent as intent_table
from audit.tables import record as record_table
from audit.tables import shard as shard_table
from audit.tree import StoredTree, TileWriter, read_tile
from sealgate.ambient import Clock, Entropy
from sealgate.errors import DecodeError, LogError
from sealgate.transparency.carried import (
    KIND as CARRIED,
)
from sealgate.transparency.carried import (
    PREVIOUS_ORIGIN,
    PREVIOUS_ROOT,
    PREVIOUS_SIZE,
    STANDS_FOR,
    begins_shard,
)
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
from sealgate.transparency.notes import (
    Checkpoint,
    NoteSigner,
    NoteVerifier,
    VerifiedCheckpoint,
    open_checkpoint,
)
from sealgate.transparency.record import Record, parse_leaf
from sealgate.transparency.shards import half_year_of, shard_name
from sealgate.transparency.standing import GRANT, Placed

_STANDING = ("policy.change", GRANT)
_OF_KINDS = (
    select(record_table.c.idx)
    .where(record_table.c.kind.in_(bindparam("kinds", expanding=True)), record_table.c.idx >= bindparam("first"))
    .order_by(record_table.c.idx)
)


@dataclass(frozen=True)
class Intent:
    """An `inference.authorized` that has no end yet. `index` is where it stands in the newest shard, or the record that
    stands for it there; `began` is its own."""

    index: int
    record: Record
    began: int


@dataclass(frozen=True)
class Opened:
    """A log that passed the checks above, ready for its writer."""

    shards: Shards
    frontier: Frontier
    tiles: TileWriter
    unsigned: Checkpoint | None  # of a shard that ended, and whose last checkpoint is not signed yet
    standing: tuple[Placed, ...]  # the newest `policy.change`, and the grants of budgets, and their indices
    intents: dict[str, Intent]
    published: int  # up to which position the newest stored checkpoint reaches; -1 if there is none
    cosigned: int  # the newest one that witnesses cosigned, likewise
    holds: bytes  # the chain of holds: see audit.holds


def read_log(
    connection: Connection,
    *,
    signer: NoteSigner,
    seal: HeadSeal,
    mldsa: Cosigner | None,
    clock: Clock,
    entropy: Entropy,
) -> Opened:
    """Check and load the log of the signer's name; creates the head of an empty one. Raises LogInUse, LogDamaged."""
    size, root, sealed, held = _head(connection, signer.name, seal, entropy)  # 1
    shards = _shards(connection, origin=signer.name, size=size, clock=clock)
    shard, in_shard = shards.newest, shards.size_of(shards.newest)
    verifier, seal = signer.under(shard.origin).verifier, seal.under(shard.origin)
    tree = StoredTree(connection, shard, in_shard)
    _check_newest_leaves(connection, shard, in_shard)  # 2
    frontier = Frontier.restore(in_shard, tree)
    if frontier.root() != root:
        raise LogDamaged("the log's hashes do not lead to its stored root")
    checkpoint = _check_checkpoint(connection, shards, tree, verifier, mldsa)  # 3
    _newest_note(connection, cosigned_table, shards, tree, verifier)
    if sealed is None:
        _require_begun_without_seals(connection, shards, root, tree)
    _check_seal(seal, sealed, size=in_shard, root=root, holds=held, signed=checkpoint)  # 4
    tiles = TileWriter(shard, in_shard, lambda level, index, width: read_tile(connection, shard, level, index, width))
    holds = _take_in_holds(connection, seal, size=in_shard, root=root) if held is None else held
    catch_up_index(connection)
    return Opened(
        shards=shards,
        frontier=frontier,
        tiles=tiles,
        unsigned=_unsigned(connection, shards) if checkpoint is None else None,
        standing=_standing(connection, shards),
        intents=_open_intents(connection, shards),  # 5
        published=_reach(connection, checkpoint_table),
        cosigned=_reach(connection, cosigned_table),
        holds=holds,
    )


def _reach(connection: Connection, table: Table) -> int:
    newest = connection.execute(select(func.max(table.c.size))).scalar_one()
    return -1 if newest is None else int(newest)


def _shards(connection: Connection, *, origin: str, size: int, clock: Clock) -> Shards:
    """The shards; a log from before there were any becomes its own first one. The newest must say that it follows."""
    if connection.execute(select(func.max(shard_table.c.number))).scalar_one() is None:
        newest = connection.execute(select(func.max(record_table.c.ts_us))).scalar_one()
        now = clock() if newest is None else int(newest)
        add_shard(connection, Shard(number=0, origin=origin, first=0, half_year=half_year_of(now)))
    shards = read_shards(connection, origin=origin, size=size)
    broken = LogDamaged("the log's newest shard does not follow the one before it")
    first = shards.all[0]
    if (first.number, first.origin, first.first) != (0, origin, 0):
        raise broken
    for before, shard in pairwise(shards.all):
        said = _leaf_at(connection, shard.first)
        follows = (before.origin, str(shards.size_of(before)))
        named = shard.origin == shard_name(origin, shard.half_year) and shard.number == before.number + 1
        if not named or said is None or not begins_shard(said) or said.log != shard.origin:
            raise broken
        if (said.detail[PREVIOUS_ORIGIN], said.detail.get(PREVIOUS_SIZE)) != follows:
            raise broken
    return shards


def _leaf_at(connection: Connection, position: int) -> Record | None:
    leaf = connection.execute(select(leaf_table.c.leaf).where(leaf_table.c.idx == position)).scalar_one_or_none()
    try:
        return None if leaf is None else parse_leaf(bytes(leaf))
    except DecodeError:
        return None


def _unsigned(connection: Connection, shards: Shards) -> Checkpoint | None:
    """What the newest shard's first record says of the one before, if that is true of its stored hashes."""
    if len(shards.all) == 1:
        return None
    before, shard = shards.all[-2:]
    said = _leaf_at(connection, shard.first)
    size = shards.size_of(before)
    root = root_at(size, StoredTree(connection, before, size))
    if said is None or said.detail.get(PREVIOUS_ROOT) != root.hex():
        raise LogDamaged("the shard before the newest one is not the one that the newest one follows")
    return Checkpoint(before.origin, size, root)


def _standing(connection: Connection, shards: Shards) -> tuple[Placed, ...]:
    """What the newest shard says of the policy and its budgets; of workers nothing, for none outlives the host."""
    first = shards.newest.first
    found = [placed for placed in _carried(connection, shards) if placed[1].detail[STANDS_FOR] in _STANDING]
    written = connection.execute(_OF_KINDS, {"kinds": _STANDING, "first": first}).scalars()
    for position in written:
        record = _leaf_at(connection, position)
        if record is not None and record.kind in _STANDING:
            found.append((position - first, record))
    return tuple(found)


def _carried(connection: Connection, shards: Shards) -> list[Placed]:
    """The records at the beginning of the newest shard that stand for earlier ones, as far as they are kept."""
    first = shards.newest.first
    found = []
    for position in connection.execute(_OF_KINDS, {"kinds": [CARRIED], "first": first}).scalars():
        record = _leaf_at(connection, position)
        if first and record is not None and record.kind == CARRIED:
            found.append((position - first, record))
    return found


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
    indexed = -1 if records is None else records
    if leaves != expected or not row.size - INDEX_BEHIND <= indexed + 1 <= row.size:
        raise LogDamaged("the log's head does not name its newest leaf")
    return row.size, row.root, row.seal, row.holds


def _take_in_holds(connection: Connection, seal: HeadSeal, *, size: int, root: bytes) -> bytes:
    """Chain the holds of a log from before they were, after everything else was found to be in order."""
    holds = chain_of_leaves(connection)
    values = {"holds": holds, "seal": seal.over(size, root, holds=holds)}
    connection.execute(update(head_table).where(head_table.c.id == 1).values(**values))
    return holds


def _check_newest_leaves(connection: Connection, shard: Shard, size: int) -> None:
    """Re-hash the leaves of the last full row and of the partial one."""
    if not size:
        return
    last_full = (size >> TILE_HEIGHT) - 1
    first = max(last_full, 0) << TILE_HEIGHT
    rows = connection.execute(
        select(leaf_table.c.leaf).where(leaf_table.c.idx >= shard.first + first).order_by(leaf_table.c.idx)
    ).scalars()
    hashes = [leaf_hash(row) for row in rows]
    if len(hashes) != size - first:
        raise LogDamaged("leaves are missing from the log")
    if last_full >= 0:
        stored = read_tile(connection, shard, 0, last_full, TILE_WIDTH)
        if b"".join(hashes)[: TILE_WIDTH * HASH_SIZE] != stored:
            raise LogDamaged("a leaf does not have its stored hash")


def _check_checkpoint(
    connection: Connection, shards: Shards, tree: StoredTree, verifier: NoteVerifier, mldsa: Cosigner | None
) -> VerifiedCheckpoint | None:
    verified = _newest_note(connection, checkpoint_table, shards, tree, verifier)
    if verified is None:
        _require_nothing_recorded(connection, shards)
        return None
    try:
        # There may be none: the checkpoint may be from before there was a key.
        verify_cosignatures(verified.note, [] if mldsa is None else [mldsa.under(verifier.name).public])
    except LogError as error:
        raise LogDamaged("the newest checkpoint's ML-DSA-44 signature does not hold") from error
    return verified


def _newest_note(
    connection: Connection, table: Table, shards: Shards, tree: StoredTree, verifier: NoteVerifier
) -> VerifiedCheckpoint | None:
    """The newest shard's."""
    first, size = shards.newest.first, shards.size_of(shards.newest)
    row = connection.execute(select(table.c.size, table.c.note).order_by(table.c.size.desc()).limit(1)).one_or_none()
    if row is None or (first and row.size <= first):
        return None
    try:
        verified = open_checkpoint(row.note, [verifier])
    except LogError as error:
        raise LogDamaged("the newest checkpoint is not signed by this log's key") from error
    signed = verified.checkpoint
    if signed.size != row.size - first or signed.size > size or root_at(signed.size, tree) != signed.root:
        raise LogDamaged("the log is not the one that its newest checkpoint was signed over")
    return verified


def _require_begun_without_seals(connection: Connection, shards: Shards, root: bytes, tree: StoredTree) -> None:
    """Taking the seal away would let whoever can write the database roll the log back to any checkpoint that it keeps.
    Only a log that began before there were seals may have none; its first record, which the root covers, tells. (It is
    there: those releases pruned nothing.)"""
    size = shards.size
    if not size:
        return
    stripped = LogDamaged("the head has no seal, but the log was sealed from its beginning")
    if shards.newest.number:
        raise stripped
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


def _require_nothing_recorded(connection: Connection, shards: Shards) -> None:
    """The writer stores a checkpoint before it takes its first record. A log with records and none was not written by
    it, and signing it would vouch for a past that somebody else invented."""
    leaves = select(leaf_table.c.leaf).where(leaf_table.c.idx >= shards.newest.first).order_by(leaf_table.c.idx)
    for leaf in connection.execute(leaves).scalars():
        try:
            opening = parse_leaf(leaf).kind in ("log.opened", CARRIED)
        except DecodeError:
            opening = False
        if not opening:
            raise LogDamaged("the log has records but no checkpoint that was signed over them")


def _open_intents(connection: Connection, shards: Shards) -> dict[str, Intent]:
    carried = {record.grant: index for index, record in _carried(connection, shards) if record.grant}
    rows = connection.execute(
        select(intent_table.c.grant_id, intent_table.c.idx, leaf_table.c.leaf)
        .join(leaf_table, leaf_table.c.idx == intent_table.c.idx, isouter=True)
        .order_by(intent_table.c.idx)
    )
    intents: dict[str, Intent] = {}
    for grant, position, leaf in rows:
        try:
            record = parse_leaf(leaf or b"")
        except DecodeError as error:
            raise LogDamaged("an open request's leaf is not a record") from error
        if record.id != grant or record.kind != "inference.authorized":
            raise LogDamaged("an open request's leaf is not its authorization")
        began = shards.index(position)
        index = began if position >= shards.newest.first else carried.get(grant)
        if index is None:
            raise LogDamaged("an open request of an earlier shard is not carried into the newest one")
        intents[grant] = Intent(index, record, began)
    return intents
