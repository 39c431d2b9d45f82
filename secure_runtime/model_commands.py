"""`sealgate models load`, `unload`, `reload` and `route`: what is served changes, without a dropped request.

Light at import. Trusts: the state directory. Never: changes a bundle; says that something was done before it is on
record.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sealgate.command import Command

if TYPE_CHECKING:
    from sealgate.protocol.administration import ChangeModels

_LAYOUT = (
    "A bundle lies in STATE/models/NAME/. Versions of one model lie side by side in STATE/models/NAME/VERSION/, each "
    "folder named by the version that its manifest states; then the folder NAME itself holds no bundle."
)
_BESIDE = (
    "The runtime host starts new workers beside those that serve, puts them on record and lets them take over; if one "
    "fails, nothing changes, and one line says why. Exit code 1 then."
)


def _configure(parser: argparse.ArgumentParser, *, places: bool) -> None:
    parser.add_argument("state", metavar="STATE", type=Path, help="the deployment's folder")
    if places:
        parser.add_argument(
            "bundles", metavar="BUNDLE", nargs="+", help="NAME, or NAME/VERSION, as it lies below STATE/models"
        )
    parser.add_argument("--note", default="", help="one line for the record: why")


def _change(what: str, arguments: argparse.Namespace) -> ChangeModels:
    from sealgate.protocol.administration import ChangeModels

    places = tuple(name.rstrip("/") for name in getattr(arguments, "bundles", ()))
    return ChangeModels(what=what, places=places, note=arguments.note)  # type: ignore[arg-type]


def _run(what: str, arguments: argparse.Namespace) -> int:
    from sealgate.administration import ask_host
    from sealgate.deployment import open_deployment
    from sealgate.errors import HostRefused
    from sealgate.limits import SWITCH_ANSWER_S
    from sealgate.protocol.administration import ModelsTold
    from sealgate.served_models import told_text

    told = ask_host(open_deployment(arguments.state), _change(what, arguments), ModelsTold, timeout_s=SWITCH_ANSWER_S)
    if told.code:
        raise HostRefused(f"not done: {told.why} (record {told.record})", code=told.code)
    print(told_text(told))
    print(f"Done, as record {told.record} says.")
    return 0


def _load(arguments: argparse.Namespace) -> int:
    return _run("load", arguments)


def _unload(arguments: argparse.Namespace) -> int:
    return _run("unload", arguments)


def _reload(arguments: argparse.Namespace) -> int:
    return _run("reload", arguments)


def _route(arguments: argparse.Namespace) -> int:
    return _run("route", arguments)


def _with_places(parser: argparse.ArgumentParser) -> None:
    _configure(parser, places=True)


def _without_places(parser: argparse.ArgumentParser) -> None:
    _configure(parser, places=False)


LOAD = Command(
    summary="serve bundles too, or anew, while the runtime runs",
    description=f"{_LAYOUT} Also takes back an earlier `unload`. {_BESIDE}",
    configure=_with_places,
    run=_load,
    extra="server",
)
UNLOAD = Command(
    summary="serve bundles no longer, while the runtime runs and from the next start on",
    description=f"The bundle stays where it lies, and stays unloaded until it is loaded again. {_BESIDE}",
    configure=_with_places,
    run=_unload,
    extra="server",
)
RELOAD = Command(
    summary="serve what lies in STATE/models now, by the settings of now for single models",
    description=f"All but what was unloaded; [models.NAME] of deployment.toml is read anew. {_BESIDE}",
    configure=_without_places,
    run=_reload,
    extra="server",
)
ROUTE = Command(
    summary="read anew which version answers (default, canary), and how many requests may be in flight",
    description="From [models.NAME] of deployment.toml. Needs no new worker and takes effect at once.",
    configure=_without_places,
    run=_route,
    extra="server",
)
