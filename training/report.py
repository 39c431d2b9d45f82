"""What a person sees of a training run. Nothing shown here depends on private rows, except the measured quality and the
number of rows, which are named as such.

Steps, epsilon so far and the time left follow from public constants. The loss of the private rows is not shown, because
it would be another release; that of public rows is (`training.watching`). Trusts: nothing. Never: prints a gradient, a
private loss or a row.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sealgate.certificate.bundle import VerifiedBundle
from sealgate.certificate.decimals import micro_text
from sealgate.certificate.measured import interval_text
from sealgate.certificate.schema import Measured
from training.accountant import Cost, RunningEpsilon
from training.auditing.gate import Findings
from training.configuration import Configuration
from training.dp_sgd.choice import Choice
from training.fingerprint.evidence import Evidence
from training.measure import Quality
from training.mechanisms.plan import Plan
from training.preprocessing.statistics import spending_of

OnStep = Callable[[int], None]
_UNITS = {"example": "row", "user": "person", "graph": "graph", "edge": "edge", "node": "node"}


class Narrator(Protocol):
    """Is told what happens, in this order; `busy` around what takes seconds and shows nothing."""

    def busy(self, what: str) -> contextlib.AbstractContextManager[object]: ...

    def announce(self, configuration: Configuration, plan: Plan, cost: Cost) -> None: ...

    def audited(self, findings: Findings | None) -> None: ...

    def remarks(self, lines: tuple[str, ...]) -> None: ...

    def marked(self, evidence: Evidence) -> None: ...

    def rows(self, *, trained: int, held_out: int) -> None: ...

    def swept(self, measured: Measured) -> None: ...

    def progress(self, plan: Plan) -> contextlib.AbstractContextManager[OnStep]: ...

    def public_loss(self, loss: float) -> None: ...

    def gradients(self, choice: Choice) -> None: ...

    def compare(self, private: Quality, plain: Quality) -> None: ...

    def published(self, bundle: VerifiedBundle, heldout_csv: Path | None) -> None: ...


class Quiet:
    """Says nothing."""

    def busy(self, what: str) -> contextlib.AbstractContextManager[object]:
        """Nothing."""
        return contextlib.nullcontext()

    def announce(self, configuration: Configuration, plan: Plan, cost: Cost) -> None:
        """Nothing."""

    def audited(self, findings: Findings | None) -> None:
        """Nothing."""

    def remarks(self, lines: tuple[str, ...]) -> None:
        """Nothing."""

    def marked(self, evidence: Evidence) -> None:
        """Nothing."""

    def rows(self, *, trained: int, held_out: int) -> None:
        """Nothing."""

    @contextlib.contextmanager
    def progress(self, plan: Plan) -> Iterator[OnStep]:
        """No bar."""
        yield lambda _step: None

    def swept(self, measured: Measured) -> None:
        """Nothing."""

    def public_loss(self, loss: float) -> None:
        """Nothing."""

    def gradients(self, choice: Choice) -> None:
        """Nothing."""

    def compare(self, private: Quality, plain: Quality) -> None:
        """Nothing."""

    def published(self, bundle: VerifiedBundle, heldout_csv: Path | None) -> None:
        """Nothing."""


class UnreadConsole(Console):
    """A console whose reader may go away (as `| head` does): training goes on to its end, unwatched."""

    def on_broken_pipe(self) -> None:
        """Say nothing more, and let nothing that is still buffered fail at exit."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Terminal:
    """Tells a person, in plain words, with a progress bar where there is a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._loss = ""
        self._before_micro = 0  # epsilon of what was computed of the rows before the first step

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def busy(self, what: str) -> contextlib.AbstractContextManager[object]:
        """One line while it lasts, where there is a terminal; nothing of it stays, and a file holds none of it."""
        return self._console.status(f"  {what} ...") if self._console.is_terminal else contextlib.nullcontext()

    def announce(self, configuration: Configuration, plan: Plan, cost: Cost) -> None:
        """Before the data is read: what will be done and what it costs."""
        self._say(f"training {configuration.model.name} {configuration.model.version} ({configuration.model.family})")
        self._say(f"  data        {configuration.data.source}, target '{configuration.data.target}'")
        self._say(
            f"  privacy     epsilon {micro_text(cost.epsilon_micro)} at delta {configuration.delta} for one "
            f"{_UNITS[plan.unit]} (second accountant: {micro_text(cost.second_epsilon_micro)})"
        )
        if statistics := spending_of(configuration).parts:
            self._before_micro = sum(part.epsilon_micro for part in statistics)
            self._say(
                f"              of that, epsilon {micro_text(self._before_micro)} for {len(statistics)} private "
                f"statistic{'s' * (len(statistics) > 1)}, at their part of delta; the mechanism has the rest of both"
            )
        self._say(
            f"  mechanism   {configuration.privacy.mechanism}: {plan.account.words()}; noise from the operating "
            "system's generator"
        )

    def audited(self, findings: Findings | None) -> None:
        """What an attack on the trainer found, on made-up rows; None: there was none."""
        if findings is None:
            self._say("  audit       none (--no-audit): the certificate says so, and whoever loads it may refuse it")
            return
        self._say(
            f"  audit       {len(findings.probes)} probes of the trainer held; an attacker who sees every step, with "
            f"{findings.canaries} canaries, shows an epsilon of at least {micro_text(findings.epsilon_lower_micro)}"
        )

    def remarks(self, lines: tuple[str, ...]) -> None:
        """What masking found: counts that epsilon does not cover, which stay on this terminal."""
        for line in lines:
            self._say(f"  masking     {line}")

    def gradients(self, choice: Choice) -> None:
        """How per-example gradients were computed, and why so."""
        self._say(f"  gradients   {choice}")

    def marked(self, evidence: Evidence) -> None:
        """The owner's fingerprint, which follows from a key and the weights."""
        self._say(f"  fingerprint {evidence}")

    def rows(self, *, trained: int, held_out: int) -> None:
        """After reading: the counts, which are not covered by epsilon, stay on this terminal."""
        self._say(f"  rows        {trained} to train on, {held_out} held out to measure with")

    @contextlib.contextmanager
    def progress(self, plan: Plan) -> Iterator[OnStep]:
        """The bar, with what follows from public constants only."""
        epsilon = RunningEpsilon(plan.account, before_micro=self._before_micro)
        columns = (
            TextColumn("  training"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("epsilon {task.fields[epsilon]}"),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task("train", total=plan.steps, epsilon="0", loss="")

            def on_step(step: int) -> None:
                bar.update(task, completed=step, epsilon=epsilon.after(step), loss=self._loss)

            yield on_step

    def swept(self, measured: Measured) -> None:
        """One model of a sweep: trained, measured, thrown away."""
        self._say(
            f"  sweep       epsilon {micro_text(measured.epsilon_micro)}: {measured.measure} {interval_text(measured)} "
            f"on {measured.rows} held-out rows"
        )

    def public_loss(self, loss: float) -> None:
        """The loss of public rows, for the bar."""
        self._loss = f"loss of public rows {loss:.4f}"

    def compare(self, private: Quality, plain: Quality) -> None:
        """The private model beside the same one without privacy."""
        self._say(f"  result      {private} with privacy")
        self._say(f"              {plain} without (shown for comparison, thrown away)")

    def published(self, bundle: VerifiedBundle, heldout_csv: Path | None) -> None:
        """Where the bundle is."""
        self._say(f"  bundle      {bundle.directory}")
        self._say(f"              certificate SHA-256 {bundle.certificate_digest}")
        if heldout_csv is not None:
            self._say(f"  held out    {heldout_csv} (private data, mode 0600)")
