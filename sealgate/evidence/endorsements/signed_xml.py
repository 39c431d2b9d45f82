"""XML documents that are signed as a whole: Canonical XML 1.1 and an enveloped XML signature (W3C, of 2008 and 2013).

One form is understood, the one that reference manifests of devices come in: a single `Signature` that is the root's
child and whose single reference is the whole document, canonical without comments, SHA-384, ECDSA on P-384, with the
certificates in KeyInfo. Anything else is refused. So what was signed is what is read: the tree that
`verify_signed_xml` returns is the one that was canonicalised, without its signature.

Canonicalisation is inclusive: an element names every namespace that its parent did not have. Entities, document types,
comments, processing instructions, CDATA and `xml:` attributes have no place in a manifest, and are refused before they
can mean anything. `xml.parsers.expat` parses; depth, nodes and bytes are bounded.

Trusts: the roots that its caller names. Never: resolves anything; loads anything; follows a reference.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from sealgate.errors import DecodeError, EvidenceError
from sealgate.evidence.endorsements.certificate_chains import require_chain
from sealgate.limits import MAX_CHAIN, MAX_RIM, MAX_XML_DEPTH, MAX_XML_NODES

DSIG = "http://www.w3.org/2000/09/xmldsig#"
C14N11 = "http://www.w3.org/2006/12/xml-c14n11"
ENVELOPED = f"{DSIG}enveloped-signature"
ECDSA_SHA384 = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
SHA384 = "http://www.w3.org/2001/04/xmldsig-more#sha384"
_COORDINATE = 48
_TEXT = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#xD;"}
_VALUE = {"&": "&amp;", "<": "&lt;", '"': "&quot;", "\t": "&#x9;", "\n": "&#xA;", "\r": "&#xD;"}

Name = tuple[str, str]
"""Namespace and local name."""


@dataclass
class Element:
    """One element, as it stands in the document: `scope` are the namespaces by prefix that hold inside it."""

    qualified: str
    name: Name
    attributes: dict[Name, str]
    shown: list[tuple[str, str, str]]  # of each attribute: namespace, qualified name, value
    scope: Mapping[str, str]
    children: list[Element | str] = field(default_factory=list)

    def elements(self) -> Iterator[Element]:
        """Children that are elements."""
        return (child for child in self.children if isinstance(child, Element))

    def text(self) -> str:
        """Of an element with text alone; raises DecodeError for others."""
        parts = [child for child in self.children if isinstance(child, str)]
        if len(parts) != len(self.children):
            raise DecodeError("an element of a signed document should hold text alone")
        return "".join(parts)

    def only(self, namespace: str, *names: str) -> list[Element]:
        """Its child elements, which are exactly these; raises DecodeError."""
        found = list(self.elements())
        if [one.name for one in found] != [(namespace, name) for name in names]:
            raise DecodeError("a signed document is of another form than is understood")
        return found

    def attribute(self, name: str) -> str:
        """An attribute without a namespace; raises DecodeError."""
        try:
            return self.attributes["", name]
        except KeyError as error:
            raise DecodeError("a signed document lacks an attribute") from error


def parse_xml(data: bytes) -> Element:
    """The root of a plain document; raises DecodeError."""
    if len(data) > MAX_RIM:
        raise DecodeError("a signed document is too large")
    builder = _Builder()
    parser = expat.ParserCreate("utf-8")
    parser.ordered_attributes = True
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    for handler in ("StartDoctypeDecl", "ProcessingInstruction", "Comment", "StartCdataSection", "EntityDecl"):
        setattr(parser, f"{handler}Handler", _unwanted)
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError) as error:
        raise DecodeError("a signed document is not well-formed XML") from error
    assert builder.root is not None  # a document without a root is not well-formed
    return builder.root


def canonical(element: Element, *, without: Element | None = None) -> bytes:
    """Canonical XML 1.1 of an element and all in it but `without`, on its own: it names every namespace that it has."""
    return "".join(_canonical(element, {}, without)).encode()


def verify_signed_xml(data: bytes, roots: Sequence[bytes], *, of: str, now_us: int) -> Element:
    """The signed document, its signature taken out; raises DecodeError or EvidenceError. `roots` as for
    `require_chain`."""
    root = parse_xml(data)
    signatures = [one for one in _all(root) if one.name == (DSIG, "Signature")]
    if len(signatures) != 1 or not any(child is signatures[0] for child in root.children):
        raise DecodeError("a signed document must have one signature, in its root")
    signature = signatures[0]
    signed, value, keys = signature.only(DSIG, "SignedInfo", "SignatureValue", "KeyInfo")
    digest = _stated_digest(signed)
    certificate = require_chain(_certificates(keys), roots, of=of, now_us=now_us)
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _refused(f"the {of} is signed by a key of another kind")
    raw = _base64(value.text())
    if len(raw) != 2 * _COORDINATE:
        raise DecodeError("a signed document's signature is of another length")
    r, s = (int.from_bytes(part, "big") for part in (raw[:_COORDINATE], raw[_COORDINATE:]))
    try:
        key.verify(encode_dss_signature(r, s), canonical(signed), ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise _refused(f"the {of}'s signature does not hold") from error
    if hashlib.sha384(canonical(root, without=signature)).digest() != digest:
        raise _refused(f"the {of} was changed after it was signed")
    root.children = [child for child in root.children if child is not signature]
    return root


def _stated_digest(signed: Element) -> bytes:
    """Of the whole document, if that is what the signature is about, by the algorithms above."""
    method, algorithm, reference = signed.only(DSIG, "CanonicalizationMethod", "SignatureMethod", "Reference")
    transforms, digest_method, digest = reference.only(DSIG, "Transforms", "DigestMethod", "DigestValue")
    steps = transforms.only(DSIG, "Transform", "Transform")
    named = [one.attribute("Algorithm") for one in (method, algorithm, *steps, digest_method)]
    settled = [C14N11, ECDSA_SHA384, ENVELOPED, C14N11, SHA384]
    empty = not any(one.children for one in (method, algorithm, *steps, digest_method))
    if named != settled or reference.attributes != {("", "URI"): ""} or not empty:
        raise DecodeError("a signed document is signed in a way that is not understood")
    return _base64(digest.text())


def _certificates(keys: Element) -> list[bytes]:
    (listed,) = keys.only(DSIG, "X509Data")
    found = list(listed.elements())
    if len(found) > MAX_CHAIN or any(one.name != (DSIG, "X509Certificate") for one in found):
        raise DecodeError("a signed document names its key in a way that is not understood")
    return [_base64(one.text()) for one in found]


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DecodeError("a signed document has a value that is not base64") from error


def _all(element: Element) -> Iterator[Element]:
    yield element
    for child in element.elements():
        yield from _all(child)


def _canonical(element: Element, above: Mapping[str, str], without: Element | None) -> Iterator[str]:
    """`above` are the namespaces that the element around it was written with."""
    yield f"<{element.qualified}"
    for prefix, uri in sorted(element.scope.items()):
        if above.get(prefix, "") != uri:
            yield f' xmlns{":" if prefix else ""}{prefix}="{_escaped(uri, _VALUE)}"'
    for _, qualified, value in sorted(element.shown, key=lambda one: (one[0], one[1].rpartition(":")[2])):
        yield f' {qualified}="{_escaped(value, _VALUE)}"'
    yield ">"
    for child in element.children:
        if isinstance(child, str):
            yield _escaped(child, _TEXT)
        elif child is not without:
            yield from _canonical(child, element.scope, without)
    yield f"</{element.qualified}>"


def _escaped(text: str, by: Mapping[str, str]) -> str:
    return "".join(by.get(char, char) for char in text)


def _unwanted(*_: object) -> NoReturn:
    raise DecodeError("a signed document must consist of elements and text alone")


class _Builder:
    """Takes what the parser finds, and refuses what is too much."""

    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[Element] = []
        self._nodes = 0

    def start(self, qualified: str, flat: list[str]) -> None:
        self._nodes += 1 + len(flat) // 2
        if self._nodes > MAX_XML_NODES or len(self._open) >= MAX_XML_DEPTH:
            raise DecodeError("a signed document is too large")
        given = dict(zip(flat[::2], flat[1::2], strict=True))
        declared: dict[str, str] = {}
        for name, uri in given.items():
            prefix = "" if name == "xmlns" else name.removeprefix("xmlns:") if name.startswith("xmlns:") else None
            if prefix is not None:
                if (prefix and not uri) or prefix in ("xml", "xmlns"):
                    raise DecodeError("a signed document declares a namespace that cannot be")
                declared[prefix] = uri
        above = self._open[-1].scope if self._open else {}
        scope = {**above, **declared} if declared else above
        shown = [
            (_resolved(name, scope, default="")[0], name, value)
            for name, value in given.items()
            if name != "xmlns" and not name.startswith("xmlns:")
        ]
        attributes = {_resolved(name, scope, default=""): value for _, name, value in shown}
        if len(attributes) != len(shown):
            raise DecodeError("a signed document says an attribute twice")
        element = Element(qualified, _resolved(qualified, scope), attributes, shown, scope)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def end(self, _: str) -> None:
        self._open.pop()

    def text(self, data: str) -> None:
        if self._open:
            self._open[-1].children.append(data)


def _resolved(qualified: str, scope: Mapping[str, str], *, default: str | None = None) -> Name:
    prefix, colon, local = qualified.rpartition(":")
    if not colon:
        return (scope.get("", "") if default is None else default, local)
    if ":" in prefix or not prefix or not local or prefix not in scope:  # `xml:` among them
        raise DecodeError("a signed document uses a name whose namespace is not declared")
    return scope[prefix], local


def _refused(why: str) -> EvidenceError:
    return EvidenceError(why, code="endorsement-signature")
