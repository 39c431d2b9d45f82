"""Reference manifests of NVIDIA's driver and firmware: which measurements its maker released (TCG RIM, ISO 19770-2).

    SoftwareIdentity
      Meta     colloquialVersion: of the driver, or of the firmware (VBIOS)
      Payload  Resource: index, active, alternatives, Hash0 ... as SHA-384, size
      Signature

An active resource names the acceptable values of one measurement, counted from 0; the blocks of a device's report are
counted from 1. The others are not compared, because the maker says nothing of them.

Trusts: the roots that its caller names, for the signature. Never: reads a manifest whose signature was not verified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sealgate.errors import DecodeError
from sealgate.evidence.endorsements.signed_xml import Element, verify_signed_xml
from sealgate.limits import MAX_RIM_ALTERNATIVES, MAX_RIM_RESOURCES

_SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
_SHA384 = "http://www.w3.org/2001/04/xmlenc#sha384"
_DIGEST = 48


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What its signer released: of one version, the acceptable values by index of the block in a report."""

    version: str  # lowercase
    golden: Mapping[int, frozenset[bytes]]


def verify_manifest(data: bytes, roots: Sequence[bytes], *, now_us: int) -> Manifest:
    """A signed manifest; raises DecodeError or EvidenceError."""
    root = verify_signed_xml(data, roots, of="manifest", now_us=now_us)
    if root.name != (_SWID, "SoftwareIdentity"):
        raise DecodeError("a manifest is of another kind")
    _, meta, payload = root.only(_SWID, "Entity", "Meta", "Payload")
    golden: dict[int, frozenset[bytes]] = {}
    resources = list(payload.elements())
    if not 0 < len(resources) <= MAX_RIM_RESOURCES:
        raise DecodeError("a manifest has no measurements, or too many")
    for place, resource in enumerate(resources):
        if resource.name != (_SWID, "Resource") or _number(resource, "index") != place:
            raise DecodeError("the measurements of a manifest are not in order")
        active = resource.attribute("active")
        if active not in ("True", "False"):
            raise DecodeError("a manifest does not say whether a measurement counts")
        if active == "True":
            golden[place + 1] = _alternatives(resource)
    return Manifest(version=meta.attribute("colloquialVersion").lower(), golden=golden)


def _alternatives(resource: Element) -> frozenset[bytes]:
    count = _number(resource, "alternatives")
    if not 0 < count <= MAX_RIM_ALTERNATIVES or _number(resource, "size") != _DIGEST:
        raise DecodeError("a manifest names no value, or too many, of a measurement")
    try:
        found = [bytes.fromhex(resource.attributes[_SHA384, f"Hash{place}"]) for place in range(count)]
    except (KeyError, ValueError) as error:
        raise DecodeError("a manifest lacks a value of a measurement") from error
    if any(len(value) != _DIGEST for value in found):
        raise DecodeError("a manifest's value is of another length")
    return frozenset(found)


def _number(element: Element, name: str) -> int:
    text = element.attribute(name)
    if not (text.isascii() and text.isdecimal() and len(text) <= 4):
        raise DecodeError("a manifest has a number that is none")
    return int(text)
