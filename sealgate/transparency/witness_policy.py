"""Which logs are known, and how many of which witnesses must have cosigned a checkpoint (C2SP tlog-policy).

    log NAME+KEYID+BASE64 [URL]
    witness X1 NAME+KEYID+BASE64 [URL]
    witness X2 NAME+KEYID+BASE64 [URL]
    group both all X1 X2              # or `any`, or a number
    quorum both                       # or a witness, or `none`

Trusts: whoever wrote the file. Never: accepts a name that was not defined above, a key twice, or a file without its one
quorum line: a policy that cannot fail is no policy, so `none` has to be written out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sealgate.errors import ConfigurationError, LogError
from sealgate.limits import MAX_TRUST_FILE, MAX_WITNESS_POLICY_LINES
from sealgate.transparency.cosignatures import CosignerKey, VerifiedCosignature, verify_cosignatures
from sealgate.transparency.notes import NoteVerifier, VerifiedCheckpoint, open_checkpoint

NONE = "none"
_OCTETS = re.compile(rb"[\t\n\x20-\x7e\x80-\xff]*\Z")
_NUMBER = re.compile(r"[1-9][0-9]{0,5}\Z")


@dataclass(frozen=True)
class Witness:
    """One witness of a policy; `url` is its submission prefix, "" where the file gives none."""

    name: str
    key: CosignerKey
    url: str


@dataclass(frozen=True)
class Group:
    """`threshold` of the members, witnesses or groups, make it whole."""

    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class WitnessedCheckpoint:
    """A checkpoint that a known log signed and a quorum of known witnesses cosigned.

    Holding one proves that so many witnesses saw this very tree, each consistent with all it saw before: the log cannot
    have shown another history to whoever asks those witnesses. With `quorum none` it proves no more than the log's own
    signature does, and `cosignatures` may be empty.
    """

    verified: VerifiedCheckpoint
    cosignatures: tuple[VerifiedCosignature, ...]


@dataclass(frozen=True, kw_only=True)
class WitnessPolicy:
    """A parsed policy file."""

    logs: tuple[NoteVerifier, ...]
    witnesses: Mapping[str, Witness]
    groups: Mapping[str, Group]
    quorum: str

    def require_witnessed(self, note: bytes, *, logs: tuple[NoteVerifier, ...] = ()) -> WitnessedCheckpoint:
        """Verify the note's log signature and its quorum; raises LogError (`no-quorum` names who is missing).

        `logs` are further log keys that are trusted, for a policy that lists none.
        """
        verified = open_checkpoint(note, (*self.logs, *logs))
        cosignatures = verify_cosignatures(note, [witness.key for witness in self.witnesses.values()])
        seen = {cosignature.key for cosignature in cosignatures}
        if not self._witnessed(self.quorum, seen):
            missing = sorted(name for name, witness in self.witnesses.items() if witness.key not in seen)
            raise LogError(
                f"the quorum '{self.quorum}' is not reached; no cosignature of: {', '.join(missing)}", code="no-quorum"
            )
        return WitnessedCheckpoint(verified, cosignatures)

    def _witnessed(self, name: str, seen: set[CosignerKey]) -> bool:
        if name == NONE:
            return True
        if name in self.witnesses:
            return self.witnesses[name].key in seen
        group = self.groups[name]  # members were defined above it, so this ends
        return sum(self._witnessed(member, seen) for member in group.members) >= group.threshold


@dataclass
class _Reading:
    logs: list[NoteVerifier] = field(default_factory=list)
    witnesses: dict[str, Witness] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    members: set[str] = field(default_factory=set)
    quorum: str = ""

    def line(self, words: list[str]) -> None:
        kind, rest = words[0], words[1:]
        if kind == "log" and 1 <= len(rest) <= 2:
            self._log(NoteVerifier.parse(rest[0]))
        elif kind == "witness" and 2 <= len(rest) <= 3:
            self._witness(Witness(rest[0], CosignerKey.parse(rest[1]), rest[2] if len(rest) == 3 else ""))
        elif kind == "group" and len(rest) >= 3:
            self._group(rest[0], rest[1], tuple(rest[2:]))
        elif kind == "quorum" and len(rest) == 1:
            if self.quorum:
                raise ConfigurationError("there may be one quorum line only")
            self._require_defined(rest[0], also=NONE)
            self.quorum = rest[0]
        else:
            raise ConfigurationError("not one of: log VKEY [URL], witness NAME VKEY [URL], group …, quorum NAME")

    def _log(self, log: NoteVerifier) -> None:
        if any(known.public_key == log.public_key for known in self.logs):
            raise ConfigurationError("this log's key is there twice")
        self.logs.append(log)

    def _witness(self, witness: Witness) -> None:
        self._require_new(witness.name)
        if any(known.key.public_key == witness.key.public_key for known in self.witnesses.values()):
            raise ConfigurationError("this witness's key is there twice: it would count as two")
        self.witnesses[witness.name] = witness

    def _group(self, name: str, threshold: str, members: tuple[str, ...]) -> None:
        self._require_new(name)
        for member in members:
            self._require_defined(member)
            if member in self.members:
                raise ConfigurationError(f"'{member}' is a member twice: it would count in two ways")
            self.members.add(member)
        number = {"all": len(members), "any": 1}.get(threshold)
        if number is None:
            number = int(threshold) if _NUMBER.match(threshold) else 0
        if not 1 <= number <= len(members):
            raise ConfigurationError(f"the threshold is 'all', 'any', or a number from 1 to {len(members)}")
        self.groups[name] = Group(number, members)

    def _require_new(self, name: str) -> None:
        if name == NONE or name in self.witnesses or name in self.groups:
            raise ConfigurationError(f"the name '{name}' is taken")

    def _require_defined(self, name: str, also: str = "") -> None:
        if name not in self.witnesses and name not in self.groups and (not also or name != also):
            raise ConfigurationError(f"'{name}' is not defined above this line")


def load_witness_policy(path: Path) -> WitnessPolicy:
    """Read and parse; raises ConfigurationError that names the file and the line."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TRUST_FILE + 1)
    except OSError as error:
        raise ConfigurationError(f"witness policy {path} cannot be read: {error.strerror}") from error
    return parse_witness_policy(data, source=str(path))


def parse_witness_policy(data: bytes, *, source: str = "witness policy") -> WitnessPolicy:
    """The policy in these bytes; raises ConfigurationError."""
    if len(data) > MAX_TRUST_FILE or data.count(b"\n") > MAX_WITNESS_POLICY_LINES:
        raise ConfigurationError(f"{source}: larger than a witness policy may be")
    if not _OCTETS.match(data):
        raise ConfigurationError(f"{source}: holds a control character other than tab and newline")
    # Names are opaque octets: what is not UTF-8 stays apart as surrogates.
    reading = _Reading()
    for number, line in enumerate(data.split(b"\n"), 1):
        words = [word.decode("utf-8", "surrogateescape") for word in re.split(rb"[ \t]+", line.strip(b" \t"))]
        if words == [""] or words[0].startswith("#"):
            continue
        try:
            reading.line(words)
        except ConfigurationError as error:
            raise ConfigurationError(f"{source}: line {number}: {error}") from error
    if not reading.quorum:
        raise ConfigurationError(f"{source}: needs a quorum line (`quorum none` asks for no witness)")
    return WitnessPolicy(
        logs=tuple(reading.logs), witnesses=reading.witnesses, groups=reading.groups, quorum=reading.quorum
    )
