"""Four commands of a TPM 2.0, spoken byte by byte to a character device or a UNIX socket (TPM 2.0 Library, Part 3).

TPM2_CreatePrimary makes the attestation key from the endorsement hierarchy's seed and a fixed template: the same key at
every start, nothing to store. TPM2_PCR_Read and TPM2_Quote are what an endorsement needs, TPM2_FlushContext cleans up.

Trusts: the TPM and the kernel's resource manager (/dev/tpmrm0). Never: keeps a secret; sends authorisations other than
the empty one; extends a register.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from sealgate.deployment import socket_address
from sealgate.errors import ConfigurationError, DecodeError
from sealgate.evidence.endorsements import tpm
from sealgate.evidence.endorsements.endorsed import Reader
from secure_runtime.errors import EndorserFailed
from secure_runtime.limits import MAX_TPM_ANSWER, TPM_ANSWER_S

_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002
_CREATE_PRIMARY, _QUOTE, _FLUSH, _PCR_READ = 0x131, 0x158, 0x165, 0x17E
_ENDORSEMENT, _PASSWORD = 0x4000000B, 0x40000009
_EMPTY = b"\x00\x00"
_AT_ONCE = 8  # registers that one TPM2_PCR_Read answers with
_USER_WITH_AUTH, _NO_DICTIONARY_ATTACK = 1 << 6, 1 << 10
_ATTRIBUTES = (
    tpm.FIXED_TPM
    | tpm.FIXED_PARENT
    | tpm.SENSITIVE_ORIGIN
    | _USER_WITH_AUTH
    | _NO_DICTIONARY_ATTACK
    | tpm.RESTRICTED
    | tpm.SIGN
)
_P256 = 3
_TEMPLATE = (
    struct.pack(">HHI", tpm.ALG_ECC, tpm.ALG_SHA256, _ATTRIBUTES)
    + _EMPTY  # no policy
    + struct.pack(">HHHHH", tpm.ALG_NULL, tpm.ALG_ECDSA, tpm.ALG_SHA256, _P256, tpm.ALG_NULL)
    + _EMPTY
    + _EMPTY
)
"""A TPMT_PUBLIC: an ECDSA P-256 key that may sign only what the TPM itself states."""


@dataclass(frozen=True)
class SignedQuote:
    """TPMS_ATTEST, TPMT_SIGNATURE, and the registers that it is about."""

    attest: bytes
    signature: bytes
    registers: dict[int, bytes]


class TpmDevice:
    """An open TPM with its attestation key. Not safe to share by threads: whoever owns it locks."""

    def __init__(self, path: Path) -> None:
        """Open it and make the key; raises ConfigurationError where there is no TPM, EndorserFailed where it fails."""
        self._path = path
        self._socket: socket.socket | None = None
        self._file = -1
        self._key = 0
        self._open()
        try:
            self._key, self.public = self._create_key()
        except BaseException:
            self.close()
            raise

    def quote(self, qualifying: bytes, pcrs: Sequence[int]) -> SignedQuote:
        """A quote with these qualifying data over these SHA-256 registers. The registers are read first; that nothing
        changed in between, the verifier sees by the quote's digest."""
        registers = self._read_registers(pcrs)
        parameters = _sized(qualifying) + struct.pack(">H", tpm.ALG_NULL) + _selection(pcrs)
        reader = self._ask(_QUOTE, handles=(self._key,), parameters=parameters)
        length = reader.number(4)
        answer = Reader(reader.take(length), order=">")
        attest = answer.sized()
        return SignedQuote(attest, answer.take(length - 2 - len(attest)), registers)

    def close(self) -> None:
        """Drop the key and let go of the device."""
        if self._socket is None and self._file < 0:
            return
        try:
            if self._key:
                self._ask(_FLUSH, handles=(), parameters=struct.pack(">I", self._key), sessions=False)
        except EndorserFailed:
            pass  # it is gone, and the key with it
        finally:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            else:
                os.close(self._file)
                self._file = -1

    def __enter__(self) -> TpmDevice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Commands --------------------------------------------------------------------------------------------------------

    def _create_key(self) -> tuple[int, bytes]:
        sensitive = _sized(_EMPTY + _EMPTY)
        parameters = sensitive + _sized(_TEMPLATE) + _EMPTY + struct.pack(">I", 0)
        reader = self._ask(_CREATE_PRIMARY, handles=(_ENDORSEMENT,), parameters=parameters)
        handle = reader.number(4)
        reader.number(4)
        return handle, reader.sized()

    def _read_registers(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        wanted = sorted(set(pcrs))
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            reader = self._ask(_PCR_READ, handles=(), parameters=_selection(part), sessions=False)
            reader.number(4)  # how often registers changed
            for _ in range(reader.number(4)):
                reader.number(2)
                reader.sized(1)
            values = [reader.sized() for _ in range(reader.number(4))]
            if len(values) != len(part):
                raise EndorserFailed("the TPM has no SHA-256 register of one of these numbers", code="tpm-failed")
            found |= dict(zip(part, values, strict=True))
        return found

    # Bytes -----------------------------------------------------------------------------------------------------------

    def _ask(self, command: int, *, handles: Sequence[int], parameters: bytes, sessions: bool = True) -> Reader:
        """One command; the reader stands behind the answer's header. Raises EndorserFailed."""
        body = b"".join(struct.pack(">I", handle) for handle in handles)
        if sessions:
            session = struct.pack(">I", _PASSWORD) + _EMPTY + b"\x00" + _EMPTY
            body += struct.pack(">I", len(session)) + session
        body += parameters
        tag = _SESSIONS if sessions else _NO_SESSIONS
        try:
            answer = self._exchange(struct.pack(">HII", tag, 10 + len(body), command) + body)
            reader = Reader(answer, order=">")
            reader.number(2)
            length, code = reader.number(4), reader.number(4)
        except (OSError, DecodeError) as error:
            raise EndorserFailed("the TPM does not answer", code="tpm-failed") from error
        if length != len(answer) or code:
            raise EndorserFailed(f"the TPM answered {code:#x}", code="tpm-failed")
        return reader

    def _exchange(self, command: bytes) -> bytes:
        if self._socket is None:
            os.write(self._file, command)
            return os.read(self._file, MAX_TPM_ANSWER)
        self._socket.sendall(command)
        answer = self._receive(10)
        return answer + self._receive(min(int.from_bytes(answer[2:6], "big"), MAX_TPM_ANSWER) - 10)

    def _receive(self, count: int) -> bytes:
        assert self._socket is not None
        data = b""
        while len(data) < count:
            more = self._socket.recv(count - len(data))
            if not more:
                raise OSError("the TPM hung up")
            data += more
        return data

    def _open(self) -> None:
        try:
            if stat.S_ISSOCK(self._path.stat().st_mode):
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.settimeout(TPM_ANSWER_S)
                with socket_address(self._path) as address:
                    self._socket.connect(address)
            else:
                self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            if self._socket is not None:
                self._socket.close()
            hint = "attestation.tpm names the TPM's device, usually /dev/tpmrm0"
            raise ConfigurationError(f"{self._path} cannot be opened: {error.strerror}; {hint}") from error


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _selection(pcrs: Sequence[int]) -> bytes:
    """A TPML_PCR_SELECTION of the SHA-256 bank."""
    mask = sum(1 << index for index in set(pcrs))
    return struct.pack(">IHB", 1, tpm.ALG_SHA256, 3) + mask.to_bytes(3, "little")
