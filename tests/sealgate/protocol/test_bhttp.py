"""Binary HTTP against the examples of RFC 9292 section 5, and against whatever else may come."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sealgate.errors import DecodeError
from sealgate.limits import MAX_CHUNKS, MAX_FIELD_SECTION, MAX_FIELDS, MAX_INNER_MESSAGE, MAX_TARGET
from sealgate.protocol.bhttp import (
    Request,
    Response,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from sealgate.protocol.padding import SMALLEST_CLASS, size_class
from sealgate.protocol.varint import encode_varint

# RFC 9292 section 5.1, figures 8 (known length) and 9 (indeterminate length, 10 bytes of padding).
KNOWN_REQUEST = bytes.fromhex("""
    00034745 54056874 74707300 0a2f6865 6c6c6f2e 74787440 6c0a7573 65722d61
    67656e74 34637572 6c2f372e 31362e33 206c6962 6375726c 2f372e31 362e3320
    4f70656e 53534c2f 302e392e 376c207a 6c69622f 312e322e 3304686f 73740f77
    77772e65 78616d70 6c652e63 6f6d0f61 63636570 742d6c61 6e677561 67650665
    6e2c206d 690000
""")
INDETERMINATE_REQUEST = bytes.fromhex("""
    02034745 54056874 74707300 0a2f6865 6c6c6f2e 7478740a 75736572 2d616765
    6e743463 75726c2f 372e3136 2e33206c 69626375 726c2f37 2e31362e 33204f70
    656e5353 4c2f302e 392e376c 207a6c69 622f312e 322e3304 686f7374 0f777777
    2e657861 6d706c65 2e636f6d 0f616363 6570742d 6c616e67 75616765 06656e2c
    206d6900 00000000 00000000 00000000
""")
EXAMPLE_REQUEST = Request(
    "GET",
    "https",
    "",
    "/hello.txt",
    (
        ("user-agent", "curl/7.16.3 libcurl/7.16.3 OpenSSL/0.9.7l zlib/1.2.3"),
        ("host", "www.example.com"),
        ("accept-language", "en, mi"),
    ),
)
# Section 5.2, figure 11: two informational responses (102, 103), then the final one, of indeterminate length.
INDETERMINATE_RESPONSE = bytes.fromhex("""
    03406607 72756e6e 696e670a 22736c65 65702031 35220040 67046c69 6e6b233c
    2f737479 6c652e63 73733e3b 2072656c 3d707265 6c6f6164 3b206173 3d737479
    6c65046c 696e6b24 3c2f7363 72697074 2e6a733e 3b207265 6c3d7072 656c6f61
    643b2061 733d7363 72697074 0040c804 64617465 1d4d6f6e 2c203237 204a756c
    20323030 39203132 3a32383a 35332047 4d540673 65727665 72064170 61636865
    0d6c6173 742d6d6f 64696669 65641d57 65642c20 3232204a 756c2032 30303920
    31393a31 353a3536 20474d54 04657461 67142233 34616133 38372d64 2d313536
    38656230 30220d61 63636570 742d7261 6e676573 05627974 65730e63 6f6e7465
    6e742d6c 656e6774 68023531 04766172 790f4163 63657074 2d456e63 6f64696e
    670c636f 6e74656e 742d7479 70650a74 6578742f 706c6169 6e003348 656c6c6f
    20576f72 6c642120 4d792063 6f6e7465 6e742069 6e636c75 64657320 61207472
    61696c69 6e672043 524c462e 0d0a0000
""")
EXAMPLE_RESPONSE = Response(
    200,
    (
        ("date", "Mon, 27 Jul 2009 12:28:53 GMT"),
        ("server", "Apache"),
        ("last-modified", "Wed, 22 Jul 2009 19:15:56 GMT"),
        ("etag", '"34aa387-d-1568eb00"'),
        ("accept-ranges", "bytes"),
        ("content-length", "51"),
        ("vary", "Accept-Encoding"),
        ("content-type", "text/plain"),
    ),
    b"Hello World! My content includes a trailing CRLF.\r\n",
)
# Section 5.2, figure 13: known length, with a trailer.
TRAILER_RESPONSE = bytes.fromhex(
    "0140c8001d5468697320636f6e74656e7420636f6e7461696e732043524c462e0d0a0d07747261696c65720474657874"
)


def test_request_example_known_length() -> None:
    assert encode_request(EXAMPLE_REQUEST, pad_to=None) == KNOWN_REQUEST
    assert decode_request(KNOWN_REQUEST) == EXAMPLE_REQUEST


def test_request_example_indeterminate_length() -> None:
    padded = encode_request(EXAMPLE_REQUEST, indeterminate=True, pad_to=lambda length: length + 10)
    assert padded == INDETERMINATE_REQUEST
    assert decode_request(INDETERMINATE_REQUEST) == EXAMPLE_REQUEST


def test_empty_parts_may_be_cut_off() -> None:
    for cut in range(3):
        assert decode_request(KNOWN_REQUEST[: len(KNOWN_REQUEST) - cut]) == EXAMPLE_REQUEST
    for cut in range(13):
        assert decode_request(INDETERMINATE_REQUEST[: len(INDETERMINATE_REQUEST) - cut]) == EXAMPLE_REQUEST
    with pytest.raises(DecodeError):
        decode_request(KNOWN_REQUEST[:-3])
    with pytest.raises(DecodeError):
        decode_request(INDETERMINATE_REQUEST[:-13])
    # The requests and responses of RFC 9458 appendix A end behind their control data.
    shortest = decode_request(bytes.fromhex("00034745540568747470730b6578616d706c652e636f6d012f"))
    assert shortest == Request("GET", "https", "example.com", "/")
    assert decode_response(bytes.fromhex("0140c8")) == Response(200)
    assert decode_response(bytes.fromhex("0340c8")) == Response(200)


def test_response_example_drops_informational_responses() -> None:
    assert decode_response(INDETERMINATE_RESPONSE) == EXAMPLE_RESPONSE
    # Written without them, the message is the figure from its final status (0x40c8) on.
    final = INDETERMINATE_RESPONSE[INDETERMINATE_RESPONSE.index(b"\x40\xc8") :]
    assert encode_response(EXAMPLE_RESPONSE, indeterminate=True, pad_to=None) == b"\x03" + final


def test_response_example_with_a_trailer() -> None:
    response = Response(200, (), b"This content contains CRLF.\r\n", (("trailer", "text"),))
    assert encode_response(response, pad_to=None) == TRAILER_RESPONSE
    assert decode_response(TRAILER_RESPONSE) == response


def test_content_in_several_chunks() -> None:
    encoded = bytes.fromhex("0340c8 00 02 6162 01 63 00 00")
    assert decode_response(encoded).body == b"abc"
    for end in (5, 6, 7, 8, 9):  # cut inside or between chunks, where the RFC allows no cut
        with pytest.raises(DecodeError):
            decode_response(encoded[:end])


def test_a_decoded_body_is_a_view_not_a_copy() -> None:
    buffer = bytearray(encode_request(Request("POST", "https", "a", "/", (), b"secret")))
    body = decode_request(memoryview(buffer)).body
    buffer[:] = bytes(len(buffer))
    assert bytes(body) == bytes(6)


def test_nothing_of_the_content_is_in_repr() -> None:
    texts = repr(Request("POST", "https", "a", "/secret", (("x", "secret"),), b"secret", (("y", "secret"),)))
    assert "secret" not in texts + repr(Response(200, (("x", "secret"),), b"secret", (("y", "secret"),)))


def test_field_lookup() -> None:
    request = Request("GET", "https", "a", "/", (("date", "x"), ("purpose", "one"), ("purpose", "two")))
    assert request.field("date") == "x"
    assert request.field("absent") is None
    with pytest.raises(DecodeError):
        request.field("purpose")


def test_padding_gives_one_length_to_one_class() -> None:
    lengths = {len(encode_response(Response(200, (), b"x" * size))) for size in range(400)}
    assert lengths == {SMALLEST_CLASS}
    message = encode_request(Request("POST", "https", "a", "/", (), bytes(5000)))
    assert len(message) == size_class(len(message))
    assert decode_request(message).body == bytes(5000)


# Rules ----------------------------------------------------------------------------------------------------------------


def raw_request(
    method: bytes = b"GET",
    scheme: bytes = b"https",
    authority: bytes = b"",
    path: bytes = b"/",
    fields: tuple[tuple[bytes, bytes], ...] = (),
    tail: bytes = b"\x00\x00",
) -> bytes:
    """A known-length request written by hand, rules aside."""

    def prefixed(data: bytes) -> bytes:
        return encode_varint(len(data)) + data

    section = b"".join(prefixed(name) + prefixed(value) for name, value in fields)
    return b"\x00" + b"".join(map(prefixed, (method, scheme, authority, path, section))) + tail


def test_the_hand_written_form_is_right() -> None:
    assert decode_request(raw_request(fields=((b"a", b"1"),))) == Request("GET", "https", "", "/", (("a", "1"),))
    latin = decode_request(raw_request(fields=((b"a", bytes(range(0x80, 0x100))),)))
    assert latin.fields[0][1].encode("latin-1") == bytes(range(0x80, 0x100))


BAD = {
    "method empty": raw_request(method=b""),
    "method with space": raw_request(method=b"GE T"),
    "scheme upper case": raw_request(scheme=b"HTTPS"),
    "scheme empty": raw_request(scheme=b""),
    "authority with user": raw_request(authority=b"user@host"),
    "authority with path": raw_request(authority=b"host/x"),
    "authority with space": raw_request(authority=b"ho st"),
    "path empty": raw_request(path=b""),
    "path relative": raw_request(path=b"x"),
    "path with fragment": raw_request(path=b"/x#y"),
    "path with newline": raw_request(path=b"/x\n"),
    "path not ASCII": raw_request(path=b"/\xe9"),
    "path too long": raw_request(path=b"/" * (MAX_TARGET + 1)),
    "name empty": raw_request(fields=((b"", b"x"),)),
    "name upper case": raw_request(fields=((b"Date", b"x"),)),
    "name with colon": raw_request(fields=((b"a:b", b"x"),)),
    "name with newline": raw_request(fields=((b"a\n", b"x"),)),
    "pseudo-field": raw_request(fields=((b":method", b"GET"),)),
    "connection field": raw_request(fields=((b"connection", b"close"),)),
    "transfer-encoding": raw_request(fields=((b"transfer-encoding", b"chunked"),)),
    "te other than trailers": raw_request(fields=((b"te", b"gzip"),)),
    "value with newline": raw_request(fields=((b"a", b"x\ny"),)),
    "value with return": raw_request(fields=((b"a", b"x\r"),)),
    "value with zero": raw_request(fields=((b"a", b"x\x00"),)),
    "value with space around": raw_request(fields=((b"a", b" x"),)),
    "value with tab behind": raw_request(fields=((b"a", b"x\t"),)),
    "too many fields": raw_request(fields=((b"a", b""),) * (MAX_FIELDS + 1)),
    "section too large": raw_request(fields=((b"a", b"x" * MAX_FIELD_SECTION),)),
    "section longer than the message": raw_request(tail=b"").removesuffix(b"\x00") + b"\x05\x01a",
    "section shorter than its line": raw_request(tail=b"").removesuffix(b"\x00") + b"\x02\x01a\x01x\x00\x00",
    "content longer than the message": raw_request(tail=b"\x05abcd"),
    "content of absurd length": raw_request(tail=b"\xff" * 8),
    "padding not zero": raw_request(tail=b"\x00\x00\x00\x01"),
    "framing of a response": b"\x01" + raw_request()[1:],
    "unknown framing": b"\x04" + raw_request()[1:],
    "nothing": b"",
}


@pytest.mark.parametrize("message", BAD.values(), ids=BAD.keys())
def test_invalid_requests_are_refused(message: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_request(message)


@pytest.mark.parametrize("status", [0, 99, 600, 1000, 2**40])
def test_invalid_status_is_refused(status: int) -> None:
    with pytest.raises(DecodeError):
        decode_response(b"\x01" + encode_varint(status) + b"\x00\x00\x00")
    with pytest.raises(DecodeError):
        encode_response(Response(status))


def test_te_trailers_is_allowed() -> None:
    assert decode_request(raw_request(fields=((b"te", b"trailers"),))).field("te") == "trailers"


@pytest.mark.parametrize(
    "request_",
    [
        Request("GE T", "https", "", "/"),
        Request("GET", "https", "a@b", "/"),
        Request("GET", "https", "", "/é"),
        Request("GET", "https", "", ""),
        Request("GET", "https", "", "/", (("Upper", "x"),)),
        Request("GET", "https", "", "/", (("a", "x\n"),)),
        Request("GET", "https", "", "/", (("a", "€"),)),
        Request("GET", "https", "", "/", (("connection", "close"),)),
        Request("GET", "https", "", "/", (("a", ""),) * (MAX_FIELDS + 1)),
        Request("GET", "https", "", "/", (("a", "x" * MAX_FIELD_SECTION),)),
        Request("GET", "https", "", "/", (), b"", (("", "x"),)),
        Request("GET", "https", "", "/", (), bytes(MAX_INNER_MESSAGE)),
    ],
)
def test_the_encoder_writes_nothing_that_the_decoder_refuses(request_: Request) -> None:
    for indeterminate in (False, True):
        with pytest.raises(DecodeError):
            encode_request(request_, indeterminate=indeterminate)


def test_work_is_bounded() -> None:
    few = b"\x01" + b"\x40\x64\x00" * 16 + b"\x40\xc8"
    assert decode_response(few).status == 200
    with pytest.raises(DecodeError, match="informational"):
        decode_response(b"\x01" + b"\x40\x64\x00" * 100_000 + b"\x40\xc8")
    with pytest.raises(DecodeError, match="chunks"):
        decode_response(b"\x03\x40\xc8\x00" + b"\x01a" * (MAX_CHUNKS + 1) + b"\x00\x00")
    with pytest.raises(DecodeError, match="section"):
        decode_response(b"\x03\x40\xc8" + b"\x01a\x00" * 100_000)
    with pytest.raises(DecodeError):
        decode_response(bytes(MAX_INNER_MESSAGE + 1))


def test_a_claimed_length_allocates_nothing() -> None:
    claims = [raw_request(tail=b"\xbf\xff\xff\xff"), b"\x02" + raw_request()[1:-3] + b"\x00\xbf\xff\xff\xff"]
    tracemalloc.start()
    for claim in claims:
        with pytest.raises(DecodeError):
            decode_request(claim)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


# Properties -----------------------------------------------------------------------------------------------------------

TOKEN = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
names = st.text(TOKEN, min_size=1, max_size=12).filter(
    lambda name: name not in {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te"}
)
values = st.binary(max_size=20).map(lambda raw: raw.translate(None, b"\x00\r\n").decode("latin-1").strip(" \t"))
sections = st.lists(st.tuples(names, values), max_size=5).map(tuple)
visible = st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#")
requests = st.builds(
    Request,
    method=st.text(TOKEN, min_size=1, max_size=8),
    scheme=st.sampled_from(["https", "http"]),
    authority=st.from_regex(r"[a-z0-9.\-]{0,12}(:[0-9]{1,5})?", fullmatch=True),
    path=st.text(visible, max_size=40).map(lambda rest: "/" + rest),
    fields=sections,
    body=st.binary(max_size=200),
    trailers=sections,
)
responses = st.builds(
    Response, status=st.integers(200, 599), fields=sections, body=st.binary(max_size=200), trailers=sections
)
pads = st.sampled_from([None, size_class, lambda length: length + 7])


@settings(max_examples=200, deadline=None)
@given(requests, st.booleans(), pads)
def test_requests_round_trip(request_: Request, indeterminate: bool, pad_to: object) -> None:
    encoded = encode_request(request_, indeterminate=indeterminate, pad_to=pad_to)  # type: ignore[arg-type]
    assert decode_request(encoded) == request_


@settings(max_examples=200, deadline=None)
@given(responses, st.booleans(), pads)
def test_responses_round_trip(response: Response, indeterminate: bool, pad_to: object) -> None:
    encoded = encode_response(response, indeterminate=indeterminate, pad_to=pad_to)  # type: ignore[arg-type]
    assert decode_response(encoded) == response


def decode_anything(data: bytes) -> None:
    for decode in (decode_request, decode_response):
        try:
            message = decode(data)
        except DecodeError:
            continue
        # What is accepted obeys the rules, so it can be written again and means the same.
        if isinstance(message, Request):
            assert decode_request(encode_request(message)) == message
        else:
            assert decode_response(encode_response(message)) == message


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 4))
@example(b"", 0)
def test_garbage_is_refused_in_one_way(data: bytes, framing: int) -> None:
    decode_anything(data)
    decode_anything(bytes([framing]) + data)


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from([KNOWN_REQUEST, INDETERMINATE_REQUEST, INDETERMINATE_RESPONSE]))
def test_damaged_messages_are_refused_in_one_way(data: st.DataObject, whole: bytes) -> None:
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] = data.draw(st.integers(0, 255))
    decode_anything(bytes(damaged))
    decode_anything(bytes(damaged[:at]))


def test_every_prefix_and_every_flipped_bit_of_the_examples() -> None:
    for whole in (KNOWN_REQUEST, TRAILER_RESPONSE):
        for end in range(len(whole)):
            decode_anything(whole[:end])
        for at, bit in itertools.product(range(len(whole)), range(8)):
            decode_anything(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
