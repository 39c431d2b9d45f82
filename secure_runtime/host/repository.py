"""What operators ask of the models that are served: load, unload, reload, route, list. Each change is a record.

A change is made by new workers (`fleet`), and `model.change` says what was done, by whom, and which workers came of it;
one that failed is on record too, with its code. The record is the commit point: before it is durable nothing of the
change is served, and from then on a crash leaves the change done (`withheld`). Each start puts on record what it is to
serve, and whether that is what the newest change said: bundles come and go beside the host, too.

Trusts: who the kernel says is asking; the fleet. Never: drops a worker that serves before another one can take its
place; opens a bundle; makes two changes at once: the later one's record would tell of routes that the earlier one's end
put out of force again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence

import msgspec

from audit.log import AuditLog
from sealgate.certificate.refusals import refused_for
from sealgate.deployment import Deployment, ModelSection, open_deployment
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_NAME
from sealgate.protocol.administration import REFUSALS, AskModels, ChangeModels, ModelsTold, ToldModel
from sealgate.protocol.canonical import canonical_json
from sealgate.protocol.frames import Layer, ModelFacts, PublishedWorker, WorkerFacts
from sealgate.terminal import printable
from sealgate.transparency.record import Record
from secure_runtime.errors import SwitchRefused
from secure_runtime.host.choice import Choice, ModelRules, matching, places_there
from secure_runtime.host.fleet import Fleet
from secure_runtime.host.withheld import DIGEST, NAMES, keep_withheld, list_digest
from secure_runtime.host.worker_life import Published
from secure_runtime.limits import MAX_TOLD_LAYERS_BYTES, MAX_WORKER_WORDS

SERVED = "served_digest"
"""In the detail of a `model.change` that was done: SHA-256 over the bundles that are to be served and the versions that
answer, which in words may be too long for a record."""


class ModelKeeper:
    """Owned by the host's event loop."""

    def __init__(
        self,
        deployment: Deployment,
        log: AuditLog,
        fleet: Fleet,
        rules: ModelRules,
        *,
        tell: Callable[[str], None],
    ) -> None:
        self._deployment = deployment
        self._log = log
        self._fleet = fleet
        self._rules = rules
        self._tell = tell
        self._changing = False

    async def record_start(self, newest: Record | None, *, by: str) -> None:
        """Put on record what this start serves. `newest` is the last change before it; `by` is whoever named what is
        unloaded beside the log, "" if the log states it."""
        draft = _done("start", self._fleet.choice, by=by)
        stated = {} if newest is None else newest.detail
        if by or (newest is not None and any(stated.get(key) != draft.detail[key] for key in (DIGEST, SERVED))):
            draft = msgspec.structs.replace(draft, reason="found-at-start")
            self._tell("what is served now is not what the newest change of models said; it is on record")
        await asyncio.wrap_future(self._log.append(draft))

    async def answer(self, frame: ChangeModels | AskModels, *, by: str) -> ModelsTold:
        """Do it and put it on record; raises LogUnavailable. What is refused is told, with a code, and on record
        too."""
        if isinstance(frame, AskModels):
            return self._told(frame.id)
        before = [one.facts.instance for one in self._fleet.published]
        try:
            record = await self._changed(frame, by)
        except SwitchRefused as error:
            code = error.code if error.code in REFUSALS else "switch-failed"
            why = printable(str(error), limit=MAX_WORKER_WORDS)
            self._tell(f"models {frame.what}: not done: {why}")
            draft = _failed(frame, code, by=by, serving=before)
            index = (await asyncio.wrap_future(self._log.append(draft))).index
            return self._told(frame.id, code=code, why=why, record=index)
        self._tell(f"models {frame.what}: done, as record {record} says")
        return self._told(frame.id, record=record)

    # Changes ---------------------------------------------------------------------------------------------------------

    async def _changed(self, frame: ChangeModels, by: str) -> int:
        """Make one change, if no other is being made; returns the number of its record. Raises SwitchRefused."""
        if self._changing:
            raise SwitchRefused("models are being changed this very moment; try again", code="switch-under-way")
        if not self._log.state.ok:  # perhaps the change before is on the disk, perhaps not: only a start can tell
            raise SwitchRefused("the audit log takes no records", code="unavailable")
        self._changing = True
        try:
            return await (self._route(frame, by) if frame.what == "route" else self._switch(frame, by))
        finally:
            self._changing = False

    async def _switch(self, frame: ChangeModels, by: str) -> int:
        """New workers; returns the number of the record. Raises SwitchRefused."""
        fleet, before = self._fleet, self._fleet.choice
        there = places_there(self._deployment)
        if frame.what == "load":
            wanted, asked = before.with_loaded(frame.places, there), matching(frame.places, there)
        elif frame.what == "unload":
            wanted, asked = before.without(frame.places, there), frozenset[str]()
        else:
            settings = await asyncio.to_thread(_settings_anew, self._deployment)
            wanted, asked = before.renewed(there), frozenset[str]()
            wanted = Choice(wanted.places, wanted.withheld, settings)
        served = {place for place in self._served() if place in wanted.places and place in there}
        old = [one.facts.instance for one in fleet.published]
        recorded: list[int] = []
        new: list[str] = []

        def accept(facts: Sequence[WorkerFacts]) -> None:
            _require_loaded(facts, asked | served)
            _require_versions([model for one in facts for model in one.models], wanted)
            new.extend(one.instance for one in facts)

        async def commit() -> None:
            path, in_force = self._deployment.withheld, before.withheld
            await asyncio.to_thread(keep_withheld, path, wanted.withheld, in_force=in_force)
            draft = _done(frame.what, wanted, asked=frame.places, by=by, note=frame.note, before=old, after=new)
            recorded.append((await asyncio.wrap_future(self._log.append(draft))).index)
            self._rules.put_in_force(wanted.named)

        anew = frozenset(wanted.places) if frame.what == "reload" else asked
        await fleet.switch(wanted, anew=anew, accept=accept, commit=commit)
        return recorded[0]

    async def _route(self, frame: ChangeModels, by: str) -> int:
        """Read which versions answer, and how many requests may be in flight, anew."""
        named = await asyncio.to_thread(_settings_anew, self._deployment)
        wanted = Choice(self._fleet.choice.places, self._fleet.choice.withheld, named)
        published = self._fleet.published
        _require_versions([model for one in published for model in one.facts.models], wanted)
        instances = [one.facts.instance for one in published]
        draft = _done("route", wanted, by=by, note=frame.note, before=instances, after=instances)
        ended = await asyncio.wrap_future(self._log.append(draft))
        self._fleet.choice = wanted
        self._rules.put_in_force(named)
        self._fleet.tell_change()
        return ended.index

    @property
    def missing_versions(self) -> list[str]:
        """In words, the versions that are to answer and that no live worker has: their share of requests is refused, or
        answered by another one."""
        models = [model for one in self._fleet.published for model in one.facts.models]
        return list(_missing_versions(models, self._fleet.choice))

    def _served(self) -> set[str]:
        """The places of what the live workers have loaded."""
        return {place for one in self._fleet.published for place in one.facts.memory}

    # Telling ---------------------------------------------------------------------------------------------------------

    def _told(self, number: int, *, code: str = "", why: str = "", record: int = -1) -> ModelsTold:
        published, choice = self._fleet.published, self._fleet.choice
        try:
            there = places_there(self._deployment)
        except SwitchRefused as error:
            there, why = choice.places, why or str(error)
        loaded: dict[str, ToldModel] = {}
        for one in published:
            loaded |= loaded_by(one, choice)
        refused = {refusal.name: refusal.reason for one in published for refusal in one.facts.refused}
        models = list(loaded.values())
        for place in dict.fromkeys((*there, *choice.places, *sorted(choice.withheld))):
            if place not in loaded:
                models.append(_not_loaded(place, choice, refused))
        return ModelsTold(
            id=number,
            code=code,
            why=why,
            record=record,
            models=tuple(sorted(models, key=lambda one: (one.name or one.place, one.place))),
            workers=workers_of(published),
            draining=len(self._fleet.draining),
        )


def _settings_anew(deployment: Deployment) -> dict[str, ModelSection]:
    try:
        return dict(open_deployment(deployment.root).settings.named_models)
    except ConfigurationError as error:
        raise SwitchRefused(str(error), code="settings-unsound") from error


_LAYOUT = {  # what a refusal means for whoever put the bundle there
    "folder-mismatch": "in models/NAME/VERSION/ the folders are named as the manifest says",
    "name-taken": "another bundle states the same name; versions of one model lie in models/NAME/VERSION/",
}


def _require_loaded(facts: Sequence[WorkerFacts], wanted: frozenset[str] | set[str]) -> None:
    """Raise SwitchRefused, naming the first, if a bundle that must be served was refused by a new worker."""
    refused = {refusal.name: refusal.reason for one in facts for refusal in one.refused}
    for place in sorted(wanted & refused.keys()):
        why = refused[place]
        means = _LAYOUT.get(why) or refused_for(why)
        more = f" ({means})" if means else ""
        raise SwitchRefused(f"bundle {printable(place)} is refused: {why}{more}", code="bundle-refused")


def _require_versions(models: Sequence[ModelFacts], choice: Choice) -> None:
    """Raise SwitchRefused if a version that is to answer is not loaded."""
    for words in _missing_versions(models, choice):
        raise SwitchRefused(words, code="version-not-loaded")


def _missing_versions(models: Sequence[ModelFacts], choice: Choice) -> Iterator[str]:
    """In words, each version that is to answer and is not loaded. A model of which nothing is loaded has none."""
    versions: dict[str, set[str]] = {}
    for model in models:
        versions.setdefault(model.name, set()).add(model.version)
    for name, section in choice.named.items():
        canary = [section.canary.version] if section.canary is not None and section.canary.percent else []
        for version in [section.default, *canary] if section.default else []:
            if name in versions and version not in versions[name]:
                yield f"deployment.toml lets version {version} of {name} answer, which is not loaded"


def _done(
    what: str,
    choice: Choice,
    *,
    by: str,
    asked: Sequence[str] = (),
    note: str = "",
    before: Sequence[str] = (),
    after: Sequence[str] = (),
) -> Record:
    """`model.change`: what was asked, what is to be served from it on, and the instances that served before and serve
    after."""
    places, routes = sorted(choice.places), _routes(choice)
    detail = {
        "what": what,
        "asked": _short(asked),
        "by": by,
        "note": note,
        "before": _short(before),
        "after": _short(after),
        "places": _short(choice.places),
        "routes": _short(routes),
        NAMES: _short(sorted(choice.withheld)),
        DIGEST: list_digest(choice.withheld),
        SERVED: hashlib.sha256(canonical_json({"places": places, "routes": routes})).hexdigest(),
    }
    return Record(kind="model.change", outcome="done", reason=what, detail=_said(detail))


def _failed(frame: ChangeModels, code: str, *, by: str, serving: Sequence[str]) -> Record:
    """`model.change` that did not come about; `serving` are the instances that go on."""
    names = _short(serving)
    detail = {"what": frame.what, "asked": _short(frame.places), "by": by, "note": frame.note}
    detail |= {"before": names, "after": names}
    return Record(kind="model.change", outcome="failed", reason=code, detail=_said(detail))


def _said(detail: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in detail.items() if value}


def _short(names: Sequence[str]) -> str:
    """Names in a record: all of them, or how many there are. Room is what they take as JSON: names of folders may be
    anything."""
    text = " ".join(names)
    return text if len(canonical_json(text)) <= 8 * MAX_NAME else str(len(names))


def _routes(choice: Choice) -> list[str]:
    return [f"{name}={words}" for name in sorted(choice.named) if (words := route_words(choice, name))]


def route_words(choice: Choice, model: str) -> str:
    """Which version answers if none is named, as "2" or "2, 10 % 3"; "" if it is the newest."""
    section = choice.section(model)
    if section.canary is None or not section.canary.percent:
        return section.default
    return f"{section.default}, {section.canary.percent} % {section.canary.version}"


def loaded_by(published: Published, choice: Choice) -> dict[str, ToldModel]:
    """What one worker has loaded, by place. A worker tells places and models in one order."""
    facts, newest = published.facts, {model.name: model.version for model in published.facts.models}
    return {
        place: ToldModel(
            place=place,
            state="loaded",
            name=model.name,
            version=model.version,
            answers=_answers(model, choice, newest=newest[model.name]),
            model_digest=model.model_digest,
            certificate_digest=model.certificate_digest,
            epsilon_micro=model.epsilon_micro,
            memory_bytes=size,
        )
        for model, (place, size) in zip(facts.models, facts.memory.items(), strict=False)
    }


def _answers(model: ModelFacts, choice: Choice, *, newest: str) -> str:
    section = choice.section(model.name)
    if section.canary is not None and section.canary.percent and section.canary.version == model.version:
        return f"canary, {section.canary.percent} %"
    return "default" if model.version == (section.default or newest) else ""


def _not_loaded(place: str, choice: Choice, refused: dict[str, str]) -> ToldModel:
    if place in choice.withheld:
        return ToldModel(place=place, state="unloaded")
    if place in refused:
        return ToldModel(place=place, state="refused", reason=refused[place])
    return ToldModel(place=place, state="new")


def workers_of(published: Sequence[Published]) -> tuple[PublishedWorker, ...]:
    """The workers, as gateways and operators are told of them."""
    return tuple(
        PublishedWorker(
            instance=one.facts.instance,
            key_configs=one.key_configs,
            models=tuple(dict.fromkeys(model.name for model in one.facts.models)),
            device=one.facts.device,
            memory=one.facts.memory,
            graphs=one.facts.graphs,
            layers=_bounded(one.facts.layers),
            host_layers=_bounded(one.host_layers),
            got_through=tuple(_bounded({name: it for name, it in one.facts.probes.items() if it.state == "failed"})),
        )
        for one in published
    )


def _bounded(layers: dict[str, Layer]) -> dict[str, Layer]:
    """As many of them as every gateway can be told at every change, whatever a worker says of itself."""
    told: dict[str, Layer] = {}
    room = MAX_TOLD_LAYERS_BYTES
    for name, layer in layers.items():
        room -= len(msgspec.msgpack.encode((name, layer)))
        if room < 0:
            break
        told[name] = layer
    return told
