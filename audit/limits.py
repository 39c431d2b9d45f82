"""Every bound of the log, in one place. Sizes are bytes and times seconds unless the name says otherwise."""

from __future__ import annotations

# Writing -------------------------------------------------------------------------------------------------------------
MAX_BATCH = 512  # records in one transaction: bounds how long one fsync keeps the first caller waiting
BUSY_REQUESTS = 8  # under way: from so many on, index rows may wait for another transaction
INDEX_BEHIND = 256  # so many records of them; opening hashes as many leaves, or more
MAX_QUEUE = 4096  # records waiting; denials and administration are refused beyond it
MAX_QUEUE_FOR_INFERENCE = 2048  # new inferences are refused earlier, so that refusals and ends still find room
DISK_RESERVE_BYTES = 64 * 1024 * 1024  # below it no inference starts; denials and ends still fit
DISK_FLOOR_DIVISOR = 2  # below this part of the reserve only ends are recorded: denials must not fill up the disk
PUBLISH_AFTER_S = 1.0  # a busy log stores a signed checkpoint this often
PUBLISH_IDLE_S = 0.05  # an idle one this soon after its last record
CHECKPOINT_HISTORY_US = 60_000_000  # one stored checkpoint is kept per this span of time
WAL_AUTOCHECKPOINT_PAGES = 16_000
BUSY_TIMEOUT_MS = 5_000  # how long the writer waits for SQLite's own lock (a copy being made, for example)
MAX_INDEXED_TEXT = 512  # characters of an indexed field: PostgreSQL's B-trees take 2,704 bytes, and UTF-8 is up to four
WRITER_LOCK_WAIT_S = 5.0  # a killed writer's session holds PostgreSQL's lock for a moment longer
CONNECT_TIMEOUT_S = 10
CONNECTION_LOST_S = 30  # unanswered for so long, a connection over the network counts as lost
CONNECTION_CHECK_S = 5.0  # how often an idle writer asks whether its connection, and so its lock, still stands
RETRY_AFTER_S = 5  # what refused callers are told
RETRY_AFTER_FAILED_S = 60

# Pseudonyms ----------------------------------------------------------------------------------------------------------
MAX_NAMED_SUBJECTS = 1024  # whose names are held in memory, for the sake of an HMAC
MAX_CACHED_SUBJECTS = 65_536
MAX_NEW_SUBJECTS = 2 * MAX_QUEUE  # whose pseudonyms wait for the next append
MAX_SUBJECT = 1024  # characters of a subject's name
SUBJECT_DELETION_WAIT_S = 5.0  # a pseudonym whose row is being deleted is waited for no longer

# Tree ----------------------------------------------------------------------------------------------------------------
TILE_HEIGHT = 8  # C2SP tlog-tiles
TILE_WIDTH = 1 << TILE_HEIGHT

# Shards --------------------------------------------------------------------------------------------------------------
CARRIED_TEXT = 5000  # characters of budgets' balances in one record: it must be a leaf

# Failed authentication -----------------------------------------------------------------------------------------------
AUTH_FAILURE_KEYS = 64  # distinct (reason, source) counted apart in one minute; the rest are counted together
AUTH_FAILURE_SPAN_US = 60_000_000

# Retention -----------------------------------------------------------------------------------------------------------
MAX_RETENTION_FILE = 256 * 1024
MAX_RETENTION_RULES = 4096
MAX_RETENTION_DAYS = 36525  # a century
MAX_HOLDS = 4096  # in force at once
PRUNE_SCAN = 8192  # index rows that are looked at for one answer
PRUNE_RECORDS = 2048  # records that one `retention.pruned` announces: bounds how long the writer is busy with them
PRUNE_TEXT = 6000  # characters of their indices: the record must be a leaf
SCRUB_WAIT_S = 1.0  # how long emptying the write-ahead log waits for readers; well below BUSY_TIMEOUT_MS
MAX_PRUNE_S = 30.0  # one statement of a pruner is cut off after this
PRUNE_SUBJECTS = 1024  # pseudonyms that are looked at for one answer

# Reading -------------------------------------------------------------------------------------------------------------
MAX_PAGE = 1000
DEFAULT_PAGE = 100
PAGE_SCAN = 10_000  # index entries that a page looks at at a time, where several names are asked for
PAGE_LOOK_NS = 1_000_000_000  # how long a page looks on for more
RARE_RECORDS = 2000  # so many of a name are looked at to find out which of several names is rare
MAX_CURSOR = 1024  # characters
MAX_QUERY_S = 10.0  # one statement is cut off after this
MAX_READER_CONNECTIONS = 16  # to PostgreSQL, for each reading process
READER_IDLE_S = 60.0  # a reader that hangs inside its transaction is cut off, so that old rows can be vacuumed
ACTIVITY_DAYS = 30  # that a chart is about, unless it is told since when
MAX_ACTIVITY_DAYS = 366
MAX_EXPORT_RECORDS = 1_000_000
MAX_REPORT_RECORDS = 50_000  # leaves that one report reads
MAX_REPORT_LISTED = 10_000  # operations, and as many reads, that one report lists from a shard: the newest
MAX_REPORT_DAY_GROUPS = 100_000  # groups that one report adds up from the day roll-ups
PUBLISH_WAIT_S = 5.0  # how long an export waits for a signed checkpoint over its range
INDEX_WAIT_S = 5.0  # how long a question waits for the index rows of what there was when it was asked
EXPORT_CHUNK_RECORDS = 1024

# Witnesses -----------------------------------------------------------------------------------------------------------
WITNESS_TIMEOUT_S = 10.0  # of connecting, and of each part of an answer
WITNESS_CLOSE_S = 2.0  # how long a closing log waits for an answer that is under way
MAX_WITNESS_ANSWER = 64 * 1024
