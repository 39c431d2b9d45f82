"""Every bound of the runtime, in one place. Sizes are bytes, times seconds."""

from __future__ import annotations

from sealgate.limits import WORK_AT_ONCE

# Host ----------------------------------------------------------------------------------------------------------------
MAX_IN_FLIGHT_PER_GATEWAY = 4096  # frames asked and not yet answered on one gateway connection
MAX_UNREAD_BYTES = 256 * 1024 * 1024  # waiting for one gateway to read; an answer too many is refused by itself
MAX_UNRECORDED_BYTES = 256 * 1024 * 1024  # answers waiting for their records to be durable; what is more is refused
MAX_IN_FLIGHT_BYTES = 256 * 1024 * 1024  # sealed requests handed to the worker and not yet completed
HASHED_AT_ONCE = 1024 * 1024  # sealed bytes that the event loop hashes itself: a millisecond or two
ROOM_FOR_END = 2048  # of a leaf: an end adds commitments, digests and the worker's signature to its authorization
MAX_BINDING = 128  # characters of a credential's binding
COLLECT_EVERY = 20_000  # objects made and not gone, until Python looks for cycles among them
LOOK_EVERY_S = 0.1  # how often what a worker has is looked at: is somebody still waiting, is it late
WORKER_GRACE_S = 10.0  # how long past the time-out a worker may take before it counts as hung
MAX_UNITS = 2**52  # one completion may claim; stays exact in JSON
BOOT_TIMEOUT_S = 120.0  # from spawn to Hello; loading torch and recomputing certificates is most of it
RESTART_DELAY_MIN_S = 0.1
RESTART_DELAY_MAX_S = 30.0
STABLE_AFTER_S = 60.0  # a worker that lived this long restarts without added delay
MAX_REMEMBERED_KEY_IDS = 128  # of 256: recent identifiers that a new worker does not use again
MAX_WORKER_EVENTS = 64  # waiting for the host; also the changes of keys that a worker may make at once
KEY_CHANGE_EVERY_S = 10.0  # and one more for so much time that it lived: each is a record
DRAIN_POLL_S = 0.05  # how often it is looked whether a worker that was replaced still owes an answer
CUDA_LIBRARIES_BYTES = (
    2400 * 1024 * 1024
)  # addresses that torch's libraries for CUDA take more than those for the CPU (2.13)
SPARE_MEMORY_BYTES = 64 * 1024 * 1024  # left for others when workers are started beside those that serve
MAX_WITHHELD_BYTES = 256 * 1024  # of the file that names unloaded bundles
MAX_KEPT_LISTS = 32  # of them, newest first: a log restored from a backup states one of before
MAX_WORKER_WORDS = 300  # characters of its own words that people see
DRAIN_S = 15.0  # how long an ordered stop waits for requests in flight
MAX_ADMIN_QUESTION = 16 * 1024  # one frame of an operator's command
MAX_ADMIN_CONNECTIONS = 8  # at once
MAX_NEW_BUDGETS = 16  # that the record of a change of policy names
ADMIN_QUESTION_S = 5.0  # from connecting to a whole question

# Attestation ---------------------------------------------------------------------------------------------------------
MAX_TPM_ANSWER = 4096  # of one command
TPM_ANSWER_S = 30.0  # making a key takes a slow chip seconds
MAX_PLATFORM_REPORT = 64 * 1024  # a quote of a confidential machine, or one file that goes with it

# Doctor --------------------------------------------------------------------------------------------------------------
PROBE_TIMEOUT_S = 30.0
MAX_GRANTS = 1000  # records of budgets that one change of the policy brings
MAX_EXHAUSTIONS = 10_000  # pairs of a caller and an exhausted budget that the host remembers to have put on record
MAX_TOLD = 500  # characters of what keeps witnesses from cosigning, in the state that gateways hear
MAX_TOLD_LAYERS_BYTES = 3 * 1024  # of what one worker says of its layers, in that state: a real one says 1 KiB
STATE_ANSWER_S = 5.0  # what a host that runs says of itself, when `sealgate doctor` asks
MAX_PROC_BYTES = 256 * 1024  # read of one file of /proc
MAX_GPUS = 64  # that are named
MAX_PROBE_REPORT = 1024 * 1024
WORKER_UID = 65534  # as in the deployment's default: the user to change to when started by root

# Worker --------------------------------------------------------------------------------------------------------------
MAX_BUNDLES = 64
MAX_FACTS_BYTES = 128 * 1024  # what all loaded models say of themselves: half of a frame's header, and of evidence
MAX_REFUSALS = 128  # bundles that are named as refused
MAX_HELD_KEYS = 16  # above this, a much used key is not replaced early: bounds the memory of replay sets
RECEIVE_BYTES = 32 * 1024 * 1024  # taken from the socket in one sweep
WORK_TOGETHER = WORK_AT_ONCE  # multiplications of a sweep before what is done leaves: that of one call of a model
MAX_WAITING_EXPLANATIONS = 64 * 1024 * 1024  # bytes of sealed requests for explanations that wait in a worker
SEALED_AT_ONCE = 4 * 1024 * 1024  # bytes of sealed answers that wait for the rest of their sweep
JSON_NUMBER_BYTES = 64  # of memory that a number of an answer takes which is written as text
LANES = 2  # batches of one model under way at once on a GPU: one computes while the next one's rows are copied
GRAPH_ROWS = (1, 4, 16, 64, 256)  # that CUDA graphs are captured for; more rows run as they always do
GRAPH_TOLERANCE = 1e-5  # of padded answers against those of the model itself
SLICE_ROWS = 4096  # run at once; a larger request runs in slices, and ends when its time is over
MAX_ENCODED_FACTOR, MAX_ENCODED_ROOM = 2, 64 * 1024  # bytes of one PNG or JPEG: twice its pixels, and what lies beside
MAX_JPEG_SCANS = 64  # passes over one picture: a few bytes each could ask for another; encoders make about ten
MAX_PNG_TEXTS = 8  # compressed texts and profiles beside one picture: a kilobyte each, and each a megabyte once opened
MAX_EXPLAIN_EVALUATIONS = 1 << 17  # rows that a model is run on for one request for explanations
MAX_EXPLAIN_ROWS = 4096  # of one such request, however small the model: each takes Captum a millisecond or more
MAX_EXPLAIN_PARTS = 256  # of one image, text, sequence or graph that are taken away one by one
EXPLAIN_PRICED_EVALUATIONS = 256  # rows that one price of an explanation pays for
MAX_EXPLAIN_WORK = 1 << 37  # multiplications of one such request: some ten seconds
MAX_COUNTED_CALLERS = 4096  # callers and models of whom a worker remembers the counts
MAX_TEST_BYTES = 1024 * 1024 * 1024  # of rows that a compressed model is tried on
COMPARED_ROWS = 256  # of those, in one call
MADE_UP_ROWS = 256  # where no such rows are given
TIMED_RUNS, TIMED_S = 200, 5.0  # of each model, until the first of the two is reached
MAX_NOISED_NUMBERS = 32_768  # scores or values of one noised request: a seventh of a second of drawing
MAX_SINGLE_USE = 4  # processes for single requests at once; each may grow to the worker's memory limit
ZYGOTE_START_S = 60.0  # until it has closed and tried its sandbox
MAX_COUNTED_PROCESSES = 64  # whose memory metrics tell
