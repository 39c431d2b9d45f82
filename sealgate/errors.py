"""The exception tree of the shared ground. Every package has one such file, rooted in SealgateError.

    SealgateError
    ├── ConfigurationError        a settings, trust or policy file is wrong; the text says how to mend it
    ├── ProtocolError             bytes from the other side are not what the protocol allows
    │   ├── DecodeError           malformed, oversized, trailing bytes, unknown field
    │   ├── OpenError             decryption failed; says nothing about why
    │   ├── UnknownKeyError       sealed to a key that is not (or no longer) held
    │   └── TruncatedError        a stream ended without its final chunk
    ├── VerificationError         a signature, proof, digest or claim does not hold
    │   ├── EvidenceError
    │   ├── ReceiptError
    │   ├── CertificateError
    │   └── LogError
    ├── RemoteError               the service answered with a refusal
    ├── HostAway                  no runtime host of this deployment can be told
    └── HostRefused               the runtime host did not do what an operator's command asked

`str(error)` is public text: it never carries secrets, payloads, tokens or the messages of libraries.
`code` is stable and is what logs, problem documents and tests name.
"""

from __future__ import annotations


class SealgateError(Exception):
    """Root of everything this project raises on purpose."""

    code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class ConfigurationError(SealgateError):
    """A file or flag written by a person is wrong. The text names it and says how to mend it."""

    code = "configuration"


class ProtocolError(SealgateError):
    """Bytes from the other side are not what the protocol allows."""

    code = "protocol"


class DecodeError(ProtocolError):
    """Malformed, oversized or trailing bytes; unknown fields."""

    code = "malformed"


class OpenError(ProtocolError):
    """Decryption failed. Deliberately says nothing about why."""

    code = "cannot-open"

    def __init__(self) -> None:
        super().__init__("the sealed message cannot be opened")


class UnknownKeyError(ProtocolError):
    """The message is sealed to a key identifier that is not, or no longer, held."""

    code = "unknown-key"


class TruncatedError(ProtocolError):
    """A chunked message ended without its authenticated final chunk."""

    code = "truncated"


class VerificationError(SealgateError):
    """A signature, proof, digest or claim does not hold."""

    code = "verification"


class EvidenceError(VerificationError):
    """The runtime's evidence is not acceptable under the trust file."""

    code = "evidence"


class ReceiptError(VerificationError):
    """An audit receipt does not match what was sent and received, or does not verify."""

    code = "receipt"


class CertificateError(VerificationError):
    """A privacy certificate or model bundle is refused."""

    code = "certificate"


class LogError(VerificationError):
    """An audit log, proof or evidence bundle does not verify."""

    code = "log"


class RemoteError(SealgateError):
    """The service answered with a refusal (problem+json).

    `status` is the HTTP status; `problem_type` the URI of the problem, `retry_after_s` what the service asked for.
    """

    code = "remote"

    def __init__(
        self, message: str, *, status: int, problem_type: str = "about:blank", retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problem_type = problem_type
        self.retry_after_s = retry_after_s


class HostAway(SealgateError):
    """No runtime host listens ("host-away"), or this user may not tell it ("host-not-yours"). The text says which;
    nothing was said to anybody."""

    code = "host-away"


class HostRefused(SealgateError):
    """The host did not do it. `code` is one of `sealgate.protocol.administration.REFUSALS`."""

    code = "host-refused"
