"""Sessions, commands and the local proxy against the real engine behind the service in memory."""

from __future__ import annotations

import argparse
import gzip
import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from sealgate.certificate.architectures import (
    CnnSpec,
    EmbeddingBagSpec,
    GraphSpec,
    LogisticRegressionSpec,
    RecurrentSpec,
)
from sealgate.certificate.architectures.cnn import Stage
from sealgate.certificate.inputs import (
    GraphEdgesContent,
    GraphNodesContent,
    HashedWords,
    ImageContent,
    SequenceContent,
    TableContent,
    TextContent,
)
from sealgate.client.attributions import heat_map, marked_text, shown
from sealgate.client.commands import INFER
from sealgate.client.errors import InferenceFailed, UsageError
from sealgate.client.explain_commands import EXPLAIN
from sealgate.client.local_proxy import Asker, LocalProxy
from sealgate.client.model_configuration import described_by, model_configuration, with_extension
from sealgate.client.proxy_commands import PROXY
from sealgate.client.session import AsyncSession, Session
from sealgate.client.transport import SealedTransport
from sealgate.errors import ConfigurationError, DecodeError
from sealgate.protocol import bhttp
from secure_runtime.models.bundle import LoadedModel
from tests.secure_runtime.worker.engine.conftest import Made
from tests.secure_runtime.worker.engine.test_perturbing import text_and_row

TOKEN = "header.payload.signature"
MADE = Made()


def table() -> LoadedModel:
    columns = tuple(MADE.column(name) for name in ("age", "pulse", "ward=a", "ward=b"))
    spec = MADE.tensor("features", "FP32", (-1, 4), TableContent(columns=columns))
    return MADE.model(LogisticRegressionSpec(inputs=4, classes=3), [spec])


def images() -> LoadedModel:
    content = ImageContent(low="0", high="255", center="0", scale="255")
    spec = MADE.tensor("image", "UINT8", (-1, 1, 6, 9), content)
    return MADE.model(CnnSpec(channels=1, height=6, width=9, stages=(Stage(channels=2),), classes=3), [spec])


def texts() -> LoadedModel:
    spec = MADE.tensor("text", "BYTES", (-1,), TextContent(tokenizer=HashedWords(buckets=19, length=6)))
    return MADE.model(EmbeddingBagSpec(length=6, tokens=20, width=5, classes=2), [spec])


def serving(service: Any, model: LoadedModel) -> None:
    """The service answers by the real engine from here on."""
    engine = MADE.engine(model)

    def infer(inner: bhttp.Request) -> bhttp.Response:
        path = inner.path.replace("/models/toy", "/models/m")
        [answer] = engine.run([MADE.asked(inner.method, path, inner.fields, bytes(inner.body))])
        return answer.response

    service.infer = infer


def session(service: Any) -> Session:
    return Session(
        service.trust(),
        purpose="diagnosis",
        token=TOKEN,
        outer=service.transport(),
        clock=service.clock,
        trust_env=False,
    )


def picture(seed: int = 0, size: tuple[int, int] = (9, 6)) -> tuple[np.ndarray, bytes]:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    into = io.BytesIO()
    Image.fromarray(pixels).save(into, "PNG")
    return pixels, into.getvalue()


# Sessions ------------------------------------------------------------------------------------------------------------


def test_a_session_takes_columns_by_name(service: Any) -> None:
    serving(service, table())
    with session(service) as one:
        whole = one.infer("toy", [[40, 70, 1, 0], [50, 80, 0, 1]])
        named = {"age": [40, 50], "pulse": np.array([70, 80]), "ward": ["a", "b"]}
        assert one.infer("toy", named).outputs == whole.outputs
        with pytest.raises(UsageError, match="no input 'height'"):
            one.infer("toy", {**named, "height": [1, 2]})
        with pytest.raises(InferenceFailed, match="column 'ward' has a value that is none of 'a', 'b'"):
            one.infer("toy", {**named, "ward": ["a", "c"]})


def test_a_session_takes_pictures(service: Any) -> None:
    serving(service, images())
    (pixels, encoded), (other, also) = picture(), picture(1)
    with session(service) as one:
        plain = one.infer("toy", np.stack([pixels, other])[:, None])
        assert one.infer("toy", [encoded, also]).outputs == plain.outputs
        assert one.infer("toy", {"image": [encoded, also]}).outputs == plain.outputs
        with pytest.raises(InferenceFailed, match="row 2: a picture 9 wide and 9 high"):
            one.infer("toy", [encoded, picture(size=(9, 9))[1]])


def test_an_explanation_says_what_each_column_did(service: Any) -> None:
    serving(service, table())
    with session(service) as one:
        found = one.explain("toy", [[40, 70, 1, 0], [50, 80, 0, 1]], target="class 2")
        metadata = one.metadata("toy")
        assert one.explain("toy", {"age": [40], "pulse": [70], "ward": ["a"]}, method="shapley").method == "shapley"
        with pytest.raises(InferenceFailed, match="it can be explained by: coefficients, integrated-gradients"):
            one.explain("toy", [[40, 70, 1, 0]], method="lime")
        assert one.statistics("toy")["model_stats"][0]["explanation_count"] == 3
        assert one.server("toy")["name"] == "sealgate"
    assert (found.method, found.targets, found.labels) == ("coefficients", (2, 2), ("class 2", "class 2"))
    for row in (0, 1):
        total = sum(found.attributions["features"][row])
        assert total == pytest.approx(found.output[row] - found.baseline[row])
    told = shown(found, metadata, 0)
    strongest = int(np.argmax(np.abs(found.attributions["features"][0])))
    assert told.splitlines()[4].split()[0] == ("age", "pulse", "ward=a", "ward=b")[strongest]
    assert "row 1 for class 2" in told


@pytest.mark.anyio
async def test_the_same_without_threads(service: Any) -> None:
    serving(service, table())
    async with AsyncSession(
        service.trust(),
        purpose="diagnosis",
        token=TOKEN,
        outer=service.transport(),
        clock=service.clock,
        trust_env=False,
    ) as one:
        found = await one.explain("toy", [[40, 70, 1, 0]])
        assert sum(found.attributions["features"][0]) == pytest.approx(found.output[0] - found.baseline[0])
        assert (await one.statistics("toy"))["model_stats"][0]["explanation_count"] == 1
        assert (await one.server("toy"))["name"] == "sealgate"


def test_texts_are_marked_and_graphs_and_sequences_listed(service: Any) -> None:
    serving(service, texts())
    with session(service) as one:
        found = one.explain("toy", ["Good, very good!"])
        told = shown(found, one.metadata("toy"), 0, text="Good, very good!")
    assert ("[+ " in told) or ("[- " in told)
    marked = marked_text("ab cd", [(0, 2), (3, 5), (-1, -1)], [2.0, -1.0, 9.0])
    assert marked == "[+ ab] [- cd]"
    assert marked_text("a\x1b[31m b", [(0, 1)], [1.0]).startswith("[+ a]")
    assert "\x1b[31m" not in marked_text("a\x1b[31m b", [(0, 1)], [1.0])
    assert marked_text("ab", [(0, 2)], [1.0], colours=True) == "\x1b[41;97mab\x1b[0m"

    channels = tuple(MADE.column(f"c{n}") for n in range(2))
    steps = MADE.tensor("x", "FP32", (-1, 3, 2), SequenceContent(channels=channels))
    serving(service, MADE.model(RecurrentSpec(length=3, channels=2, cell="gru", hidden=(3,), classes=0), [steps]))
    with session(service) as one:
        metadata = one.metadata("toy")
        told = shown(one.explain("toy", [[[1, 2], [3, 4], [5, 6]]]), metadata, 0)
    assert "step 3, c1" in told

    nodes = MADE.tensor("nodes", "FP32", (-1, 2, 2), GraphNodesContent(columns=channels))
    edges = MADE.tensor("edges", "BOOL", (-1, 2, 2), GraphEdgesContent())
    graph = GraphSpec(nodes=2, features=2, layer="convolution", hidden=(3,), activation="tanh", classes=2)
    serving(service, MADE.model(graph, [nodes, edges]))
    with session(service) as one:
        metadata = one.metadata("toy")
        given = {"nodes": [[[1, 2], [3, 4]]], "edges": [[[True, True], [True, True]]]}
        told = shown(one.explain("toy", given), metadata, 0)
    assert "node 2, c1" in told
    assert "tie of 1 and 2" in told


def test_an_explanation_of_a_pipeline_says_how_it_was_made_and_names_each_input(
    site: Any, service: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = text_and_row(MADE)
    serving(service, model)
    given = {"mail": ["Good, very good!"], "age": [[7.0, -3.0]]}
    with session(service) as one:
        metadata = one.metadata("toy")
        found = one.explain("toy", given, method="shapley")
        assert metadata.parameters.explain_units.keys() == set(metadata.parameters.explain_methods)
    assert (found.method, found.seed, found.evaluations) == ("shapley", 1, 3 + 64 * 8)
    lines = shown(found, metadata, 0, text=given["mail"][0]).splitlines()
    assert lines[0].endswith("by shapley (seed 1, at most 515 evaluations of the model)")
    assert "[" in lines[lines.index("mail:") + 2], "the text, marked"
    assert {line.split()[0] for line in lines[lines.index("age:") + 4 :]} == {"c8", "c9"}, "the second input's columns"
    document = {
        "inputs": [
            {"name": "mail", "datatype": "BYTES", "shape": [1], "data": given["mail"]},
            {"name": "age", "datatype": "FP32", "shape": [1, 2], "data": given["age"]},
        ]
    }
    (tmp_path / "ask.json").write_text(json.dumps(document))
    assert run(EXPLAIN, site, tmp_path, "--inputs", tmp_path / "ask.json") == 0
    assert "by integrated-gradients (at most 194 evaluations of the model)" in capsys.readouterr().out
    assert run(EXPLAIN, site, tmp_path, "--inputs", tmp_path / "ask.json", "--method", "shapley", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["method"], told["evaluations"], told["seed"]) == ("shapley", 515, 1)
    assert told["attributions"] == found.attributions


def test_a_heat_map_is_a_png_of_the_right_colours() -> None:
    with Image.open(io.BytesIO(heat_map([[[1.0, 0.0], [-0.5, 0.0]]]))) as drawn:
        assert drawn.size == (16, 16)
        assert [drawn.getpixel(place) for place in ((0, 0), (15, 0), (0, 15))] == [
            (255, 0, 0),
            (255, 255, 255),
            (127, 127, 255),
        ]


# Commands ------------------------------------------------------------------------------------------------------------


def run(command: Any, site: Any, tmp_path: Path, *words: object) -> int:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    parser = argparse.ArgumentParser()
    command.configure(parser)
    fixed = ("--trust", site.trust, "--token-file", token, "--purpose", "diagnosis", "--model", "toy")
    return command.run(parser.parse_args([str(word) for word in (*fixed, *words)]))  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")


def test_infer_takes_pictures_texts_and_any_tensors(
    site: Any, service: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serving(service, images())
    pixels, encoded = picture()
    (tmp_path / "a.png").write_bytes(encoded)
    assert run(INFER, site, tmp_path, "--images", tmp_path / "a.png", "--json") == 0
    by_picture = json.loads(capsys.readouterr().out)["outputs"]
    tensor = {"name": "image", "shape": [1, 1, 6, 9], "datatype": "UINT8", "data": pixels.reshape(-1).tolist()}
    (tmp_path / "ask.json").write_text(json.dumps({"inputs": [tensor]}))
    assert run(INFER, site, tmp_path, "--inputs", tmp_path / "ask.json", "--json") == 0
    assert json.loads(capsys.readouterr().out)["outputs"] == by_picture
    (tmp_path / "t.txt").write_text("good\nbad\n")
    with pytest.raises(UsageError, match="does not take texts; give --images"):
        run(INFER, site, tmp_path, "--texts", tmp_path / "t.txt")
    (tmp_path / "rows.csv").write_text("1,2\n")
    with pytest.raises(UsageError, match="does not take rows of numbers; give --images"):
        run(INFER, site, tmp_path, "--rows", tmp_path / "rows.csv")
    serving(service, texts())
    service.instance.rotate(9)
    assert run(INFER, site, tmp_path, "--texts", tmp_path / "t.txt", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["outputs"]["label"]) == 2


def test_an_error_about_a_picture_names_its_file(site: Any, service: Any, tmp_path: Path) -> None:
    serving(service, images())
    (tmp_path / "good.png").write_bytes(picture()[1])
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for command in (INFER, EXPLAIN):
        with pytest.raises(InferenceFailed) as refused:
            run(command, site, tmp_path, "--images", tmp_path / "good.png", tmp_path / "bad.png")
        assert str(tmp_path / "bad.png") + ": neither PNG nor JPEG" in str(refused.value)
        assert "row" not in str(refused.value)


def test_infer_takes_arrays_as_numpy_saves_them(
    site: Any, service: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serving(service, images())
    pixels, encoded = picture()
    (tmp_path / "a.png").write_bytes(encoded)
    assert run(INFER, site, tmp_path, "--images", tmp_path / "a.png", "--json") == 0
    by_picture = json.loads(capsys.readouterr().out)["outputs"]
    np.save(tmp_path / "a.npy", pixels.reshape(1, 1, 6, 9))
    for named in (f"{tmp_path / 'a.npy'}", f"image={tmp_path / 'a.npy'}"):
        assert run(INFER, site, tmp_path, "--arrays", named, "--json") == 0
        assert json.loads(capsys.readouterr().out)["outputs"] == by_picture
    np.save(tmp_path / "wide.npy", pixels.reshape(1, 1, 6, 9).astype("<f8"))
    for named, why in (
        (tmp_path / "wide.npy", "wide.npy holds FP64, but input 'image' takes UINT8"),
        (f"other={tmp_path / 'a.npy'}", "say which input it is, each once: INPUT=FILE with image"),
    ):
        with pytest.raises(UsageError, match=why):
            run(INFER, site, tmp_path, "--arrays", named)


@pytest.mark.parametrize("text", ["{", '{"inputs": []}x', '{"inputs": [{"name": "a"}]}'])
def test_tensors_that_are_none_are_refused_before_anything_is_asked(
    site: Any, service: Any, tmp_path: Path, text: str
) -> None:
    (tmp_path / "ask.json").write_text(text)
    with pytest.raises(ConfigurationError, match="--inputs"):
        run(INFER, site, tmp_path, "--inputs", tmp_path / "ask.json")
    assert service.count("/sealed") == 0


def test_explain_prints_tables_pictures_and_json(
    site: Any, service: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serving(service, table())
    (tmp_path / "rows.csv").write_text("pulse,age,ward=b,ward=a\n70,40,0,1\n80,50,1,0\n")
    assert run(EXPLAIN, site, tmp_path, "--rows", tmp_path / "rows.csv", "--receipt-out", tmp_path / "r") == 0
    told = capsys.readouterr().out
    assert told.count("attribution") == 2
    assert "receipt" in told
    assert (tmp_path / "r").stat().st_size > 100
    assert run(EXPLAIN, site, tmp_path, "--rows", tmp_path / "rows.csv", "--json", "--target", "1") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["method"], document["targets"], document["labels"]) == ("coefficients", [1, 1], ["class 1"] * 2)
    with pytest.raises(UsageError, match="--heat-map is for models over images"):
        run(EXPLAIN, site, tmp_path, "--rows", tmp_path / "rows.csv", "--heat-map", tmp_path / "m.png")
    assert not capsys.readouterr().out, "nothing was asked, so nothing is paid for"


# The local proxy, and the client that Triton's users have -----------------------------------------------------------


@pytest.fixture
def proxy(service: Any) -> Iterator[LocalProxy]:
    serving(service, table())
    transport = SealedTransport(
        service.trust(),
        purpose="diagnosis",
        token=TOKEN,
        outer=service.transport(),
        clock=service.clock,
        trust_env=False,
    )
    asker = Asker(transport, model="toy", timeout_s=30)
    server = LocalProxy("127.0.0.1", 0, asker)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        asker.close()


def test_tritons_client_is_answered(proxy: LocalProxy) -> None:
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(urlsplit(proxy.url).netloc)
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("toy")
        assert client.is_model_ready("toy", "1")
        assert not client.is_model_ready("toy", "2")
        server = client.get_server_metadata()
        assert server["name"] == "sealgate"
        assert len(server["extensions"]) > 1
        assert server["extensions"][-1] == "model_configuration"
        assert client.get_model_metadata("toy")["inputs"][0]["shape"] == [-1, 4]
        rows = np.array([[40, 70, 1, 0], [50, 80, 0, 1]], dtype=np.float32)
        answers = []
        for binary in (True, False):
            tensor = triton.InferInput("features", rows.shape, "FP32")
            tensor.set_data_from_numpy(rows, binary_data=binary)
            wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("scores", "label")]
            found = client.infer("toy", [tensor], outputs=wanted, request_id="7")
            assert found.get_response()["id"] == "7"
            answers.append((found.as_numpy("scores"), found.as_numpy("label")))
        np.testing.assert_allclose(answers[0][0], answers[1][0], atol=1e-6)
        np.testing.assert_array_equal(answers[0][1], answers[1][1])
        assert answers[0][0].sum(axis=1) == pytest.approx([1, 1], abs=1e-5)
        named = []
        for name, values in (("age", rows[:, 0]), ("pulse", rows[:, 1])):
            tensor = triton.InferInput(name, [2], "FP32")
            named.append(tensor.set_data_from_numpy(values))
        tensor = triton.InferInput("ward", [2], "BYTES")
        named.append(tensor.set_data_from_numpy(np.array([b"a", b"b"], dtype=object)))
        np.testing.assert_array_equal(client.infer("toy", named).as_numpy("scores"), answers[0][0])
        assert client.get_inference_statistics("toy")["model_stats"][0]["inference_count"] == 6
        wrong = triton.InferInput("features", [1, 4], "FP64").set_data_from_numpy(np.zeros((1, 4)))
        with pytest.raises(triton.InferenceServerException, match="expected FP32"):
            client.infer("toy", [wrong])
        right = triton.InferInput("features", rows.shape, "FP32").set_data_from_numpy(rows)
        ranked = triton.InferRequestedOutput("scores", class_count=2)
        with pytest.raises(triton.InferenceServerException, match="class_count"):
            client.infer("toy", [right], outputs=[ranked])
    finally:
        client.close()


def test_tritons_client_is_told_a_models_configuration(proxy: LocalProxy) -> None:
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(urlsplit(proxy.url).netloc)
    try:
        told = client.get_model_config("toy")
        assert told == client.get_model_config("toy", "1")
        metadata = client.get_model_metadata("toy")
        assert {key: told[key] for key in told if key not in ("input", "output")} == {
            "name": metadata["name"],
            "platform": "sealgate_torch",
            "max_batch_size": 0,
        }
        for tensors, ours in ((told["input"], metadata["inputs"]), (told["output"], metadata["outputs"])):
            assert [one["name"] for one in tensors] == [one["name"] for one in ours]
            assert [one["dims"] for one in tensors] == [one["shape"] for one in ours]
            assert [one["data_type"] for one in tensors] == [f"TYPE_{one['datatype']}" for one in ours]
        assert told["input"] == [{"name": "features", "data_type": "TYPE_FP32", "dims": [-1, 4]}]
        for name, version, why in (("toy", "2", "no model 'toy' of version '2'"), ("other", "", "other")):
            with pytest.raises(triton.InferenceServerException, match=why):
                client.get_model_config(name, version)
    finally:
        client.close()


def test_a_configuration_says_what_the_metadata_says_and_a_model_may_be_called_config() -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [-1]}
    document = {"name": "m", "platform": "p", "inputs": [tensor], "outputs": [tensor | {"datatype": "BF16"}]}
    told = json.loads(model_configuration(json.dumps(document).encode()))
    assert told["input"] == [{"name": "text", "data_type": "TYPE_STRING", "dims": [-1]}]
    assert told["output"][0]["data_type"] == "TYPE_BF16"
    assert described_by("/v2/models/config") == ""
    assert described_by("/v2/models/config/config") == "/v2/models/config"
    assert described_by("/v2/models/a%20b/versions/3/config") == "/v2/models/a%20b/versions/3"
    assert described_by("/v2/models/m/infer") == ""
    for malformed in (b"[]", b'{"extensions": 1}', b"{"):
        with pytest.raises(DecodeError):
            with_extension(malformed)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Origin": "https://a.test"}, b"", 403),
        ({"Host": "a.test"}, b"", 403),
        ({"Content-Length": str(1 << 30)}, b"", 413),
        ({"Content-Length": "-1"}, b"", 413),
        ({"Content-Encoding": "gzip"}, gzip.compress(b"{}"), 415),
        ({"Transfer-Encoding": "chunked"}, b"", 411),
    ],
)
def test_who_may_not_ask_is_refused_before_anything_is_sent(
    proxy: LocalProxy, service: Any, headers: dict[str, str], body: bytes, status: int
) -> None:
    connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=30)
    try:
        connection.request("POST", "/v2/models/toy/infer", body, headers)
        answer = connection.getresponse()
        assert answer.status == status
        assert json.loads(answer.read())["error"]
    finally:
        connection.close()
    assert service.count("/sealed") == 0


@pytest.mark.parametrize(
    "field",
    [
        ("Sec-Fetch-Site", "cross-site"),  # an image, a script, a link: browsers send no Origin with these
        ("Sec-Fetch-Site", "none"),  # typed in, or opened by another program
        ("Referer", "https://a.test/"),
        ("Origin", "null"),
        ("Host", "a.test"),  # a second one
        ("Content-Length", "0"),
    ],
)
def test_what_a_page_merely_loads_or_links_to_is_not_asked_for_either(
    proxy: LocalProxy, service: Any, field: tuple[str, str]
) -> None:
    with socket.create_connection(proxy.server_address[:2], timeout=30) as caller:
        head = f"GET /v2/models/toy HTTP/1.1\r\nHost: {urlsplit(proxy.url).netloc}\r\nContent-Length: 0\r\n"
        caller.sendall(f"{head}{field[0]}: {field[1]}\r\n\r\n".encode())
        answer = caller.makefile("rb").read()  # until it closes
    assert answer.startswith(b"HTTP/1.1 403" if field[0] not in ("Host", "Content-Length") else b"HTTP/1.1 400")
    assert service.count("/sealed") == 0


def test_a_body_that_does_not_come_whole_is_not_asked_with(proxy: LocalProxy, service: Any) -> None:
    with socket.create_connection(proxy.server_address[:2], timeout=30) as caller:
        head = f"POST /v2/models/toy/infer HTTP/1.1\r\nHost: {urlsplit(proxy.url).netloc}\r\nContent-Length: 9\r\n\r\n"
        caller.sendall(head.encode() + b"{}")
        caller.shutdown(socket.SHUT_WR)
        assert caller.makefile("rb").read() == b""
    assert service.count("/sealed") == 0


def test_connections_beyond_the_most_are_closed_at_once_and_their_places_come_back(
    proxy: LocalProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "_places", threading.BoundedSemaphore(1))
    with socket.create_connection(proxy.server_address[:2], timeout=30) as first:
        first.sendall(f"GET /v2/health/live HTTP/1.1\r\nHost: {urlsplit(proxy.url).netloc}\r\n\r\n".encode())
        assert first.recv(64).startswith(b"HTTP/1.1 200")  # it is kept open, in its thread
        with socket.create_connection(proxy.server_address[:2], timeout=30) as second:
            assert second.recv(1) == b""
    assert proxy._places.acquire(timeout=30)


def test_a_path_that_cannot_be_sealed_is_said_so(proxy: LocalProxy) -> None:
    answer = httpx.get(f"{proxy.url}/v2/repository/index", trust_env=False)
    assert (answer.status_code, "cannot be sealed" in answer.json()["error"]) == (400, True)


def test_a_model_or_version_that_is_not_served_is_not_found(proxy: LocalProxy) -> None:
    """By evidence that holds, which is no fault of the service: 502 would have its caller come again."""
    for path in ("/v2/models/absent", "/v2/models/absent/ready", "/v2/models/toy/versions/9"):
        answer = httpx.get(f"{proxy.url}{path}", trust_env=False)
        assert (answer.status_code, "is served here; served: toy" in answer.json()["error"]) == (404, True), answer.text


def test_an_answer_that_does_not_hold_is_not_handed_on(proxy: LocalProxy, service: Any, meddling: Any) -> None:
    assert httpx.get(f"{proxy.url}/v2/models/toy", trust_env=False).status_code == 200
    service.meddle = lambda request, honest: (
        meddling.replaced(honest, body=honest.read()[:-1] + b"\0") if request.url.path.startswith("/sealed") else honest
    )
    answer = httpx.get(f"{proxy.url}/v2/models/toy", trust_env=False)
    assert answer.status_code == 502
    assert "m" not in answer.json().get("name", "")


def test_a_port_that_is_taken_is_one_line_that_says_what_to_do(site: Any, proxy: LocalProxy, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="choose another --port"):
        run(PROXY, site, tmp_path, "--port", urlsplit(proxy.url).port)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "localhost", "::"])
def test_nothing_but_a_loopback_address_is_listened_on(host: str) -> None:
    with pytest.raises(UsageError, match="loopback"):
        LocalProxy(host, 0, lambda *_: (200, [], b""))
