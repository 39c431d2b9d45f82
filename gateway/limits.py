"""Every bound of the gateway, in one place. Sizes are bytes, times seconds unless the name says otherwise.

How large the body of a sealed request is, how many come at once and how long a sender may take are settings of the
deployment (`[deployment]` and `[gateway]` in deployment.toml).
"""

from __future__ import annotations

# Connections ---------------------------------------------------------------------------------------------------------
MAX_CONNECTIONS = 2048  # per gateway process; further ones are closed at once
MAX_HEAD = 32 * 1024  # request line and header fields; also whatever a peer sends without completing anything
HANDSHAKE_TIMEOUT_S = 10.0  # from a TCP connection to a TLS connection
GOODBYE_TIMEOUT_S = 2.0  # for the peer's end of a TLS connection that we close
MAX_PIPELINED = 32  # requests that wait on one connection for the one before them; a head may be eighteen bytes
HEAD_TIMEOUT_S = 10.0  # from a connection's first byte (or its start) to a complete head
KEEP_ALIVE_S = 15  # an idle connection
LINGER_S = 2.0  # how long a body that was refused is read and thrown away, so that the refusal is not lost
WRITE_STALL_S = 30.0  # a reader that takes less than about a PIECE of its answer in this time is dropped
PIECE = 256 * 1024  # how much of an answer is handed to the connection at once
GATHERED_ANSWER = 64 * 1024  # bytes of one turn that wait for its end, to leave in one write
SHUTDOWN_S = 15  # what is in flight may finish when the gateway is asked to stop

# Bodies --------------------------------------------------------------------------------------------------------------
MAX_BUFFERED_BODIES = 256 * 1024 * 1024  # all bodies being held at once, per gateway process
UNREAD_SHARE, UNREAD_ALL = 2, 4  # times that: answers that one caller, and all, have not read; more are not given out
EVIDENCE_IN_FLIGHT = 32  # attestation is open to all and costs the host a signature
AUDIT_IN_FLIGHT = 8  # audit reads hold a thread and a database connection
AUDIT_ASKING = 64  # audit reads whose permit or refusal is being recorded: a share of MAX_OUTSTANDING, not all of it
MAX_NONCE = 64
RETRY_AFTER_S = 1
COLLECT_EVERY = 20_000  # objects made and not gone, until Python looks for cycles among them
WATCH_AFTER_S = 0.25  # a request that takes longer is watched: its caller may go away meanwhile

# Tokens --------------------------------------------------------------------------------------------------------------
MAX_TOKEN = 8 * 1024
MAX_JWKS = 256 * 1024
MAX_ISSUERS = 64
MAX_KEYS = 64  # of one issuer
MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192  # verification time grows with the key
CLOCK_SKEW_S = 30  # how far in the future `iat` and `nbf` may always lie; `exp` gets the issuer's leeway only
MAX_LEEWAY_S = 300  # what an issuer's leeway may be at most
MAX_LIFETIME_S = 24 * 3600  # an issuer may be allowed at most this
MAX_VERIFIED_TOKENS = 4096  # remembered until they expire; the least recently used goes first
MAX_CLAIM_ITEMS = 64  # of `aud`, `roles`, `purposes`
MAX_CLAIM_TEXT = 256  # of a provider's name, a `jti`, a `client_id`
MAX_CLAIM_PATH = 8  # names on the way to a claim
MAX_MAP = 256  # names in a map of an issuer
MAX_CERTIFICATES = 1024  # parsed client certificates that are remembered
MAX_DENY_LIST = 4 * 1024 * 1024

# Client certificates -------------------------------------------------------------------------------------------------
MAX_AUTHORITIES = 32  # files of accepted authorities; a certificate is judged under each
MAX_AUTHORITY_FILE = 256 * 1024
MAX_ANCHORS = 16  # certificates in one such file
MAX_CRL_FILES = 64
MAX_CRL_FILE = 8 * 1024 * 1024
MAX_CHAIN = 8  # certificates that a client may show, its own included
MAX_CERTIFICATE = 16 * 1024  # one certificate, DER
MAX_TRUSTED_PROXIES = 64
FRESH_FILE_US = 100_000  # a file changed this recently is read again, as it may change twice between two clock ticks
CRL_SKEW_S = 300  # how far in the future a revocation list's thisUpdate may lie: clocks differ

# Key sets of issuers -------------------------------------------------------------------------------------------------
KEY_FETCH_TIMEOUT_S = 10.0  # one refresh as a whole: metadata and keys
MIN_KEYS_FRESH_S = 60  # a shorter max-age is taken for this
KEYS_FRESH_S = 300  # where the provider says nothing
MAX_KEYS_FRESH_S = 24 * 3600  # a longer max-age is taken for this
REFRESH_AHEAD = 0.8  # of the freshness has passed when the next set is fetched; a tenth less at random
REFRESH_RETRY_FIRST_S = 2.0  # after a failure, doubled each time
REFRESH_RETRY_MAX_S = 60.0
MAX_STALE_S = 7 * 24 * 3600  # what `stale_s` may be at most
MAX_KEY_COOLDOWN_S = 3600  # what `unknown_key_cooldown_s` may be at most
MAX_METADATA = 64 * 1024  # an issuer's metadata document
MAX_KEY_WAITERS = 256  # callers of one issuer that wait for a refresh; more are refused at once
MAX_URL = 2048

# Revocations ---------------------------------------------------------------------------------------------------------
MAX_REVOKED_FILE = 1024 * 1024
MAX_REASON = 240  # characters of an operator's reason
MAX_REVOCATIONS = 4096  # read again on the event loop whenever the file changes: this many take a moment

# Proofs of possession (DPoP) ------------------------------------------------------------------------------------------
MAX_PROOF = 4 * 1024
MAX_PROOF_ID = 256  # the claim `jti`
MAX_PROOF_RSA_BITS = 4096  # the key comes with the proof, so a caller chooses what its verification costs
PROOF_AGE_S = 120  # how far back `iat` may lie
PROOF_AHEAD_S = 30  # how far ahead
NONCE_WINDOW_S = 150  # a nonce counts in its window and in the next: 150 to 300 s
MAX_PROOF_PAGES = 16 * 1024  # of 4 KiB: some 500,000 used proofs, more than a machine verifies in PROOF_AGE_S
PROOF_STORE_WAIT_S = 2.0  # for another gateway process that writes

# Runtime link --------------------------------------------------------------------------------------------------------
MAX_OUTSTANDING = 512  # requests sent to the host and not answered, the cancelled ones included
MAX_LINK_BUFFER = 256 * 1024 * 1024  # bytes not yet taken by the host; then requests are refused
MAX_LINK_NOTICES = 256 * 1024  # above this many bytes not yet taken, notices that nobody waits for are dropped
RECONNECT_FIRST_S = 0.05
RECONNECT_MAX_S = 1.0

# Policy --------------------------------------------------------------------------------------------------------------
POLICY_WAIT_S = 5.0  # how long a request waits for a policy that has just come into force
POLICY_RETRY_S = 1.0  # after a version could not be loaded
POLICY_ATTEMPTS = 8  # decisions of one request that other policies overtook; then it is refused

# Audit routes --------------------------------------------------------------------------------------------------------
MAX_REVIEW = 8 * 1024  # an auditor's statement of a review, as JSON
MAX_AUDIT_HOLDS = 100  # on a page: each is looked up with the record that released it
MAX_AUDIT_TEXT = 1024  # one filter value or cursor
EXPORT_CHUNK = 64 * 1024
EXPORT_CHUNKS_AHEAD = 16  # how far an export may run ahead of its reader

# Console -------------------------------------------------------------------------------------------------------------
SIGN_IN_S = 600  # from the way to the provider to the way back
SIGN_INS_IN_FLIGHT = 16  # that wait for the provider, per gateway process; more are told to come again
MAX_COOKIE = 3800  # of one cookie: browsers take 4096 with its name and attributes
MAX_SESSION_COOKIES = 3  # a session that needs more is refused: MAX_TOKEN, sealed and in base64url, fits
MAX_FORM = 4 * 1024
MAX_CODE = 2048  # the provider's authorization code, and every other parameter that comes back with it
MAX_TOKEN_ANSWER = 64 * 1024
PROVIDER_TIMEOUT_S = 10.0
PROVIDER_FRESH_S = 3600  # how long the provider's addresses are believed
CONSOLE_PAGE = 50  # records on one page
CONSOLE_ROWS = 500  # of one table of a report; the rest is counted, and to be had from the API

# Logs ----------------------------------------------------------------------------------------------------------------
MAX_LOG_TEXT = 256
MAX_FIT_TEXT = 128  # characters of a text that is remembered as one that a line may carry
MAX_FIT_TEXTS = 1024  # that are remembered
SOURCES_KNOWN = 1024  # addresses whose class is remembered

# Metrics -------------------------------------------------------------------------------------------------------------
FIGURES_EVERY_S = 5.0  # a gateway process tells the host what it counted; and whenever it is scraped
MAX_METRICS_HEAD = 16 * 1024  # request line and fields of a scrape
MAX_METRICS_CONNECTIONS = 8
METRICS_ANSWER_S = 5.0  # from a scraper's connection to the end of its answer
MAX_METRICS_TOKEN = 1024
