"""Public pretrained text encoders: reading a published folder, and putting its weights into the frozen part of a model.

The folder is in the layout of sentence-transformers and BERT: `config.json`, `vocab.txt`, `model.safetensors`. It comes
from disk or from inside an installed Python package ("package:NAME/FOLDER"), which is found but not imported: nothing
of it runs. What is read is public and outside the privacy guarantee, and the certificate says so.

Trusts: the person who names the folder, for its weights. Never: downloads, unpickles, or runs code of the model.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from sealgate.certificate.architectures.frozen_encoder import FROZEN_PREFIX
from sealgate.certificate.weights import frozen_digest
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_MANIFEST, MAX_WEIGHTS
from sealgate.toml_words import in_words
from training.configuration import PACKAGE, Configuration

_FAMILY = "frozen-encoder"
_LAYER_NAMES = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
_NAMES = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "segment": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
}


class PretrainedSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[pretrained]`: the folder of a public encoder, and the name that manifest and certificate give it."""

    folder: str
    name: str


class _BertConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What matters of a published `config.json`."""

    hidden_size: int
    intermediate_size: int
    max_position_embeddings: int
    num_attention_heads: int
    num_hidden_layers: int
    vocab_size: int
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    position_embedding_type: str = "absolute"


def pretrained_of(configuration: Configuration) -> PretrainedSection:
    """The section; raises ConfigurationError if there is none or it is wrong."""
    if not configuration.pretrained:
        raise ConfigurationError("[pretrained] must name the folder of a public encoder, and the encoder")
    try:
        return msgspec.convert(configuration.pretrained, PretrainedSection)
    except msgspec.ValidationError as error:
        raise ConfigurationError(in_words(error, PretrainedSection, under=("pretrained",))) from error


def _folder(configuration: Configuration) -> Path:
    given = pretrained_of(configuration).folder
    if not given.startswith(PACKAGE):
        return Path(given)
    package, _, inside = given.removeprefix(PACKAGE).partition("/")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise ConfigurationError(f"[pretrained] folder: there is no installed package '{package}'; pip install it")
    return Path(found.submodule_search_locations[0]) / inside


def _read(path: Path, *, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigurationError(f"[pretrained] {path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise ConfigurationError(f"[pretrained] {path} is larger than {limit} bytes")
    return data


def vocabulary_of(configuration: Configuration) -> tuple[str, ...]:
    """The pieces of words, in order; raises ConfigurationError."""
    path = _folder(configuration) / "vocab.txt"
    try:
        return tuple(_read(path, limit=MAX_MANIFEST).decode().removesuffix("\n").split("\n"))
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"[pretrained] {path} is not UTF-8") from error


def architecture_options(configuration: Configuration) -> dict[str, Any]:
    """`[architecture]`, and for a frozen encoder what its published folder says; raises ConfigurationError."""
    if configuration.model.family != _FAMILY:
        return configuration.architecture
    found = _published_sizes(configuration)
    for name in sorted(set(found) & set(configuration.architecture)):
        raise ConfigurationError(f"[architecture] '{name}' follows from [pretrained] and is not an option")
    return {**configuration.architecture, **found}


def _published_sizes(configuration: Configuration) -> dict[str, Any]:
    """Sizes, name and digest of the published encoder."""
    path = _folder(configuration) / "config.json"
    try:
        found = msgspec.json.decode(_read(path, limit=MAX_MANIFEST), type=_BertConfig)
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"[pretrained] {path}: {error}") from error
    if (found.hidden_act, found.layer_norm_eps, found.position_embedding_type) != ("gelu", 1e-12, "absolute"):
        raise ConfigurationError(f"[pretrained] {path} is of another kind than BERT with gelu and absolute positions")
    tensors = frozen_tensors(configuration, layers=found.num_hidden_layers)
    return {
        "pretraining": pretrained_of(configuration).name,
        "frozen_digest": frozen_digest(bytes(save(tensors)), prefix=FROZEN_PREFIX),
        "width": found.hidden_size,
        "heads": found.num_attention_heads,
        "layers": found.num_hidden_layers,
        "feed_forward": found.intermediate_size,
        "positions": found.max_position_embeddings,
    }


def frozen_tensors(configuration: Configuration, *, layers: int) -> dict[str, torch.Tensor]:
    """The published weights under the names of our frozen encoder, FP32; raises ConfigurationError."""
    path = _folder(configuration) / "model.safetensors"
    try:
        published = load(_read(path, limit=MAX_WEIGHTS))
    except SafetensorError as error:
        raise ConfigurationError(f"[pretrained] {path} is not a safetensors file") from error
    names = dict(_NAMES)
    for index in range(layers):
        names |= {f"layers.{index}.{part}": f"encoder.layer.{index}.{name}" for part, name in _LAYER_NAMES.items()}
    tensors: dict[str, torch.Tensor] = {}
    for part, name in names.items():
        for kind in ("weight",) if "embeddings." in name and "LayerNorm" not in name else ("weight", "bias"):
            tensor = published.get(f"{name}.{kind}")
            if tensor is None:
                raise ConfigurationError(f"[pretrained] {path} has no tensor '{name}.{kind}'")
            if part == "segment":
                tensor = tensor[:1]  # a single text is the first of BERT's two segments
            tensors[f"{FROZEN_PREFIX}{part}.{kind}"] = tensor.to(torch.float32).contiguous()
    return tensors


def fill_frozen(module: torch.nn.Module, configuration: Configuration) -> None:
    """Put the published weights into a module that was built for them; raises ConfigurationError if they do not fit."""
    parameters = dict(module.named_parameters())
    layers = len({name.split(".")[2] for name in parameters if name.startswith(f"{FROZEN_PREFIX}layers.")})
    with torch.no_grad():
        for name, tensor in frozen_tensors(configuration, layers=layers).items():
            if name not in parameters or parameters[name].shape != tensor.shape:
                raise ConfigurationError(f"[pretrained] the published weights do not fit the model: '{name}'")
            parameters[name].copy_(tensor)
