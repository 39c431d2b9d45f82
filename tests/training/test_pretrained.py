"""Public encoders: what a published folder says becomes the manifest, its weights the frozen part; or it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from sealgate.certificate.architectures.frozen_encoder import FROZEN_PREFIX, FrozenEncoderSpec
from sealgate.certificate.bundle import sha256_hex
from sealgate.certificate.inputs import TextContent, WordPiece
from sealgate.certificate.manifest import Manifest
from sealgate.certificate.weights import frozen_digest
from sealgate.errors import CertificateError, ConfigurationError
from secure_runtime.models.architectures import build
from tests.stories.test_texts_sequences_graphs import changed, tiny_encoder
from training.configuration import Configuration, load_configuration
from training.manifests import manifest_of
from training.pretrained import fill_frozen


def configured(folder: Path, *changes: tuple[str, str]) -> Configuration:
    if not (folder / "encoder").exists():
        tiny_encoder(folder / "encoder")
    text = changed(
        "text/spam_minilm.toml", ('"package:[^"]*"', '"encoder"'), (r"^length = \d+", "length = 12"), *changes
    )
    (folder / "config.toml").write_text(text)
    return load_configuration(folder / "config.toml")


def frozen(manifest: Manifest) -> FrozenEncoderSpec:
    assert isinstance(manifest.architecture, FrozenEncoderSpec)
    return manifest.architecture


def test_the_manifest_follows_from_the_folder(tmp_path: Path) -> None:
    configuration = configured(tmp_path)
    manifest = manifest_of(configuration)
    spec, content = frozen(manifest), manifest.inputs[0].content
    assert (spec.width, spec.heads, spec.layers, spec.feed_forward, spec.positions) == (8, 2, 2, 12, 16)
    assert isinstance(content, TextContent)
    assert isinstance(content.tokenizer, WordPiece)
    assert content.tokenizer.vocabulary == tuple((tmp_path / "encoder" / "vocab.txt").read_text().split("\n")[:-1])
    module = build(spec)
    fill_frozen(module, configuration)
    published = load_file(tmp_path / "encoder" / "model.safetensors")
    found = module.state_dict()
    assert torch.equal(found["features.words.weight"], published["embeddings.word_embeddings.weight"])
    name = "encoder.layer.1.attention.output.dense.weight"
    assert torch.equal(found["features.layers.1.attention.out.weight"], published[name])
    weights = bytes(save(found))
    assert frozen_digest(weights, prefix=FROZEN_PREFIX) == spec.frozen_digest


def test_the_digest_sees_every_frozen_number_and_nothing_else(tmp_path: Path) -> None:
    from sealgate.certificate.bundle import _check_weights

    configuration = configured(tmp_path)
    manifest = manifest_of(configuration)
    module = build(manifest.architecture)
    fill_frozen(module, configuration)
    good = bytes(save(module.state_dict()))
    _check_weights(good, sha256_hex(good), manifest)
    with torch.no_grad():
        module.get_parameter("head.0.weight")[0, 0] = 3
    trained = bytes(save(module.state_dict()))
    _check_weights(trained, sha256_hex(trained), manifest)
    for name in (name for name in module.state_dict() if name.startswith(FROZEN_PREFIX)):
        state = {key: value.clone() for key, value in module.state_dict().items()}
        state[name].view(-1)[-1] += 1
        altered = bytes(save(state))
        with pytest.raises(CertificateError, match="not the public ones"):
            _check_weights(altered, sha256_hex(altered), manifest)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hidden_act": "relu"}, "another kind"),
        ({"layer_norm_eps": 1e-5}, "another kind"),
        ({"position_embedding_type": "relative_key"}, "another kind"),
        ({"hidden_size": "8"}, "config.json"),
        ({"num_hidden_layers": 3}, "no tensor 'encoder.layer.2"),
        ({"num_attention_heads": 3}, "heads"),
        ({"max_position_embeddings": 10}, "positions"),
    ],
)
def test_folders_of_another_kind(tmp_path: Path, change: dict[str, object], why: str) -> None:
    configuration = configured(tmp_path)
    path = tmp_path / "encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigurationError, match=why):
        manifest_of(configuration)


def test_sizes_that_the_weights_do_not_have(tmp_path: Path) -> None:
    configuration = configured(tmp_path)
    manifest = manifest_of(configuration)
    path = tmp_path / "encoder" / "model.safetensors"
    weights = load_file(path)
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][1:].clone()
    save_file(weights, path)
    with pytest.raises(ConfigurationError, match="do not fit the model"):
        fill_frozen(build(manifest.architecture), configuration)
    path.write_bytes(b"\x80\x04 pickle")
    with pytest.raises(ConfigurationError, match="not a safetensors file"):
        manifest_of(configuration)
    (tmp_path / "encoder" / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        manifest_of(configuration)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (('"encoder"', '"package:no_such_package_here/model"'), "no installed package"),
        (('"encoder"', '"package:../etc/model"'), "no installed package"),
        (('"encoder"', '"nowhere"'), "cannot be read"),
        (("^name = .sentence.*", 'size = "3"'), r"\[pretrained\] has no setting 'size'"),
        ((r"^\[pretrained\]", "[architecture]\nwidth = 4\n[pretrained]"), "follows from"),
    ],
)
def test_sections_that_are_wrong(tmp_path: Path, change: tuple[str, str], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        manifest_of(configured(tmp_path, change))
