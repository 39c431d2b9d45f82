"""What a model says of itself inside the seal: Open Inference Protocol model metadata.

Trusts: the runtime that sealed it. Bounded by the sealed message's own limit; unknown members are left alone, since
other runtimes may say more.
"""

from __future__ import annotations

import msgspec

from sealgate.errors import DecodeError


class TensorMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output; -1 in `shape` stands for the rows of a request."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Sealgate's additions. `labels` holds the class names of outputs that have them, `contents` what each input
    is: "table", "image", "sequence", "tokens", "text", "graph-nodes" or "graph-edges"; `encodings` names the media
    types that an input also comes as, in BYTES. `columns` are those of the first input, `input_columns` those of every
    input that has some. Of `explain_methods` the first is what is meant when none is named; `explain_units` says what a
    row costs by each."""

    columns: tuple[str, ...] = ()
    input_columns: dict[str, tuple[str, ...]] = {}
    contents: dict[str, str] = {}
    encodings: dict[str, tuple[str, ...]] = {}
    labels: dict[str, tuple[str, ...]] = {}
    units_per_row: int | None = None
    explain_units_per_row: int | None = None
    explain_methods: tuple[str, ...] = ()
    explain_units: dict[str, int] = {}
    model_digest: str = ""
    certificate_digest: str = ""
    epsilon_micro: int | None = None
    delta: str = ""
    privacy_unit: str = ""


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /v2/models/MODEL`, opened."""

    name: str
    versions: tuple[str, ...] = ()
    platform: str = ""
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    parameters: ModelParameters = ModelParameters()

    def columns_of(self, name: str) -> tuple[str, ...]:
        """The columns of one input; none where the runtime does not say."""
        first = self.parameters.columns if name == self.inputs[0].name else ()
        return self.parameters.input_columns.get(name, first)

    def option(self) -> str:
        """The option of `sealgate infer` that gives what the model takes."""
        others = "--arrays or --inputs"
        if len(self.inputs) != 1:
            return others
        name, content = self.inputs[0].name, self.parameters.contents.get(self.inputs[0].name, "")
        if content == "image" and not self.parameters.encodings.get(name):
            return others
        return {"table": "--rows", "image": "--images", "text": "--texts"}.get(content, others)


_decoder = msgspec.json.Decoder(ModelMetadata)


def read_metadata(body: bytes) -> ModelMetadata:
    """The metadata in an opened answer; raises DecodeError."""
    try:
        found = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise DecodeError("the model's metadata are malformed") from error
    if not found.inputs or not found.outputs:
        raise DecodeError("the model's metadata name no inputs or outputs")
    return found
