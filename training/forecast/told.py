"""A forecast in words and tables.

Trusts: the figures. Never: calls an epsilon good or bad; says what it allows instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sealgate.certificate.attack_words import rate_text, unit_word
from sealgate.certificate.decimals import MICRO, micro_text
from sealgate.terminal import render_table
from training.configuration import load_configuration
from training.forecast.figures import Figure, Refused, figure_of, neighbours, targets
from training.forecast.timing import Timing, timing_of
from training.manifests import manifest_of

Say = Callable[[str], None]
_GIGABYTE = 1024**3


def forecast(path: Path, *, say: Say) -> None:
    """Say what the run would cost; raises ConfigurationError or TrainingError for one that could not begin."""
    configuration = load_configuration(path)
    manifest = manifest_of(configuration)
    figure = figure_of(configuration, manifest, label="this")
    unit = unit_word(figure.plan.unit)
    say(f"planning {manifest.name} {manifest.version} ({manifest.family}); the data is not opened")
    for line in _meaning(figure, unit=unit, delta=configuration.delta):
        say(f"  {line}")
    for line in _time(timing_of(configuration, manifest, figure.plan), figure):
        say(f"  {line}")
    say("")
    say(f"the same run at other epsilons. 'found': of the {unit}s in the data, by an attacker who wrongly accuses")
    say("one in a hundred of the others; guessing finds 1 %")
    say(_table(list(targets(configuration, manifest)), first="epsilon"))
    near = list(neighbours(configuration, manifest))
    if near:
        say("")
        say("other constants at the same epsilon ('time' beside this plan; less noise is better, so are more steps)")
        say(_table(near, first="constants"))
    say("")
    if figure.noise is not None:
        say("")
        say("noise: on each coordinate of a step's mean gradient, in clip norms, with the public number of rows.")
        say("Twice as many rows halve it; what more steps learn has to outweigh what they add.")


def _meaning(figure: Figure, *, unit: str, delta: str) -> Iterator[str]:
    cost, plan = figure.cost, figure.plan
    yield f"mechanism   {plan.account.words()}"
    if figure.sigma is not None and figure.noise is not None:
        yield f"sigma       {figure.sigma:g}: noise on each coordinate of a step's gradient sum, in clip norms"
        yield f"noise       {figure.noise:.2g} clip norms on each coordinate of a step's mean gradient"
    yield f"epsilon     {micro_text(cost.epsilon_micro)} at delta {delta} by {plan.account.accountant}: one {unit} more"
    yield "            or less makes no outcome more likely by a factor above exp(epsilon), but for delta"
    yield f"            {micro_text(cost.second_epsilon_micro)} by {cost.second_accountant}, the second accountant"
    yield f"            {micro_text(cost.epsilon_replace_one_micro)} if one {unit} is replaced by another"
    yield (
        f"attack      who wrongly accuses 1 % of the {unit}s that are not in the data finds at most "
        f"{rate_text(figure.found_at_hundredth)} of"
    )
    yield "            those that are"


def _time(timing: Timing | None, figure: Figure) -> Iterator[str]:
    if timing is None:
        yield "time        not measured: it depends on how many ties the network has"
        return
    what = f"{figure.plan.steps} steps of {_seconds(timing.step_s)}" if timing.step_s else "one release"
    if timing.runs > 1:
        what += f", {timing.runs:g} runs on average"
    if timing.fixed_s:
        what += f", and {_seconds(timing.fixed_s)} for what is fixed"
    yield f"time        about {_seconds(timing.training_s)} on this machine: {what}; the audit comes before that"
    if timing.gradients:
        yield f"            gradients by {timing.gradients}; --threads N uses more of the machine"
    yield f"memory      about {timing.memory / _GIGABYTE:.1f} GiB with the public number of rows"


def _table(figures: list[Figure | Refused], *, first: str) -> str:
    rows: list[list[str]] = []
    for one in figures:
        if isinstance(one, Refused):
            rows.append([one.label, "-", "-", "-", "-", "-", "cannot be reached"])
            continue
        rows.append(
            [
                one.label,
                "-" if one.sigma is None else f"{one.sigma:.3f}",
                "-" if one.noise is None else f"{one.noise:.2g}",
                f"{one.cost.epsilon_micro / MICRO:.3f}",
                f"{one.cost.second_epsilon_micro / MICRO:.3f}",
                rate_text(one.found_at_hundredth),
                f"{one.relative_work:g}x",
            ]
        )
    return render_table((first, "sigma", "noise", "accountant", "second", "found", "time"), rows)


def _seconds(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 1:
        return f"{max(seconds * 1000, 0.1):.2g} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
