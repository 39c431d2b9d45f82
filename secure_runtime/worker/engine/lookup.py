"""Which loaded model answers a request: by its name, and by its version where the request names one.

The engine asks here and nowhere else, so that how versions are kept, and which of them answers when nobody named one,
is one object's business. Which one that is, the grant says: the host chooses between default and canary. Where it says
nothing, the newest answers.

Trusts: models that a worker verified and loaded. Never: loads anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from sealgate.certificate.repository import version_order
from secure_runtime.models.bundle import LoadedModel


class Lookup(Protocol):
    """What the engine needs to know of the models that are loaded."""

    def find(self, name: str, version: str) -> LoadedModel | None:
        """The model of this name and version; of version "", the newest. None if there is no such model."""
        ...

    def versions(self, name: str) -> tuple[str, ...]:
        """Every version of a model that is loaded, for its metadata."""
        ...

    def __iter__(self) -> Iterator[LoadedModel]:
        """Every loaded model, of every version."""
        ...


class LoadedModels:
    """Every version of every model, the newest of each last."""

    def __init__(self, models: Mapping[str, LoadedModel] | Iterable[LoadedModel]) -> None:
        """No two of them have one name and one version. Of a mapping only the values count."""
        self._models: dict[str, dict[str, LoadedModel]] = {}
        given = models.values() if isinstance(models, Mapping) else models
        for model in sorted(given, key=lambda one: version_order(one.facts.version)):
            self._models.setdefault(model.facts.name, {})[model.facts.version] = model
        self._newest = {name: list(versions.values())[-1] for name, versions in self._models.items()}

    def find(self, name: str, version: str) -> LoadedModel | None:
        """As `Lookup.find`."""
        return self._models.get(name, {}).get(version) if version else self._newest.get(name)

    def versions(self, name: str) -> tuple[str, ...]:
        """As `Lookup.versions`, oldest first."""
        return tuple(self._models.get(name, ()))

    def __iter__(self) -> Iterator[LoadedModel]:
        return (model for versions in self._models.values() for model in versions.values())
