"""The forms that data can have, a module for each: how a configuration describes it, and how its rows are read.

A form turns `[data] kind` and its own section into the manifest's inputs, without looking at the data, and then reads
the rows. A new form is one module here and one line in `FORMS`. Trusts: nothing in the data. Never: computes a
statistic of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from sealgate.certificate.inputs import InputTensor
from sealgate.errors import ConfigurationError
from training.configuration import Configuration
from training.examples import Examples
from training.forms import graph, image, network, sequence, table, text, tokens


class Form(Protocol):
    """What a module of this package offers. Every function raises ConfigurationError with one line to act on."""

    def declared_inputs(self, configuration: Configuration) -> tuple[InputTensor, ...]:
        """The manifest's inputs, from public constants alone; refuses a section that is wrong."""

    def read_examples(self, configuration: Configuration, *, folder: Path) -> Examples:
        """The rows of `[data] source` (relative to `folder`), checked; names column and row of what is wrong."""

    def write_heldout(self, path: Path, examples: Examples, configuration: Configuration) -> None:
        """Write rows as people can send them to the model, mode 0600, atomic."""


FORMS: dict[str, Form] = {
    "table": table,
    "image": image,
    "sequence": sequence,
    "text": text,
    "tokens": tokens,
    "graph": graph,
    "network": network,
}


def form_of(configuration: Configuration) -> Form:
    """The form that `[data] kind` names."""
    form = FORMS.get(configuration.data.kind)
    if form is None:
        raise ConfigurationError(f"[data] kind must be one of: {', '.join(FORMS)}")
    return form
