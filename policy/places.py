"""Where the commands of `sealgate policy` look: a deployment's working copy, its policy in force, or any directory.

Trusts: the paths that a person types. Never: changes anything, or verifies a model's bundle before somebody names it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from policy.history import PolicyHistory
from policy.store import SCHEMA_FILE
from sealgate.certificate.publishers import Publishers, load_publishers
from sealgate.certificate.repository import is_pipeline, places_of
from sealgate.deployment import Deployment, open_deployment
from sealgate.errors import CertificateError, ConfigurationError
from sealgate.protocol.frames import ModelFacts


@dataclass(frozen=True, kw_only=True)
class Place:
    """A policy directory, and what is known about where it is. `digest` is set for a stored version alone."""

    path: Path
    called: str
    deployment: Deployment | None = None
    digest: str | None = None

    @property
    def bundles(self) -> Bundles:
        """The models of the deployment, if there is one."""
        return Bundles(self.deployment)


def working_copy(state: Path, directory: Path | None) -> Place:
    """The directory that is named, else the working copy of the deployment at `state`, which may be a policy itself."""
    if not (state / "deployment.toml").exists() and (state / SCHEMA_FILE).exists():
        if directory is not None:
            raise ConfigurationError(f"{state} is a policy directory: name a deployment first, or this directory alone")
        return Place(path=state, called=str(state))
    deployment = open_deployment(state)
    if directory is not None:
        return Place(path=directory, called=str(directory), deployment=deployment)
    return Place(path=deployment.policy, called="working copy", deployment=deployment)


def in_force(deployment: Deployment) -> Place | None:
    """The policy in force; None in a deployment that has never been started."""
    history = PolicyHistory(deployment.policy_history)
    stated = history.current()
    if stated is None:
        return None
    path = history.require_whole(stated.digest)
    return Place(path=path, called="policy in force", deployment=deployment, digest=stated.digest)


class Bundles(Mapping[str, ModelFacts]):
    """What the models of a deployment state of themselves, by name; signatures are checked when it is asked for. That
    epsilon is right is for whoever serves a model to find out, and takes seconds."""

    def __init__(self, deployment: Deployment | None) -> None:
        self._deployment = deployment
        self._known: dict[Path, ModelFacts] = {}

    def __getitem__(self, name: str) -> ModelFacts:
        if self._deployment is None or name not in self._names():
            raise KeyError(name)
        path = self._paths()[name]
        if path not in self._known:
            self._known[path] = _facts(path, load_publishers(self._deployment.publishers))
        return self._known[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def sound(self) -> Iterator[ModelFacts]:
        """All but those that are refused: nobody is answered by them."""
        for name in self:
            with contextlib.suppress(CertificateError):
                yield self[name]

    def require(self, name: str) -> ModelFacts:
        """The model with that name; raises ConfigurationError that names those there are."""
        if name not in self._names():
            where = self._deployment.models if self._deployment is not None else "a directory without models"
            raise ConfigurationError(f"{where} has no model {name!r}; it has: {', '.join(self._names()) or 'none'}")
        return self[name]

    def _names(self) -> list[str]:
        return sorted(self._paths())

    def _paths(self) -> dict[str, Path]:
        """Bundles by name, and versions both as NAME/VERSION and, the newest of them, as NAME."""
        if self._deployment is None or not self._deployment.models.is_dir():
            return {}
        places = [place for place in places_of(self._deployment.models) if place.path.is_dir()]
        return {place.model: place.path for place in places} | {place.called: place.path for place in places}


def _facts(path: Path, publishers: Publishers) -> ModelFacts:
    from sealgate.certificate.bundle import signed_facts
    from sealgate.certificate.pipeline import verify_pipeline

    return verify_pipeline(path, publishers).facts if is_pipeline(path) else signed_facts(path, publishers)
