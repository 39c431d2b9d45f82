"""What the workers are to serve: which of the bundles that lie in `models/`, and which version of each answers.

A host serves at its start what lies there, but for what is unloaded (`withheld`). From then on a bundle is served only
after somebody asked for it, also if a worker is replaced meanwhile.

Which version answers a request that names none follows from the grant's id: the first 8 bytes of its SHA-256, as a
number, modulo 100, below the canary's percent or not. So the log shows later which one was due.

Trusts: the folder's names for nothing but where to look. Never: opens a bundle; reads or writes anything but names.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sealgate.certificate.repository import places_of, version_order
from sealgate.deployment import Deployment, ModelSection
from sealgate.terminal import printable
from secure_runtime.errors import SwitchRefused
from secure_runtime.host.room import Owner, Room
from secure_runtime.limits import MAX_BUNDLES

_NO_SECTION = ModelSection()
_NO_LIMIT = 1 << 62


@dataclass(frozen=True)
class Choice:
    """`places` are loaded by the next workers; `withheld` were unloaded; `named` are the settings of single models."""

    places: tuple[str, ...] = ()
    withheld: frozenset[str] = frozenset()
    named: Mapping[str, ModelSection] = field(default_factory=dict)

    def with_loaded(self, wanted: Sequence[str], there: Sequence[str]) -> Choice:
        """This choice and these bundles too; raises SwitchRefused for what is not there. A bundle that was moved into
        a folder of versions, which has its name now, is one of those from here on."""
        added = matching(wanted, there)
        moved = {place.partition("/")[0] for place in added} - {*there}
        return replace(self, places=_sorted({*self.places, *added} - moved), withheld=self.withheld - added)

    def without(self, unwanted: Sequence[str], there: Sequence[str]) -> Choice:
        """This choice without these bundles, which need not be there any more."""
        gone = matching(unwanted, {*there, *self.places})
        places = tuple(place for place in self.places if place not in gone)
        return replace(self, places=places, withheld=self.withheld | gone)

    def renewed(self, there: Sequence[str]) -> Choice:
        """Everything that lies there now, but for what was unloaded."""
        return replace(self, places=_sorted(set(there) - self.withheld))

    def section(self, model: str) -> ModelSection:
        """The settings of one model."""
        return self.named.get(model, _NO_SECTION)


def _sorted(places: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(places, key=lambda one: (one.partition("/")[0], version_order(one.partition("/")[2]))))


def matching(wanted: Sequence[str], there: Collection[str]) -> frozenset[str]:
    """The places that "NAME" (all of its versions) or "NAME/VERSION" mean; raises SwitchRefused for one that is
    none."""
    found: set[str] = set()
    for one in wanted:
        meant = {place for place in there if place == one or place.startswith(f"{one}/")}
        if not meant:
            names = ", ".join(sorted(there)) or "none"
            raise SwitchRefused(
                f"there is no bundle {one!r}; there are: {printable(names)} (a bundle lies in models/NAME/, its "
                "versions side by side in models/NAME/VERSION/)",
                code="bundle-unknown",
            )
        found |= meant
    return frozenset(found)


def places_there(deployment: Deployment, *, tell: Callable[[str], None] = lambda _text: None) -> tuple[str, ...]:
    """Every bundle's place whose name is text; people hear of others."""
    try:
        found = [place.called for place in places_of(deployment.models)]
    except OSError as error:
        raise SwitchRefused(f"models/ cannot be listed: {error.strerror}", code="bundle-unknown") from error
    named = [called for called in found if os.fsencode(called).decode("utf-8", "replace") == called]
    if len(named) < len(found):
        tell(f"{len(found) - len(named)} folders in models/ have names that are no text: they are passed over")
    return tuple(named)


def first_choice(deployment: Deployment, withheld: frozenset[str], *, tell: Callable[[str], None]) -> Choice:
    """What is served from the host's start on, but for what is unloaded."""
    try:
        there = places_there(deployment, tell=tell)
    except SwitchRefused as error:
        tell(str(error))
        there = ()
    choice = Choice(withheld=withheld, named=deployment.settings.named_models).renewed(there)
    alone = deployment.settings.runtime.placement == "per-model"  # then each model's worker loads as many
    for model, count in Counter(place.partition("/")[0] if alone else "" for place in choice.places).items():
        if count > MAX_BUNDLES:
            tell(f"models/{printable(model)} holds {count} bundles to serve: a worker serves only {MAX_BUNDLES}")
    for place in sorted(withheld):
        tell(f"model {printable(place)} stays unloaded (sealgate models load STATE {printable(place)})")
    return choice


class ModelRules:
    """How requests for each model are treated now: which version is due, how many may be in flight, of one caller three
    quarters of them. Owned by the host's event loop."""

    def __init__(self, named: Mapping[str, ModelSection] | None = None) -> None:
        self._named: Mapping[str, ModelSection] = named or {}
        self._rooms: dict[str, Room] = {}  # of each model that requests are in flight for

    def put_in_force(self, named: Mapping[str, ModelSection]) -> None:
        """From here on these hold."""
        self._named = named
        for model, room in self._rooms.items():
            room.allow(self._most(model))

    def _most(self, model: str) -> int:
        return self._named.get(model, _NO_SECTION).max_concurrent or _NO_LIMIT

    def full(self, model: str, owner: Owner) -> bool:
        """Whether as many requests for it are in flight as may be, of all callers or of this one."""
        room = self._rooms.get(model)
        return room is not None and not room.fits(owner, 1)

    def enter(self, model: str, owner: Owner) -> Room | None:
        """One more is in flight, for which there was room; what came of it goes to `leave`."""
        if not self._named:
            return None
        room = self._rooms.get(model)
        if room is None:
            room = self._rooms[model] = Room(self._most(model))
        return room if room.take(owner, 1) else None

    def leave(self, model: str, owner: Owner, room: Room | None) -> None:
        """One came to its end. Without a room it began before anybody counted."""
        if room is not None:
            room.give_back(owner, 1)
            if not room.taken:
                del self._rooms[model]

    def version_for(self, model: str, versions: Collection[str], grant: str, *, retired: bool) -> str:
        """The version that answers this grant if its request names none; "" for the newest that the worker has.

        `versions` are those of the worker that will open it. A retired one that has not the default answers with its
        newest, as it did; any other then says that it is not loaded: another version is not what the operator chose.
        """
        section = self._named.get(model)
        if section is None or not section.default or (retired and section.default not in versions):
            return ""
        canary = section.canary
        if canary is not None and canary.version in versions and is_canary(grant, canary.percent):
            return canary.version
        return section.default


def is_canary(grant: str, percent: int) -> bool:
    """Whether the grant of this id is among the `percent` of a hundred that a canary answers."""
    return int.from_bytes(hashlib.sha256(grant.encode()).digest()[:8], "big") % 100 < percent
