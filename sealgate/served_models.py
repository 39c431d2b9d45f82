"""What a runtime host says of the models that it serves, in words: for `sealgate models` and `sealgate doctor`.

Trusts: the host's word. Never: prints what it was told unescaped, or asks for a change.
"""

from __future__ import annotations

from sealgate.administration import ask_host
from sealgate.deployment import Deployment
from sealgate.protocol.administration import AskModels, ModelsTold, ToldModel
from sealgate.terminal import printable, render_table

_MIB = 1 << 20


def served_models(deployment: Deployment) -> ModelsTold:
    """What the host that runs serves; raises HostAway or HostRefused."""
    return ask_host(deployment, AskModels(), ModelsTold)


def state_words(model: ToldModel) -> str:
    """How it stands, as "loaded, default" or "refused: weights-digest"."""
    more = model.answers or model.reason
    return printable(f"{model.state}{': ' if model.reason else ', ' if more else ''}{more}")


def told_text(told: ModelsTold) -> str:
    """A table of bundles and a line for each worker."""
    headings = ("bundle", "model", "version", "state", "MiB to load", "weights", "certificate")
    rows = [
        (
            printable(one.place),
            printable(one.name),
            printable(one.version),
            state_words(one),
            str(-(-one.memory_bytes // _MIB)) if one.memory_bytes else "",
            one.model_digest[:16],
            one.certificate_digest[:16],
        )
        for one in told.models
    ]
    lines = [render_table(headings, rows)] if rows else ["no bundles"]
    for worker in told.workers:
        names = ", ".join(worker.models) or "no model"
        lines.append(printable(f"worker {worker.instance} on {worker.device}: {names}"))
    if told.draining:
        one = told.draining == 1
        who = "1 replaced worker still takes" if one else f"{told.draining} replaced workers still take"
        lines.append(f"{who} what was sealed to {'its' if one else 'their'} keys")
    return "\n".join(lines)
