"""The tables of one log. `leaf` is the evidence; all but `head`, the notes and `subject` can be rebuilt from it.

    head         one row: origin, size, root, the writer's seal; every transaction moves it by compare-and-set
    leaf         canonical bytes by index; may be pruned from below, later, while `tile` stays
    record       an index of leaves for queries: few columns, few B-trees, all but `actor` written in order
    open_intent  authorized records whose end has not come
    shard        each half-year's tree: its origin, and where its first record stands
    tile         hashes of the trees, 256 to a row (level 0 when full; higher levels as they grow)
    checkpoint   signed notes as they are published, newest and a thinned history
    cosigned     the same with the cosignatures of a quorum of witnesses, newest and a thinned history
    day_count    per day, how many records agree in kind, names and reason, and what they cost
    day_span     per day, between which indices its records stand
    subject      pseudonym to sealed identity, its key elsewhere; rows may be deleted, leaves never name a person

Plain column types: SQLite and PostgreSQL carry the same tables. A change here needs a migration in `audit.migrations`
that leads to the same tables (a test compares), and `REVISION`. Trusts nothing; never holds identities in clear.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    func,
    text,
)

METADATA = MetaData()
SCHEMA_VERSION = 1  # of what rows mean: a reader of another one must not guess
REVISION = "0006"  # the newest migration: what METADATA is

_Big = BigInteger().with_variant(Integer(), "sqlite")

head = Table(
    "head",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("schema_version", Integer, nullable=False),
    Column("origin", Text, nullable=False),
    Column("size", _Big, nullable=False),
    Column("root", LargeBinary, nullable=False),
    Column("cursor_key", LargeBinary, nullable=False),  # shared by readers, unknown to those who query through them
    Column("seal", LargeBinary, nullable=True),  # see audit.sealing; NULL in a log from before there were seals
    Column("holds", LargeBinary, nullable=True),  # see audit.holds; NULL until a log from before is opened
    sqlite_strict=True,
)

leaf = Table(
    "leaf",
    METADATA,
    Column("idx", _Big, primary_key=True, autoincrement=False),
    Column("leaf", LargeBinary, nullable=False),
    sqlite_strict=True,
)

record = Table(
    "record",
    METADATA,
    Column("idx", _Big, primary_key=True, autoincrement=False),
    Column("id", Text, nullable=False),
    Column("ts_us", _Big, nullable=False),
    Column("kind", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("model_digest", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("reason", Text, nullable=False),
    sqlite_strict=True,
)
Index("record_id", record.c.id, unique=True)
Index("record_ts", record.c.ts_us)
for _column in (record.c.kind, record.c.tenant, record.c.actor, record.c.model):
    # Pages come in the order of idx. SQLite's entries end with it anyway; PostgreSQL must be told, or it sorts.
    Index(f"record_{_column.name}", _column).ddl_if(dialect="sqlite")
    Index(f"record_{_column.name}", _column, record.c.idx).ddl_if(dialect="postgresql")
# What few records have is indexed for those alone. A question must repeat what that rules out, word for word.
USUAL = {"reason": ("",), "outcome": ("", "completed"), "purpose": ("",), "model_digest": ("",)}
DIGEST_INDEXED = 8  # characters: enough to tell digests apart, an eighth of the index
for _name, _usual in USUAL.items():
    _found_by: ColumnElement[Any] = record.c[_name]
    if _name == "model_digest":
        _found_by = func.substr(_found_by, 1, text(str(DIGEST_INDEXED)))
    _rare = text(" AND ".join(f"{_name} <> '{word}'" for word in _usual))
    Index(f"record_{_name}", _found_by, sqlite_where=_rare).ddl_if(dialect="sqlite")
    Index(f"record_{_name}", _found_by, record.c.idx, postgresql_where=_rare).ddl_if(dialect="postgresql")

open_intent = Table(
    "open_intent",
    METADATA,
    Column("grant_id", Text, primary_key=True),
    Column("idx", _Big, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

shard = Table(
    "shard",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),  # from 0
    Column("origin", Text, nullable=False, unique=True),
    Column("first_idx", _Big, nullable=False),
    Column("half_year", Integer, nullable=False),  # see sealgate.transparency.shards
    sqlite_strict=True,
)

tile = Table(
    "tile",
    METADATA,
    Column("level", Integer, primary_key=True),  # of the tree, and 16 more for each shard before: see audit.tree
    Column("idx", _Big, primary_key=True),
    Column("hashes", LargeBinary, nullable=False),
    sqlite_strict=True,
)

checkpoint = Table(
    "checkpoint",
    METADATA,
    Column("size", _Big, primary_key=True, autoincrement=False),
    Column("ts_us", _Big, nullable=False),
    Column("note", LargeBinary, nullable=False),
    sqlite_strict=True,
)

cosigned = Table(
    "cosigned",
    METADATA,
    Column("size", _Big, primary_key=True, autoincrement=False),
    Column("ts_us", _Big, nullable=False),
    Column("note", LargeBinary, nullable=False),
    sqlite_strict=True,
)

day_count = Table(
    "day_count",
    METADATA,
    Column("day", _Big, primary_key=True, autoincrement=False),  # UTC, since 1970
    Column("kind", Text, primary_key=True),
    Column("key", LargeBinary, primary_key=True),  # digest of the names below: together they are too long for a B-tree
    Column("tenant", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("operation", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("records", _Big, nullable=False),
    Column("counted", _Big, nullable=False),  # one record of `auth.failed` stands for many
    Column("units", _Big, nullable=False),
    Column("eps_micro", _Big, nullable=False),
    Column("first_us", _Big, nullable=False),
    Column("last_us", _Big, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

day_span = Table(
    "day_span",
    METADATA,
    Column("day", _Big, primary_key=True, autoincrement=False),
    Column("first_idx", _Big, nullable=False),
    Column("last_idx", _Big, nullable=False),
    sqlite_strict=True,
)

subject = Table(
    "subject",
    METADATA,
    Column("ref", Text, primary_key=True),
    Column("lookup", LargeBinary, nullable=True, unique=True),  # until there is a key for the person, then NULL
    Column("sealed", LargeBinary, nullable=False),  # under the person's own key, see audit.person_keys
    Column("created_us", _Big, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
