"""What an engine takes: every datatype, columns by name, encoded pictures; and what it says of everything else."""

from __future__ import annotations

import base64
import io
import struct
import sys
import zlib
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sealgate.certificate.architectures import (
    CnnSpec,
    EmbeddingBagSpec,
    LinearRegressionSpec,
    LogisticRegressionSpec,
)
from sealgate.certificate.architectures.cnn import Stage
from sealgate.certificate.inputs import ImageContent, TableContent, TokensContent
from sealgate.certificate.manifest import ValueRange
from sealgate.errors import CertificateError
from sealgate.protocol.inference import DATATYPES, Tensor, tensor_from_list
from sealgate.protocol.tensors import check_tensor
from secure_runtime.errors import BadInput
from secure_runtime.limits import MAX_JPEG_SCANS, MAX_PNG_TEXTS
from secure_runtime.models.bundle import LoadedModel, warm_up
from secure_runtime.worker.engine import tensors
from secure_runtime.worker.engine.columns import table_of

NUMBERS = [name for name in DATATYPES if name != "BYTES"]


def linear(made: Any, datatype: str, *, classes: int = 0, **changes: Any) -> LoadedModel:
    columns = tuple(made.column(name) for name in ("age", "pulse", "ward=a", "ward=b"))
    spec = made.tensor("features", datatype, (-1, 4), TableContent(columns=columns))
    kind = LogisticRegressionSpec if classes else LinearRegressionSpec
    return made.model(kind(inputs=4, classes=classes), [spec], **changes)  # type: ignore[no-any-return]


def rows_of(datatype: str, rows: list[list[int]]) -> Tensor:
    plain: list[Any] = [value for row in rows for value in row]
    if datatype == "BOOL":
        plain = [bool(value) for value in plain]
    return tensor_from_list("features", datatype, (len(rows), 4), plain)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", NUMBERS)
def test_every_datatype_gives_the_same_answer(made: Any, datatype: str, binary: bool) -> None:
    rows = [[1, 0, 1, 1], [0, 1, 0, 1]]
    expected = made.outputs(made.ask(linear(made, "FP64"), [rows_of("FP64", rows)]))
    model = linear(made, datatype)
    warm_up(model, max_rows=7)
    found = made.outputs(made.ask(model, [rows_of(datatype, rows)], binary=binary))
    assert found == expected
    wrong = "FP64" if datatype != "FP64" else "FP32"
    assert f"input 'features' is {wrong}, expected {datatype}" in made.error(made.ask(model, [rows_of(wrong, rows)]))


@pytest.mark.parametrize(("datatype", "value"), [("UINT64", 2**63), ("UINT64", 2**64 - 1)])
def test_integers_that_torch_cannot_hold_are_refused(made: Any, datatype: str, value: int) -> None:
    answer = made.ask(linear(made, datatype), [tensor_from_list("features", datatype, (1, 4), [value, 0, 0, 0])])
    assert "input 'features' has a number of 9223372036854775808 or more" in made.error(answer)


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
def test_what_is_not_finite_is_refused_in_every_floating_type(made: Any, datatype: str) -> None:
    size = DATATYPES[datatype].size
    data = b"\xff" * (4 * size)  # a NaN in each of them
    answer = made.ask(linear(made, datatype), [Tensor("features", datatype, (1, 4), data)])
    assert "input 'features' contains NaN or infinity" in made.error(answer)


@pytest.mark.parametrize("datatype", [name for name in NUMBERS if "INT" in name])
def test_tokens_come_in_every_integer(made: Any, datatype: str) -> None:
    architecture = EmbeddingBagSpec(length=3, tokens=20, width=4, classes=3)
    wide = made.model(architecture, [made.tensor("tokens", "INT64", (-1, 3), TokensContent(size=20))])
    model = made.model(architecture, [made.tensor("tokens", datatype, (-1, 3), TokensContent(size=20))])
    ask = [tensor_from_list("tokens", datatype, (1, 3), [1, 19, 0])]
    expected = made.outputs(made.ask(wide, [tensor_from_list("tokens", "INT64", (1, 3), [1, 19, 0])]))
    assert made.outputs(made.ask(model, ask)) == expected
    answer = made.ask(model, [tensor_from_list("tokens", datatype, (1, 3), [1, 20, 0])])
    assert (answer.reason, "tokens outside 0 to 19" in made.error(answer)) == ("input-range", True)


@pytest.mark.parametrize("score", ["FP16", "BF16", "FP32", "FP64"])
@pytest.mark.parametrize("label", ["INT64", "UINT16", "UINT64", "BYTES"])
def test_outputs_come_as_they_are_declared(made: Any, score: str, label: str) -> None:
    model = linear(made, "FP32", classes=3, datatypes={"scores": score, "label": label})
    plain = made.outputs(made.ask(linear(made, "FP32", classes=3), [rows_of("FP32", [[1, 2, 3, 4]])]))
    for binary in (True, False):
        found = made.outputs(made.ask(model, [rows_of("FP32", [[1, 2, 3, 4]])], binary=binary))
        assert found["scores"][0] == pytest.approx(plain["scores"][0], abs=0.004)
        wanted = f"class {plain['label'][0]}".encode() if label == "BYTES" else plain["label"][0]
        assert found["label"] == [wanted]


def test_class_names_that_no_message_holds_are_refused_before_they_are_written() -> None:
    labels, indices = ("a", "b" * 96), torch.tensor([1, 0, 1])
    rows = tensors.OutputRows("label", indices, "BYTES", labels=labels)
    assert rows.part(0, 3, room=205).shape == (3,)
    assert bytes(rows.part(1, 2, room=5).data) == b"\1\0\0\0a"
    with pytest.raises(BadInput) as refused:
        rows.part(0, 3, room=204)
    assert refused.value.status == 413


@settings(max_examples=60, deadline=None)
@given(
    datatype=st.sampled_from(list(DATATYPES)),
    shape=st.lists(st.integers(0, 5), max_size=4),
    name=st.sampled_from(["features", "age", "ward", "other"]),
)
def test_whatever_does_not_fit_is_an_error_that_names_the_input(
    made: Any, datatype: str, shape: list[int], name: str
) -> None:
    count = int(np.prod(shape, dtype=np.int64)) if shape else 1
    values: list[Any] = [{"BOOL": True, "BYTES": "a"}.get(datatype, 1)] * count
    answer = made.ask(linear(made, "FP32"), [tensor_from_list(name, datatype, tuple(shape), values)])
    if name == "features" and datatype == "FP32" and shape[1:] == [4] and shape[0]:
        made.outputs(answer)
        return
    text = made.error(answer)
    assert answer.response.status == 400
    assert f"'{name}'" in text or "'features'" in text
    assert answer.reason in ("bad-input", "input-shape", "input-datatype", "input-range")


@pytest.mark.parametrize("parameter", ["classification", "shared_memory_region"])
def test_extensions_that_are_not_offered_are_refused_not_ignored(made: Any, parameter: str) -> None:
    tensor = Tensor("features", "FP32", (1, 4), b"\0" * 16, {parameter: 2})
    assert f"parameter {parameter}, which is not offered" in made.error(made.ask(linear(made, "FP32"), [tensor]))


def test_a_value_that_fp16_cannot_hold_is_not_declared(made: Any) -> None:
    made.outputs(made.ask(linear(made, "FP32", datatypes={"value": "FP16"}), [rows_of("FP32", [[1, 2, 3, 4]])]))
    wide = ValueRange(low="0", high="65505")
    with pytest.raises(CertificateError, match="larger than FP16 holds"):
        linear(made, "FP32", datatypes={"value": "FP16"}, value_range=wide)


# Columns -------------------------------------------------------------------------------------------------------------


def column(name: str, datatype: str, values: list[Any], *, deep: bool = False) -> Tensor:
    return tensor_from_list(name, datatype, (len(values), 1) if deep else (len(values),), values)


def test_a_table_may_come_column_by_column(made: Any) -> None:
    model = linear(made, "FP32")
    whole = made.outputs(made.ask(model, [rows_of("FP32", [[40, 70, 1, 0], [50, 80, 0, 1]])]))
    sent = [
        column("ward=b", "BOOL", [False, True]),
        column("pulse", "UINT8", [70, 80], deep=True),
        column("age", "FP64", [40.0, 50.0]),
        column("ward=a", "INT64", [1, 0]),
    ]
    assert made.outputs(made.ask(model, sent)) == whole
    named = [
        column("age", "INT32", [40, 50]),
        column("pulse", "FP32", [70.0, 80.0]),
        column("ward", "BYTES", ["a", "b"]),
    ]
    assert made.outputs(made.ask(model, named)) == whole
    assert made.outputs(made.ask(model, named, binary=False)) == whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pulse": None}, "column 'pulse' of input 'features' is missing"),
        ({"pulse": ("BYTES", ["70"])}, "column 'pulse' is BYTES, expected numbers"),
        ({"pulse": ("INT64", [2**24 + 1])}, "column 'pulse' has a number that FP32 does not hold"),
        ({"pulse": ("INT64", [2**63 - 1])}, "column 'pulse' has a number that FP32 does not hold"),
        ({"pulse": ("FP64", [1e39])}, "column 'pulse' has a number that FP32 does not hold"),
        ({"pulse": ("FP32", [1.0, 2.0])}, "rows, expected 1"),
        ({"ward": ("BYTES", ["c"])}, "column 'ward' has a value that is none of 'a', 'b'"),
        ({"ward": ("FP32", [1.0])}, "column 'ward' is FP32, expected BYTES"),
        ({"height": ("FP32", [1.0])}, "not 'height'"),
        ({"features": ("FP32", [1.0])}, "input 'features' has shape [1], expected [rows, 4]"),
    ],
)
def test_a_column_that_does_not_fit_is_named(made: Any, change: dict[str, Any], said: str) -> None:
    sent: dict[str, Any] = {"age": ("FP32", [1.0]), "pulse": ("FP32", [1.0]), "ward": ("BYTES", ["a"]), **change}
    tensors = [column(name, *given) for name, given in sent.items() if given is not None]
    assert said in made.error(made.ask(linear(made, "FP32"), tensors))


@pytest.mark.parametrize(
    ("datatype", "sent", "fits"),
    [
        ("UINT8", ("INT64", [255]), True),
        ("UINT8", ("INT64", [256]), False),
        ("UINT16", ("FP64", [65535.0]), True),
        ("UINT16", ("FP64", [65536.0]), False),
        ("INT8", ("FP32", [1.5]), False),
        ("BOOL", ("UINT8", [1]), True),
        ("BOOL", ("UINT8", [2]), False),
        ("FP16", ("INT64", [-(2**63)]), False),
        ("FP64", ("FP32", [0.1]), True),
    ],
)
def test_columns_are_converted_where_nothing_is_lost(made: Any, datatype: str, sent: Any, fits: bool) -> None:
    columns = (made.column("age"),)
    spec = made.tensor("features", datatype, (-1, 1), TableContent(columns=columns))
    answer = made.ask(made.model(LinearRegressionSpec(inputs=1, classes=0), [spec]), [column("age", *sent)])
    assert (answer.outcome == "completed") == fits, bytes(answer.response.body)


def test_other_values_of_a_category_have_a_place_where_the_list_says_so(made: Any) -> None:
    columns = tuple(made.column(name) for name in ("ward=a", "ward=*"))
    spec = made.tensor("features", "FP32", (-1, 2), TableContent(columns=columns))
    model = made.model(LinearRegressionSpec(inputs=2, classes=0), [spec])
    whole = made.ask(model, [tensor_from_list("features", "FP32", (3, 2), [1.0, 0.0, 0.0, 1.0, 0.0, 1.0])])
    named = made.ask(model, [column("ward", "BYTES", ["a", "zzz", "*"])])
    assert made.outputs(named) == made.outputs(whole)


def test_a_column_that_is_sent_twice_is_refused(made: Any) -> None:
    sent = [
        column("age", "FP32", [1.0]),
        column("pulse", "FP32", [1.0]),
        column("ward", "BYTES", ["a"]),
        column("ward=b", "FP32", [1.0]),
    ]
    assert "column 'ward' and column 'ward=b' are one column" in made.error(made.ask(linear(made, "FP32"), sent))


def test_a_long_list_of_values_costs_one_look_for_each_row(made: Any) -> None:
    """Counted, not timed: what is called grows with the list, and not with its square."""

    def calls(size: int) -> int:
        columns = tuple(made.column(f"code={number}") for number in range(size))
        spec = made.tensor("features", "FP32", (-1, size), TableContent(columns=columns))
        found = 0

        def count(*_: object) -> None:
            nonlocal found
            found += 1

        sys.setprofile(count)
        try:
            table = table_of({"code": column("code", "BYTES", ["7", "3"])}, spec)
        finally:
            sys.setprofile(None)
        assert table.nonzero().tolist() == [[0, 7], [1, 3]]
        return found

    assert calls(800) < 10 * calls(100)


# Pictures ------------------------------------------------------------------------------------------------------------

HEIGHT, WIDTH = 6, 9


def pictures(made: Any, channels: int = 1, datatype: str = "UINT8") -> LoadedModel:
    content = ImageContent(low="0", high="255", center="0", scale="255")
    spec = made.tensor("image", datatype, (-1, channels, HEIGHT, WIDTH), content)
    architecture = CnnSpec(channels=channels, height=HEIGHT, width=WIDTH, stages=(Stage(channels=2),), classes=3)
    return made.model(architecture, [spec])  # type: ignore[no-any-return]


def drawn(mode: str, size: tuple[int, int] = (WIDTH, HEIGHT), seed: int = 0) -> Image.Image:
    wide = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2, "P": 1}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], wide), dtype=np.uint8)
    return Image.frombytes(mode, size, values.tobytes())


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    into = io.BytesIO()
    picture.save(into, kind, **options)
    return into.getvalue()


def sent(*data: bytes, **parameters: Any) -> Tensor:
    raw = b"".join(struct.pack("<I", len(one)) + one for one in data)
    return check_tensor(Tensor("image", "BYTES", (len(data),), raw, parameters))


def as_tensor(picture: Image.Image, channels: int) -> Tensor:
    pixels = np.asarray(picture.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])).reshape(HEIGHT, WIDTH, channels)
    return Tensor("image", "UINT8", (1, channels, HEIGHT, WIDTH), np.moveaxis(pixels, 2, 0).tobytes())


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
def test_a_png_is_its_pixels(made: Any, mode: str, channels: int) -> None:
    picture, model = drawn(mode), pictures(made, channels)
    expected = made.outputs(made.ask(model, [as_tensor(picture, channels)]))
    assert made.outputs(made.ask(model, [sent(encoded(picture))])) == expected
    text = base64.b64encode(encoded(picture)).decode()
    inside = tensor_from_list("image", "BYTES", (1,), [text])
    coded = Tensor("image", "BYTES", (1,), inside.data, {"content_type": "base64"})
    assert made.outputs(made.ask(model, [coded], binary=False)) == expected


def test_a_jpeg_is_what_pillow_makes_of_it_and_a_palette_is_looked_up(made: Any) -> None:
    model, data = pictures(made, 3), encoded(drawn("RGB"), "JPEG", progressive=True)
    expected = made.outputs(made.ask(model, [as_tensor(Image.open(io.BytesIO(data)), 3)]))
    assert made.outputs(made.ask(model, [sent(data)])) == expected
    painted = drawn("RGB").quantize(7)
    expected = made.outputs(made.ask(model, [as_tensor(painted, 3)]))
    assert made.outputs(made.ask(model, [sent(encoded(painted))])) == expected


def with_orientation(number: int) -> bytes:
    picture = drawn("L")
    exif = picture.getexif()
    exif[0x0112] = number
    return encoded(picture, "JPEG", exif=exif)


def sixteen_bits() -> bytes:
    return encoded(Image.frombytes("I;16", (WIDTH, HEIGHT), bytes(2 * WIDTH * HEIGHT)))


def animated() -> bytes:
    return encoded(drawn("L"), save_all=True, append_images=[drawn("L", seed=1)])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_texts(count: int, *, before_pixels: bool = True) -> bytes:
    """A picture with texts beside it, a kilobyte each that opens to a megabyte, in all three kinds of chunks."""
    data, packed = encoded(drawn("L")), zlib.compress(bytes(1 << 20), 9)
    kinds = ((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0"))
    texts = b"".join(chunk(kind, start + packed) for kind, start in (kinds[at % 3] for at in range(count)))
    at = data.index(b"IDAT" if before_pixels else b"IEND") - 4
    return data[:at] + texts + data[at:]


def bomb() -> bytes:
    """A header of 60,000 by 60,000 pixels, and a few bytes that would be all of them."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    packed = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (encoded(drawn("L", (WIDTH, HEIGHT + 1))), "a picture 9 wide and 7 high, expected 9 by 6"),
        (encoded(drawn("RGB")), "a picture in RGB, expected grey"),
        (encoded(drawn("LA")), "a picture in grey with transparency, expected grey"),
        (encoded(drawn("L"), transparency=3), "transparency"),
        (encoded(drawn("CMYK"), "JPEG"), "a picture in CMYK, expected grey"),
        (sixteen_bits(), "a PNG of 16 bits a channel, expected 8"),
        (with_orientation(6), "its EXIF says that it lies on its side"),
        (animated(), "several frames"),
        (with_texts(MAX_PNG_TEXTS + 1), "a PNG of more than 8 texts and colour profiles"),
        (with_texts(MAX_PNG_TEXTS + 1, before_pixels=False), "a PNG of more than 8 texts and colour profiles"),
        (bomb(), "60000 wide and 60000 high"),
        (encoded(drawn("L"))[:-40], "damaged or incomplete"),
        (encoded(drawn("L"), "JPEG")[:200], "damaged or incomplete"),
        (encoded(drawn("L"), "JPEG") + b"\xff\xda" * MAX_JPEG_SCANS, "a JPEG of more than"),
        (encoded(drawn("L"), "GIF"), "neither PNG nor JPEG"),
        (encoded(drawn("L"), "TIFF"), "neither PNG nor JPEG"),
        (b"", "neither PNG nor JPEG"),
        (b"\x89PNG\r\n\x1a\n", "damaged or incomplete"),
        (encoded(drawn("L")) + b"\0" * 100_000, "expected at most"),
    ],
)
def test_a_picture_that_is_not_what_the_model_takes_is_refused(made: Any, data: bytes, said: str) -> None:
    answer = made.ask(pictures(made), [sent(encoded(drawn("L")), data)])
    assert f"input 'image', row 2: {said}" in made.error(answer) or said in made.error(answer)
    assert "row 2" in made.error(answer)


def test_a_few_texts_beside_a_picture_change_nothing(made: Any) -> None:
    bare = made.outputs(made.ask(pictures(made), [sent(encoded(drawn("L")))]))
    assert made.outputs(made.ask(pictures(made), [sent(with_texts(MAX_PNG_TEXTS))])) == bare
    behind = encoded(drawn("L")) + chunk(b"zTXt", b"k\0\0") * 99  # behind the end nothing is read, and nothing counts
    assert made.outputs(made.ask(pictures(made), [sent(behind)])) == bare


def test_an_upright_orientation_is_none(made: Any) -> None:
    bare = made.outputs(made.ask(pictures(made), [sent(encoded(drawn("L"), "JPEG"))]))
    assert made.outputs(made.ask(pictures(made), [sent(with_orientation(1))])) == bare


def test_pictures_are_offered_for_bytes_of_pixels_only(made: Any) -> None:
    answer = made.ask(pictures(made, 1, "FP32"), [sent(encoded(drawn("L")))])
    assert "expected FP32: encoded pictures are not offered for it" in made.error(answer)
    wrong = made.ask(pictures(made), [sent(encoded(drawn("L")), content_type="image/png")])
    assert "content_type 'image/png', expected none or 'base64'" in made.error(wrong)
    spoilt = made.ask(pictures(made), [sent(b"%%%", content_type="base64")])
    assert "is not base64" in made.error(spoilt)


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 400), byte=st.integers(0, 255), kind=st.sampled_from(["PNG", "JPEG"]))
def test_no_byte_of_a_picture_ends_the_engine(made: Any, cut: int, byte: int, kind: str) -> None:
    data = bytearray(encoded(drawn("L"), kind))
    data[cut % len(data)] = byte
    answer = made.ask(pictures(made), [sent(bytes(data))])
    assert answer.outcome == "completed" or answer.reason in ("bad-input", "input-shape")


# What is read --------------------------------------------------------------------------------------------------------


def read(made: Any, engine: Any, path: str, actor: str = "a") -> dict[str, Any]:
    [answer] = engine.run([made.asked("GET", path, actor=actor)])
    assert answer.outcome == "completed"
    return msgspec.json.decode(bytes(answer.response.body))  # type: ignore[no-any-return]


def test_the_server_and_the_model_say_what_they_are(made: Any) -> None:
    engine = made.engine(pictures(made))
    assert read(made, engine, "/v2")["name"] == "sealgate"
    assert read(made, engine, "/v2/health/live") == {"live": True}
    assert read(made, engine, "/v2/health/ready") == {"ready": True}
    assert read(made, engine, "/v2/models/m/versions/1/ready") == {"name": "m", "ready": True}
    metadata = read(made, engine, "/v2/models/m")
    assert metadata["versions"] == ["1"]
    assert metadata["parameters"]["encodings"] == {"image": ["image/png", "image/jpeg"]}
    [missing] = engine.run([made.asked("GET", "/v2/models/m/versions/2")])
    assert (missing.response.status, missing.reason) == (404, "model-not-loaded")


def test_statistics_are_the_callers_own(made: Any) -> None:
    model = linear(made, "FP32")
    engine = made.engine(model)
    from sealgate.protocol.inference import InferRequest, encode_infer_request

    fields, body = encode_infer_request(InferRequest(inputs=(rows_of("FP32", [[1, 2, 3, 4]] * 3),)), binary=True)
    engine.run([made.asked("POST", "/v2/models/m/infer", fields, body, actor=actor) for actor in ("a", "a", "b")])
    engine.run([made.asked("POST", "/v2/models/m/infer", (), b"{", actor="a")])
    [mine] = read(made, engine, "/v2/models/m/stats", "a")["model_stats"]
    assert (mine["name"], mine["version"]) == ("m", "1")
    assert (mine["inference_count"], mine["execution_count"]) == (6, 2)
    assert mine["inference_stats"] == {"success": {"count": 2}, "fail": {"count": 1}}
    [other] = read(made, engine, "/v2/models/m/versions/1/stats", "b")["model_stats"]
    assert (other["inference_count"], other["inference_stats"]["fail"]["count"]) == (3, 0)
    [nobody] = read(made, engine, "/v2/models/m/stats", "c")["model_stats"]
    assert nobody["inference_count"] == 0
