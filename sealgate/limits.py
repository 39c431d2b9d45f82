"""Every bound of the shared ground, in one place. A reviewer prints this page.

Sizes are bytes, times seconds unless the name says otherwise. Bounds are checked before memory is allocated.
"""

from __future__ import annotations

# Sealed messages -----------------------------------------------------------------------------------------------------
DEFAULT_MESSAGE_MB, MAX_MESSAGE_MB = 16, 128  # what [deployment] max_request_mb is, and is at most
MEMORY_PER_MESSAGE = 16  # times its largest message is what a worker's limit of memory must be at least
DEFAULT_MESSAGE = DEFAULT_MESSAGE_MB * 1024 * 1024
MAX_INNER_MESSAGE = MAX_MESSAGE_MB * 1024 * 1024  # one decoded Binary HTTP message in any deployment
SEALED_ROOM = 64 * 1024  # what a sealed message has beside its chunks
SEALED_SHARE = 512  # and one byte for so many: a chunk's tag and length are 20 for 16 KiB
MAX_SEALED_MESSAGE = MAX_INNER_MESSAGE + MAX_INNER_MESSAGE // SEALED_SHARE + SEALED_ROOM  # all chunks together
CHUNKED_ABOVE = 64 * 1024  # inner messages above this are sealed as chunks (bounded memory at the opener)
CHUNK = 16 * 1024  # plaintext bytes in one chunk; streams pad to it
MAX_CHUNKS = 16384
MAX_KEY_CONFIGS = 16
MAX_KEY_CONFIGS_BYTES = 64 * 1024

# Binary HTTP (RFC 9292) ----------------------------------------------------------------------------------------------
MAX_FIELDS = 64  # header fields in one section
MAX_FIELD_SECTION = 32 * 1024
MAX_TARGET = 4096  # scheme, authority and path, each

# Open Inference Protocol ---------------------------------------------------------------------------------------------
MAX_TENSORS = 64
MAX_TENSOR_RANK = 8
MAX_TENSOR_ELEMENTS = 16 * 1024 * 1024  # that are made one by one: of JSON, texts, pictures, columns
MAX_BINARY_ELEMENTS = MAX_INNER_MESSAGE  # of numbers that come as they are held: a byte each at least
MAX_INFERENCE_JSON = 16 * 1024 * 1024  # numbers as text become many times their size as objects: more go as binary data
ONE_PASS_JSON = 1024 * 1024  # read as objects before shapes are looked at: twenty times that in memory
MAX_PARAMETERS = 64

# Frames between our own processes ------------------------------------------------------------------------------------
MAX_FRAME_HEADER = 256 * 1024
MAX_FRAME_BODY = MAX_SEALED_MESSAGE
LARGE_BODY = 256 * 1024  # of a frame: above it, it is gathered in memory of its own
LOCAL_SOCKET_BYTES = 4 * 1024 * 1024  # on their way between two of our processes; the kernel may allow less (wmem_max)
MAX_SUBJECT_NAME = 1024  # characters of what a caller is called
MAX_ADMIN_NOTE = 300  # characters of an operator's words in a record
ADMIN_ANSWER_S = 60.0  # how long a command waits for the host
SWITCH_ANSWER_S = 900.0  # the same for changes of models: new workers start one after the other
MAX_WORKERS = 8  # side by side: the published list holds two keys of each
MAX_DRAIN_S = 86_400
MAX_GATEWAY_WORKERS = 64  # processes on one socket
MAX_SETTING = 1_000_000  # of a whole number in deployment.toml
MAX_SOCKET_PATH = 107  # of a UNIX socket's address on Linux (sun_path)

# Freshness and keys --------------------------------------------------------------------------------------------------
DATE_WINDOW_S = 120  # how far the inner Date may lie from the worker's clock, either way
EVIDENCE_LIFETIME_S = 3600
EVIDENCE_SKEW_S = 60  # how far in the future the time of issue may lie: clocks differ

# Evidence ------------------------------------------------------------------------------------------------------------
MAX_CBOR_DEPTH = 16
MIN_NONCE = 8  # RFC 9711 section 4.1 allows 8 to 64 bytes
MAX_NONCE = 64
EVIDENCE_NONCE = 32  # what our client sends
MAX_ENDORSEMENTS = 8
MAX_HELD_EVIDENCE = 64  # models of which a client keeps the evidence of a worker
MAX_KEPT_EVIDENCE = 1024 * 1024  # a file that `sealgate attest verify` wrote
MAX_TRUST_FILE = 256 * 1024
MAX_CHAIN = 8  # certificates from a maker's root to what signed a report
MAX_GPUS = 16  # of one machine
MAX_GPU_REPORT = 16 * 1024
MAX_SPDM_FIELDS = 64  # in the opaque data of one report
MAX_RIMS = 16  # reference integrity manifests in one endorsement
MAX_RIM = 64 * 1024
MAX_RIM_RESOURCES = 255  # measurements that one manifest names
MAX_RIM_ALTERNATIVES = 64  # values of one of them
MAX_XML_DEPTH = 16
MAX_XML_NODES = 4096

# Log -----------------------------------------------------------------------------------------------------------------
MAX_LEAF = 8 * 1024
MAX_RECEIPT = 64 * 1024
MAX_PROOF_HASHES = 64  # 2^64 leaves
MAX_NOTE = 64 * 1024
MAX_WITNESS_POLICY_LINES = 1024
MAX_WITNESSED_LOGS = 1024  # logs that one witness keeps
MAX_BUNDLE = 2 * 1024 * 1024 * 1024  # an evidence bundle, all members together
MAX_BUNDLE_MEMBER = 16 * 1024 * 1024
MAX_BUNDLE_MEMBERS = 4096
MAX_BUNDLE_RECORDS = 2_000_000
MAX_CARRIED_GRANTS = 1000  # budgets whose grants a new shard says again, those granted last
MAX_EXPORT_LINE = 128 * 1024  # one record in any form of export: a leaf twice, escaped, and its frame
MAX_REPORT_GROUPS = 10_000  # rows of one table of a report; what does not fit is counted

# Certificates and bundles --------------------------------------------------------------------------------------------
MAX_CERTIFICATE = 1024 * 1024
MAX_MANIFEST = 1024 * 1024
MAX_EVIDENCE = 256 * 1024
MAX_WEIGHTS = 256 * 1024 * 1024
MAX_WEIGHTS_HEADER = 1024 * 1024
MAX_WEIGHTS_TENSORS = 1024
MAX_CARD = 256 * 1024
SEALED_CHUNK = 1024 * 1024  # plaintext bytes of one chunk of encrypted weights
MAX_KEY_ENVELOPE = 16 * 1024
MAX_WRAPPED_KEY = 4096
MAX_WRAPPING_KEY_FILE = 1024
MAX_WRAPPING_KEYS = 16
MAX_KEY_SERVICE_FILE = 16 * 1024
MAX_KEY_SERVICE_ANSWER = 64 * 1024
KEY_SERVICE_S = 10.0  # one question to a key service: within it a worker's start waits
MAX_KEY_SERVICE_S = 60.0
MAX_MODEL_SIGNATURE = 256 * 1024
MAX_SIGNING_KEY_FILE = 64 * 1024
MAX_PUBLISHERS_FILE = 256 * 1024
MAX_PUBLISHERS = 256
MAX_MEMBERS = 8  # models that make one pipeline
MAX_PIPELINE_WEIGHTS = 256 * 1024 * 1024  # of all members together
MAX_PIPELINE_FILE = 64 * 1024  # the text that a pipeline is made from
MAX_BUNDLE_FILES = 16  # directory entries read before a bundle is refused
MAX_BUNDLES = 256  # bundles listed in one models directory
MAX_WARM_UPS = 8  # sizes of requests that a manifest may name for warming up
MAX_WARM_UP_ROWS = 4096  # in one of them; larger requests run in slices
MAX_COLUMNS = 8192  # features of one model
MAX_CLASSES = 1024
MAX_INPUTS = 8  # tensors that one model takes
MAX_EXAMPLE_NUMBERS = 1024 * 1024  # numbers in one row of one input
MAX_TOKENS = 8192  # tokens in one text
MAX_VOCABULARY = 262_144
MAX_IMAGE_CHANNELS = 16
MAX_CONVOLUTION_STAGES = 16
MAX_CONVOLUTION_CHANNELS = 1024
MAX_CONVOLUTION_KERNEL = 31
MAX_CONVOLUTION_NUMBERS = 256 * 1024  # behind one convolution of one image: half a gigabyte for 256 images
MAX_CONVOLUTION_WORK = 512 * 1024 * 1024  # multiplications of all convolutions of one image
MAX_SCATTERING_SCALES = 5
MAX_SCATTERING_ANGLES = 16
MAX_SCATTERING_FEATURES = 128 * 1024  # of one image
MAX_SCATTERING_NUMBERS = 4 * 1024 * 1024  # pixels times angles times squared scales: bounds filters and work
WORK_AT_ONCE = 64 * 1024 * 1024 * 1024  # multiplications of one call, and of one row at most: some ten seconds
NUMBERS_AT_ONCE = 32 * 1024 * 1024  # that a model holds for all rows of one call: 256 MiB in float64
MAX_HIDDEN_LAYERS = 16
MAX_LAYER_WIDTH = 16384
MAX_HEADS = 128  # of attention
MAX_ATTENTION_SCORES = 16 * 1024 * 1024  # of one example in one layer: heads times steps times steps

# Privacy accounting: beyond these a certificate is refused, because recomputing it would cost minutes or mean nothing
MAX_TRAINING_STEPS = 1_000_000
MIN_SIGMA_MICRO = 300_000
MAX_SIGMA_MICRO = 10_000_000_000
MAX_EPSILON_MICRO = 100_000_000  # epsilon 100: above it the guarantee is empty
MAX_PRIVACY_LOSS_MEAN = 5000  # steps * rate / (2 sigma^2): bounds the memory of the privacy-loss distribution
MAX_MU_SQUARED = 200  # of Gaussian releases together: beyond it epsilon is above MAX_EPSILON_MICRO at any usual delta
MAX_NORM_MICRO = 10**12  # of clip norms and row norms
MAX_CLIPPING_EXCESS_PPB = 100_000_000  # a tenth of the clip norm
MAX_ROWS_PER_UNIT = 1_000_000
MIN_GRID_BITS = 16  # of discrete noise: coarser grids are not the Gaussian mechanism's post-processing
MAX_GRID_BITS = 48
MAX_ROUNDED_BITS = 10  # of noise that is rounded: finer grids would show what floating point does to it
MAX_GRAPH_HOPS = 16  # noisy sums over neighbours, one after the other
MAX_GRAPH_DEGREE = 10_000
MAX_STATISTICS = 4096  # statistics that preprocessing took from private rows
MAX_SELECTION_TRIALS = 10_000  # runs among which the best is chosen, on average
MAX_SELECTION_CHOICES = 1_000_000
MIN_DELTA_EXPONENT = 12  # delta below 1e-12 is beyond the accountant's precision

# Requests from people ------------------------------------------------------------------------------------------------
MAX_NAME = 128  # model, tenant, purpose, client names

# What a certificate may say of its audit.
MAX_AUDIT_PROBES = 32
MIN_AUDIT_CONFIDENCE_PPM = 900_000  # below it a lower bound says next to nothing
MIN_AUDIT_CANARIES = 100
MAX_AUDIT_WORDS = 400  # characters of one probe's figures
MAX_STATISTIC_COUNT = 1_000_000_000  # of names that a row counts for, or of a threshold
MAX_MASKED = 1024  # columns whose masking one certificate tells
MAX_MASKED_WORDS = 300  # characters about one of them
MAX_MEASURED = 257  # models that one certificate says the quality of: its own and those of a sweep
MAX_ROWS_MEASURED = 1_000_000_000

# Figures and traces --------------------------------------------------------------------------------------------------
MAX_SERIES = 256  # of one metric: what would be more is counted as "other"
MAX_FIGURES = 1024 * 1024  # all of one process

# Prices --------------------------------------------------------------------------------------------------------------
MAX_PRICE_LIST = 256 * 1024
MAX_PRICES = 1000
