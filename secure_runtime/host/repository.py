"""What operators ask of the models that are served: load, unload, reload, route, list. Each change is a record.

A change is made by new workers (`fleet`), after which `model.change` says what was done, by whom, and which workers
came of it; one that failed is on record too, with its code. What is to be served is kept on the disk before the new
workers' keys are published, so that a crash in between leaves either the old choice or the new one.

Trusts: who the kernel says is asking; the fleet. Never: drops a worker that serves before another one can take its
place; opens a bundle; makes two changes at once: the later one's record would tell of routes that the earlier one's end
put out of force again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from audit.log import AuditLog
from sealgate.certificate.refusals import refused_for
from sealgate.deployment import Deployment, ModelSection, open_deployment
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_NAME
from sealgate.protocol.administration import REFUSALS, AskModels, ChangeModels, ModelsTold, ToldModel
from sealgate.protocol.frames import ModelFacts, PublishedWorker, WorkerFacts
from sealgate.terminal import printable
from sealgate.transparency.record import Record
from secure_runtime.errors import SwitchRefused
from secure_runtime.host.choice import Choice, ModelRules, matching, places_there, write_withheld
from secure_runtime.host.fleet import Fleet
from secure_runtime.host.worker_life import Published
from secure_runtime.limits import MAX_WORKER_WORDS


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
            draft = _change(frame, by=by, before=before, after=before, reason=code)
            index = (await asyncio.wrap_future(self._log.append(draft))).index
            return self._told(frame.id, code=code, why=why, record=index)
        self._tell(f"models {frame.what}: done, as record {record} says")
        return self._told(frame.id, record=record)

    # Changes ---------------------------------------------------------------------------------------------------------

    async def _changed(self, frame: ChangeModels, by: str) -> int:
        """Make one change, if no other is being made; returns the number of its record. Raises SwitchRefused."""
        if self._changing:
            raise SwitchRefused("models are being changed this very moment; try again", code="switch-under-way")
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
            await asyncio.to_thread(write_withheld, self._deployment.withheld, wanted.withheld)
            draft = _change(frame, by=by, before=old, after=new, places=wanted.places)
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
        draft = _change(frame, by=by, before=instances, after=instances, routes=_routes(wanted))
        ended = await asyncio.wrap_future(self._log.append(draft))
        self._fleet.choice = Choice(self._fleet.choice.places, self._fleet.choice.withheld, named)
        self._rules.put_in_force(named)
        self._fleet.tell_change()
        return ended.index

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
    """Raise SwitchRefused if a version that is to answer is not loaded. A model of which nothing is loaded has none."""
    versions: dict[str, set[str]] = {}
    for model in models:
        versions.setdefault(model.name, set()).add(model.version)
    for name, section in choice.named.items():
        canary = [section.canary.version] if section.canary is not None and section.canary.percent else []
        for version in [section.default, *canary] if section.default else []:
            if name in versions and version not in versions[name]:
                raise SwitchRefused(
                    f"deployment.toml lets version {version} of {name} answer, which is not loaded",
                    code="version-not-loaded",
                )


def _change(
    frame: ChangeModels,
    *,
    by: str,
    before: Sequence[str],
    after: Sequence[str],
    places: Sequence[str] = (),
    routes: str = "",
    reason: str = "",
) -> Record:
    """`model.change`: what was asked, what came of it, and the instances that served before and serve after."""
    detail = {
        "what": frame.what,
        "asked": _short(frame.places),
        "by": by,
        "note": frame.note,
        "before": _short(before),
        "after": _short(after),
        "places": _short(places),
        "routes": routes,
    }
    return Record(
        kind="model.change",
        outcome="failed" if reason else "done",
        reason=reason or frame.what,
        detail={key: value for key, value in detail.items() if value},
    )


def _short(names: Sequence[str]) -> str:
    """Names in a record: all of them, or how many there are."""
    text = " ".join(names)
    return text if len(text) <= 8 * MAX_NAME else str(len(names))


def _routes(choice: Choice) -> str:
    return _short([f"{name}={words}" for name in sorted(choice.named) if (words := route_words(choice, name))])


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
        )
        for one in published
    )
