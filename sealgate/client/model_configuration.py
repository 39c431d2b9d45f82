"""Triton's model configuration extension, made of what the worker said of the model inside the seal.

`GET v2/models/NAME[/versions/VERSION]/config` is asked by tritonclient's `get_model_config`. The fields are those of
Triton's ModelConfig that have something true to say here: name, platform, max_batch_size, input and output. The batch
size is 0, which means there that `dims` are whole, rows included: a request may have as many rows as its message holds.

Trusts: that its caller verified the answer which the metadata came in. Never: states what the worker did not say.
"""

from __future__ import annotations

import re

import msgspec

from sealgate.client.metadata import TensorMetadata, read_metadata
from sealgate.errors import DecodeError

_PATH = re.compile(r"(/v2/models/[^/?#]+(?:/versions/[^/?#]+)?)/config\Z")
_EXTENSION = "model_configuration"


def described_by(path: str) -> str:
    """The path of the metadata that this configuration is made of; "" for a path that asks for none."""
    match = _PATH.match(path)
    return "" if match is None else match[1]


def model_configuration(metadata: bytes) -> bytes:
    """The configuration; raises DecodeError."""
    model = read_metadata(metadata)
    return msgspec.json.encode(
        {
            "name": model.name,
            "platform": model.platform,
            "max_batch_size": 0,
            "input": [_tensor(one) for one in model.inputs],
            "output": [_tensor(one) for one in model.outputs],
        }
    )


def _tensor(one: TensorMetadata) -> dict[str, object]:
    """Triton calls text and bytes TYPE_STRING, and everything else as the protocol does."""
    kind = "STRING" if one.datatype == "BYTES" else one.datatype
    return {"name": one.name, "data_type": f"TYPE_{kind}", "dims": one.shape}


def with_extension(server: bytes) -> bytes:
    """The server's metadata, naming this extension too; raises DecodeError."""
    try:
        document = msgspec.json.decode(server, type=dict[str, object])
        named = msgspec.convert(document.get("extensions", ()), tuple[str, ...])
    except msgspec.DecodeError as error:
        raise DecodeError("the server's metadata is malformed") from error
    return msgspec.json.encode(document | {"extensions": tuple(dict.fromkeys((*named, _EXTENSION)))})
