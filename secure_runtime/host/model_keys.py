"""The data keys of encrypted bundles, for the worker's boot plan.

The host holds the wrapping keys, because only it may read files, the environment or, one day, a key service; it opens
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
from collections.abc import Callable
from pathlib import Path

from sealgate.certificate.files import KEY, open_folder
from sealgate.certificate.key_envelope import parse_envelope
from sealgate.certificate.wrapping_keys import KeyRing, open_key_ring
from sealgate.deployment import Deployment
from sealgate.errors import CertificateError, ConfigurationError
from sealgate.terminal import printable
from secure_runtime.limits import MAX_BUNDLES, MAX_WORKER_WORDS


def wrapping_keys(deployment: Deployment) -> KeyRing:
    """The keys that `[models] keys` names; raises ConfigurationError."""
    return open_key_ring(deployment.settings.models.keys, folder=deployment.root)


def data_keys(deployment: Deployment, *, tell: Callable[[str], None]) -> dict[str, str]:
    """Base64 of the data key by the bundle's directory name, of those that can be opened; people hear of the others.

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
    for directory in _directories(deployment.models):
        try:
            with open_folder(directory) as folder:
                key = ring.unwrap(parse_envelope(folder.read(KEY)))
        except CertificateError as error:
            # The worker refuses the bundle, and that is on record; here is why, for whoever can mend it.
            tell(f"model {printable(directory.name, limit=MAX_WORKER_WORDS)}: {printable(str(error))}")
            continue
        found[directory.name] = base64.b64encode(key.reveal()).decode()
        key.wipe()
    return found


def _directories(models: Path) -> list[Path]:
    """Encrypted bundles whose names are text, as many as a worker takes."""
    try:
        found = sorted(path for path in models.iterdir() if not path.name.startswith("."))
    except OSError:
        return []  # the worker says what is wrong with it
    named = [path for path in found if os.fsencode(path.name).decode("utf-8", "replace") == path.name]
    return [path for path in named[:MAX_BUNDLES] if os.path.lexists(path / KEY)]
