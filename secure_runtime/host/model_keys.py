"""The data keys of encrypted bundles, for the worker's boot plan.

The host holds the wrapping keys, because only it may read files and the environment or ask a key service; it opens
`model.key`, a few hundred bytes, and hands each bundle's data key to the worker over the inherited socketpair. The
worker, which no request has reached at that time, decrypts and verifies the weights in its own memory. So whoever takes
over a worker learns the weights that it serves, and not the key of any other model; and the host has no code that
decrypts weights, though with these keys it could: it is trusted not to.

Trusts: `model.key` for nothing but where to look; the worker finds out whether a key fits. Never: opens weights; keeps
a data key; lets one bundle's trouble keep the others from being served.
"""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from pathlib import Path

from sealgate.certificate.files import KEY, open_folder
from sealgate.certificate.key_envelope import called_by_content, parse_envelope
from sealgate.certificate.repository import MEMBERS, Place, is_pipeline, places_of
from sealgate.certificate.wrapping_keys import LOCAL, KeyRing, open_key_ring
from sealgate.deployment import Deployment
from sealgate.errors import CertificateError, ConfigurationError
from sealgate.limits import MAX_MEMBERS
from sealgate.terminal import printable
from secure_runtime.limits import MAX_BUNDLES, MAX_WORKER_WORDS


def wrapping_keys(deployment: Deployment) -> KeyRing:
    """The keys that `[models] keys` names; raises ConfigurationError."""
    return open_key_ring(deployment.settings.models.keys, folder=deployment.root)


def data_keys(
    deployment: Deployment, *, tell: Callable[[str], None], places: Collection[str] | None = None
) -> dict[str, str]:
    """Base64 of the data key by the bundle's place, of those that can be opened; people hear of the others. With
    `places`, of those alone: a worker is given the keys of what it is to load. A pipeline has a key for each encrypted
    member, by `called_by_content` of that member's `model.key`.

    Keys are read anew for each worker, so that a change of keys needs no restart of the host.
    """
    if not deployment.settings.models.keys:
        return {}
    try:
        ring = wrapping_keys(deployment)
    except ConfigurationError as error:
        tell(f"encrypted models are not served: {error}")
        return {}
    found: dict[str, str] = {}
    used: Counter[str] = Counter()
    for place, bundle in _encrypted(deployment.models):
        if places is not None and place.called not in places:
            continue
        try:
            with open_folder(bundle) as folder:
                envelope = parse_envelope(folder.read(KEY))
            key = ring.unwrap(envelope)
        except CertificateError as error:
            # The worker refuses the bundle, and that is on record; here is why, for whoever can mend it.
            tell(f"model {printable(place.called, limit=MAX_WORKER_WORDS)}: {printable(str(error))}")
            continue
        name = place.called if bundle == place.path else called_by_content(envelope)
        found[name] = base64.b64encode(key.reveal()).decode()
        key.wipe()
        used[envelope.key] += 1
    for name, count in sorted(used.items()):
        if not name.startswith(LOCAL):  # a key in a service: its own audit log should show the same
            tell(f"key {name} opened {count} {'model' if count == 1 else 'models'}")
    return found


def _encrypted(models: Path) -> Iterator[tuple[Place, Path]]:
    """Encrypted bundles whose names are text, as many as a worker takes: each with its place, that of a pipeline's
    member with the pipeline's."""
    try:
        found = places_of(models)
    except OSError:
        return  # the worker says what is wrong with it
    named = [place for place in found if os.fsencode(place.called).decode("utf-8", "replace") == place.called]
    for place in named[:MAX_BUNDLES]:
        bundles = _members(place.path) if is_pipeline(place.path) else [place.path]
        yield from ((place, bundle) for bundle in bundles if os.path.lexists(bundle / KEY))


def _members(pipeline: Path) -> list[Path]:
    try:
        with os.scandir(pipeline / MEMBERS) as entries:
            return sorted(Path(entry.path) for entry in islice(entries, MAX_MEMBERS))
    except OSError:
        return []  # as above
