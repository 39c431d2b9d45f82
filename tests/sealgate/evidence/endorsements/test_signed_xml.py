"""Signed manifests: NVIDIA's own hold, and nothing in them can be moved, wrapped, hidden or changed."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecodeError, EvidenceError
from sealgate.evidence.endorsements.rim import verify_manifest
from sealgate.evidence.endorsements.signed_xml import canonical, parse_xml, verify_signed_xml
from sealgate.limits import MAX_RIM, MAX_XML_DEPTH, MAX_XML_NODES
from tests.sealgate.evidence.endorsements.fake_gpu import DSIG, SIGNER, Chain, FakeManifest, digest_of

SAMPLES = Path(__file__).parent / "samples"
NVIDIA = bytes.fromhex("12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1")  # of NVIDIA's manifest root
THEN_US = int(datetime.datetime(2024, 6, 1, tzinfo=datetime.UTC).timestamp()) * 1_000_000
NOW_US = 1_800_000_000_000_000
ROOTS = (bytes.fromhex(SIGNER.root_digest),)
DOCUMENT = FakeManifest("1.0", {1: [digest_of(1).hex()]}).document()


def real(name: str) -> bytes:
    return (SAMPLES / f"nvidia_{name}.swidtag").read_bytes()


def refused(data: bytes, says: str = ".", roots: tuple[bytes, ...] = ROOTS, *, now_us: int = NOW_US) -> None:
    with pytest.raises((EvidenceError, DecodeError), match=says):
        verify_manifest(data, roots, now_us=now_us)


@pytest.mark.parametrize(("name", "version", "count"), [("driver", "545.00", 21), ("vbios", "96.00.74.00.1a", 12)])
def test_nvidias_manifests_hold_under_nvidias_root(name: str, version: str, count: int) -> None:
    """Their signatures are the oracle of the canonical form: one character more or less, and none would hold."""
    manifest = verify_manifest(real(name), (NVIDIA,), now_us=THEN_US)
    assert (manifest.version, len(manifest.golden)) == (version, count)
    stated = {
        int(index) + 1: value
        for index, value in re.findall(
            r'index="(\d+)" active="True" alternatives="1" ns2:Hash0="(\w+)"', real(name).decode()
        )
    }
    assert stated
    assert {index: {value.hex() for value in manifest.golden[index]} for index in stated} == {
        index: {value} for index, value in stated.items()
    }


def test_nvidias_manifests_expire_and_need_their_root() -> None:
    refused(real("driver"), "not valid now", (NVIDIA,))
    refused(real("driver"), "root certificate is none", now_us=THEN_US)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_changed_character_of_nvidias_manifest_is_noticed(data: st.DataObject) -> None:
    document = bytearray(real("vbios"))
    # Behind the signed part stand certificates; their base64 may be broken into lines in more than one way.
    place = data.draw(st.integers(0, document.index(b"<ds:KeyInfo>") - 1))
    old = document[place]
    document[place] = data.draw(st.sampled_from([char for char in b'0aZ"< =>' if char != old]))
    refused(bytes(document), roots=(NVIDIA,), now_us=THEN_US)


def test_the_fake_signer_writes_what_the_canonical_form_is() -> None:
    manifest = verify_manifest(DOCUMENT, ROOTS, now_us=NOW_US)
    assert manifest.golden == {2: frozenset({digest_of(1)})}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<a  b = "1"\n c="2"/>', '<a b="1" c="2"></a>'),
        ("<?xml version='1.0'?>\n<a>x\r\ny</a>\n", "<a>x\ny</a>"),
        ("<a>&lt;&gt;&amp;&quot;&#13;</a>", '<a>&lt;&gt;&amp;"&#xD;</a>'),
        ("<a b='&quot;&lt;>&#9;&#10;&#13;\t'/>", '<a b="&quot;&lt;>&#x9;&#xA;&#xD; "></a>'),
        ('<a z="1" a="2"/>', '<a a="2" z="1"></a>'),
        (
            '<a xmlns:y="urn:1" xmlns:x="urn:2" x:b="1" y:a="2" c="3"/>',
            '<a xmlns:x="urn:2" xmlns:y="urn:1" c="3" y:a="2" x:b="1"></a>',  # by namespace, then name
        ),
        ('<a xmlns="urn:1"><b xmlns="urn:1"/></a>', '<a xmlns="urn:1"><b></b></a>'),
        ('<a xmlns="urn:1"><b xmlns=""/></a>', '<a xmlns="urn:1"><b xmlns=""></b></a>'),
        ('<a><b xmlns=""/></a>', "<a><b></b></a>"),
        ('<a xmlns:p="urn:1"><b xmlns:p="urn:2"/></a>', '<a xmlns:p="urn:1"><b xmlns:p="urn:2"></b></a>'),
        ("<a>ä€</a>", "<a>ä€</a>"),
    ],
)
def test_the_canonical_form(text: str, expected: str) -> None:
    """After the examples of Canonical XML 1.1, section 3."""
    assert canonical(parse_xml(text.encode())).decode() == expected


def test_an_element_on_its_own_names_every_namespace_that_it_has() -> None:
    root = parse_xml(b'<a xmlns="urn:1" xmlns:p="urn:2"><p:b/></a>')
    (inner,) = root.elements()
    assert canonical(inner) == b'<p:b xmlns="urn:1" xmlns:p="urn:2"></p:b>'


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY e "x">]><a>&e;</a>',
        '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        "<a><!-- comment --></a>",
        "<a><?pi?></a>",
        "<a><![CDATA[x]]></a>",
        '<a xml:lang="en"/>',
        '<a xmlns:p="urn:1"><p:q:b/></a>',
        "<p:a/>",
        '<a xmlns:p=""/>',
        '<a xmlns:x="urn:1" xmlns:y="urn:1" x:b="1" y:b="2"/>',
        "<a",
        "",
        "<a/><b/>",
        "<a>&nbsp;</a>",
        "<a>" * (MAX_XML_DEPTH + 1) + "</a>" * (MAX_XML_DEPTH + 1),
        "<a>" + "<b/>" * MAX_XML_NODES + "</a>",
        "<a>" + "x" * MAX_RIM + "</a>",
    ],
)
def test_what_has_no_place_in_a_manifest_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        parse_xml(text.encode())


def test_signatures_cannot_be_moved_doubled_or_wrapped() -> None:
    text = DOCUMENT.decode()
    signature = text[text.index("<ds:Signature ") : text.index("</SoftwareIdentity>")]
    bare = text.replace(signature, "")
    refused(bare.encode(), "one signature")
    refused(text.replace("</SoftwareIdentity>", f"{signature}</SoftwareIdentity>").encode(), "one signature")
    moved = bare.replace("</ns0:Payload>", f"{signature}</ns0:Payload>")
    refused(moved.encode(), "in its root")
    evil = bare.replace(digest_of(1).hex(), "66" * 48)
    wrapped = evil.replace("</SoftwareIdentity>", f"{text}</SoftwareIdentity>")
    refused(wrapped.encode(), "in its root")
    inside = f'<x xmlns:ds="{DSIG}">{bare}{signature}</x>'
    refused(inside.encode())
    refused(text.replace(digest_of(1).hex(), "66" * 48).encode(), "changed after it was signed")


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (FakeManifest("1", {0: ["00" * 48]}, algorithm="http://www.w3.org/2000/09/xmldsig#hmac-sha1"), "in a way"),
        (FakeManifest("1", {0: ["00" * 48]}, uri="#part"), "in a way"),
        (FakeManifest("1", {0: ["00" * 48]}, Chain(SIGNER.names, tag="x")), "root certificate is none"),
        (FakeManifest("1", {0: ["00" * 47]}), "another length"),
        (FakeManifest("1", {0: ["0g" * 48]}), "lacks a value"),
        (FakeManifest("1", {0: []}), "no value"),
        (FakeManifest("1", {0: ["00" * 48] * 65}), "too many"),
    ],
)
def test_signed_manifests_of_another_form_are_refused(manifest: FakeManifest, says: str) -> None:
    refused(manifest.document(), says)


def test_a_signed_document_that_is_no_manifest_is_refused() -> None:
    """The signature of some other document of the same signer gives no measurements."""
    document = DOCUMENT.replace(b"SoftwareIdentity", b"SomethingElse")
    refused(document, "changed after it was signed")
    with pytest.raises(DecodeError):
        verify_signed_xml(b"<x/>", ROOTS, of="manifest", now_us=NOW_US)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda text: f"<a>{text}</a>".encode())))
def test_garbage_is_a_typed_error(data: bytes) -> None:
    refused(data)
