"""Which loaded model answers a request: by its name, and by its version where the request names one.

The engine asks here and nowhere else, so that how versions are kept, and which of them answers when nobody named one,
is one object's business. Trusts: models that a worker verified and loaded. Never: loads anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from secure_runtime.models.bundle import LoadedModel


class Lookup(Protocol):
    """What the engine needs to know of the models that are loaded."""

    def find(self, name: str, version: str) -> LoadedModel | None:
        """The model of this name and version; of version "", the one that answers when none is named. None if there
        is no such model."""
        ...

    def versions(self, name: str) -> tuple[str, ...]:
        """Every version of a model that is loaded, for its metadata."""
        ...

    def __iter__(self) -> Iterator[LoadedModel]:
        """Every loaded model, of every version."""
        ...


class LoadedModels:
    """One version of each model: `models` by name."""

    def __init__(self, models: Mapping[str, LoadedModel]) -> None:
        self._models = dict(models)

    def find(self, name: str, version: str) -> LoadedModel | None:
        """As `Lookup.find`."""
        model = self._models.get(name)
        return model if model is not None and version in ("", model.facts.version) else None

    def versions(self, name: str) -> tuple[str, ...]:
        """As `Lookup.versions`."""
        model = self._models.get(name)
        return () if model is None else (model.facts.version,)

    def __iter__(self) -> Iterator[LoadedModel]:
        return iter(self._models.values())
