"""Evidence with what it takes to judge it later: the nonce that it was asked with, and the keys published beside it.

A kept file is canonical JSON. That the nonce was fresh when it was asked is the word of whoever kept the file; all the
rest is judged again, under a trust file of today. Trusts nothing. Never: holds secrets; nonces and evidence are public.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from sealgate.errors import DecodeError
from sealgate.evidence.trust import Trust
from sealgate.evidence.verify import VerifiedEvidence, verify_evidence
from sealgate.limits import DEFAULT_MESSAGE, MAX_KEPT_EVIDENCE
from sealgate.protocol.canonical import canonical_json, parse_canonical_json
from sealgate.protocol.sizes import sealed_size

_FORM = "sealgate kept evidence v1"
_MEMBERS = ("nonce", "evidence", "published")


@dataclass(frozen=True, kw_only=True)
class AskedEvidence:
    """What came, not judged: `data` is the evidence, `published` the list at /.well-known/ohttp-gateway, and
    `max_sealed` what the gateway said beside it of the largest sealed request; that is not kept."""

    nonce: bytes
    data: bytes
    published: bytes
    max_sealed: int = sealed_size(DEFAULT_MESSAGE)

    def verify(self, trust: Trust, *, now_us: int) -> VerifiedEvidence:
        """Judge it as of a time; raises EvidenceError."""
        return verify_evidence(self.data, trust, now_us=now_us, nonce=self.nonce, published=self.published)


@dataclass(frozen=True, kw_only=True)
class KeptEvidence:
    """What was asked, and when by the asker's clock."""

    asked: AskedEvidence
    received_us: int

    def encode(self) -> bytes:
        """The file."""
        values = (self.asked.nonce, self.asked.data, self.asked.published)
        told = {name: base64.b64encode(value).decode() for name, value in zip(_MEMBERS, values, strict=True)}
        return canonical_json({"form": _FORM, "received_us": self.received_us, **told})


def parse_kept(data: bytes) -> KeptEvidence:
    """The evidence in a kept file; raises DecodeError."""
    found = parse_canonical_json(data, limit=MAX_KEPT_EVIDENCE)
    if not isinstance(found, dict) or set(found) != {"form", "received_us", *_MEMBERS} or found["form"] != _FORM:
        raise DecodeError("this is not evidence that was kept by `sealgate attest`")
    received_us = found["received_us"]
    if isinstance(received_us, bool) or not isinstance(received_us, int) or received_us < 0:
        raise DecodeError("kept evidence says no time at which it came")
    nonce, evidence, published = (_raw(found[name]) for name in _MEMBERS)
    return KeptEvidence(asked=AskedEvidence(nonce=nonce, data=evidence, published=published), received_us=received_us)


def _raw(text: object) -> bytes:
    try:
        if not isinstance(text, str):
            raise TypeError
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise DecodeError("kept evidence is not base64 where it should be") from error
