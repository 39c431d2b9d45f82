"""How the constants of the mechanisms that release once were chosen: on public tables that no figure is given for.

AdaSSP has the shares of its three releases and a share of the ridge; objective perturbation has the share of epsilon
that lambda may cost; DP-SGD has steps, clip norm and learning rate. Each candidate is run on every table at epsilon
0.3, 1 and 3 (DP-SGD: 1 only, on four of them); what counts is what privacy costs beside the best candidate there,
averaged over tables as a logarithm, so that no table outweighs the others.

`python -m benchmarks.tabular_constants`: a few minutes. Ranges are quantiles of the tables, which a real run may not
take; only constants leave this program.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import r2_score, roc_auc_score

from benchmarks.tabular import Steps, source, step_by_step
from sealgate.ambient import random_bytes
from sealgate.certificate.decimals import MICRO
from sealgate.certificate.gaussian import gaussian_mu
from training.mechanisms.adassp import AdaSspPlan, solution_of, sums_of
from training.mechanisms.objective import plan_objective, solve_objective

Numbers = NDArray[np.float64]
REGRESSIONS = (
    ("AER", "CPS1988", "wage", True),
    ("Ecdat", "Computers", "price", True),
    ("carData", "SLID", "wages", True),
    ("sampleSelection", "nlswork", "ln_wage", False),
    ("mlmRev", "Chem97", "score", False),
    ("openintro", "loans_full_schema", "interest_rate", False),
    ("nycflights13", "weather", "temp", False),
    ("mosaicData", "TenMileRace", "net", False),
    ("ggplot2", "txhousing", "median", True),
    ("Ecdat", "BudgetFood", "wfood", False),
    ("survival", "flchain", "age", False),
    ("Ecdat", "VietNamI", "lnhhexp", False),
)
"""Package, table, target, and whether its logarithm is taken."""
STEPWISE = ("CPS1988", "Computers", "Chem97", "weather")
CLASSIFICATIONS = (
    ("carData", "Arrests", "released", "Yes"),
    ("DAAG", "nassCDS", "dead", "dead"),
    ("Ecdat", "HI", "hhi", "yes"),
    ("survival", "flchain", "death", "1"),
    ("modeldata", "wa_churn", "churn", "Yes"),
    ("stevedata", "TV16", "votetrump", "1.0"),
)
"""Package, table, target and its positive class."""
EPSILONS = (0.3, 1.0, 3.0)
DELTA = "0.00001"
MAX_COLUMNS = 30
SHARES = [(e, g) for e in (0.01, 0.03, 0.06, 0.1, 0.2) for g in (0.4, 0.55, 0.65, 0.75, 0.85) if e + g < 0.97]
RIDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
CURVATURES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
FLOOR = 0.002  # of R2 or AUC: less is not told apart


def features(frame: Any, *, without: str) -> Numbers:
    """Numbers, and flags of short lists of categories, onto [-1, 1] by their quantiles: [n, d]."""
    columns: list[Numbers] = []
    for name in frame.columns:
        values = frame[name]
        if name in (without, "rownames", "idcode", "id", "emp_title") or values.isna().mean() > 0.2:
            continue
        if values.dtype.kind in "iufb":
            columns.append(values.astype(float).fillna(values.astype(float).median()).to_numpy())
            continue
        texts = np.array([str(one) for one in values.tolist()])
        kinds = sorted(set(texts.tolist()))
        columns += [(texts == kind).astype(float) for kind in kinds[1:] if len(kinds) <= 8]
    found = np.stack(columns, axis=1)
    low, high = np.quantile(found, 0.002, axis=0), np.quantile(found, 0.998, axis=0)
    found, low, high = (one[..., high > low][..., :MAX_COLUMNS] for one in (found, low, high))
    clipped: Numbers = np.clip((found - (low + high) / 2) / ((high - low) / 2), -1.0, 1.0)
    return clipped


def regressions(tables: Any) -> list[tuple[str, Numbers, Numbers]]:
    found = []
    for package, name, target, logarithm in REGRESSIONS:
        frame = tables.data(package, name)
        values = frame[target].astype(float).to_numpy()
        with np.errstate(all="ignore"):
            values = np.log(values) if logarithm else values
        known = np.isfinite(values)
        low, high = np.quantile(values[known], [0.002, 0.998])
        scaled = np.clip((values[known] - (low + high) / 2) / ((high - low) / 2), -1.0, 1.0)
        found.append((name, features(frame[known], without=target), scaled))
    return found


def linear(tables: Any) -> None:
    """Shares and ridge of AdaSSP."""
    candidates = [(*share, ridge) for share in SHARES for ridge in RIDGES]
    losses = []
    for name, rows, target in regressions(tables):
        held = torch.from_numpy(np.random.default_rng(5).random(len(target)) < 0.25)
        x, y = torch.from_numpy(rows), torch.from_numpy(target)
        norm = math.sqrt(rows.shape[1] + 1)
        gram, moments = sums_of(x[~held], y[~held], bound=norm)
        test, goal = torch.cat((x[held], torch.ones(int(held.sum()), 1, dtype=x.dtype)), dim=1), y[held]

        def quality(weights: torch.Tensor, test: torch.Tensor = test, goal: torch.Tensor = goal) -> float:
            return max(-1.0, 1 - float(((goal - test @ weights) ** 2).mean() / goal.var()))

        plain = quality(torch.linalg.lstsq(gram, moments[:, None], driver="gelsd").solution[:, 0])
        for epsilon in EPSILONS:
            mu, row = gaussian_mu(epsilon, float(DELTA)), []
            for first, second, ridge in candidates:
                sigmas = [math.ceil(MICRO / mu / math.sqrt(one)) for one in (first, second, 1 - first - second)]
                plan = AdaSspPlan(
                    row_norm_micro=int(norm * MICRO),
                    eigenvalue_micro=sigmas[0],
                    gram_micro=sigmas[1],
                    moments_micro=sigmas[2],
                    delta=DELTA,
                )
                runs = [
                    quality(solution_of(plan, gram, moments, entropy=random_bytes, share_of_ridge=ridge))
                    for _ in range(12)
                ]
                row.append(plain - sum(runs) / len(runs))
            losses.append(row)
            print(f"{name:20} n {len(target):6} d {rows.shape[1]:3} epsilon {epsilon} plain {plain:.3f} ", end="")
            print(f"least loss {min(row):.4f}", flush=True)
    tell(candidates, losses)


def stepwise(tables: Any) -> None:
    """Steps, clip norm and learning rate of DP-SGD for linear regressions, at epsilon 1."""
    candidates = [(count, clip, rate) for count in (50, 150) for clip in (0.1, 0.5) for rate in (0.3, 0.9)]
    losses = []
    for name, rows, target in [one for one in regressions(tables) if one[0] in STEPWISE]:
        held = np.random.default_rng(5).random(len(target)) < 0.25
        test = np.concatenate((rows[held], np.ones((held.sum(), 1))), axis=1)
        whole = np.concatenate((rows[~held], np.ones(((~held).sum(), 1))), axis=1)
        plain = r2_score(target[held], test @ np.linalg.lstsq(whole, target[~held], rcond=None)[0])
        x, y, row = torch.from_numpy(rows[~held]), torch.from_numpy(target[~held]), []
        for count, clip, rate in candidates:
            steps = Steps(count=int(count), clip_norm=clip, learning_rate=rate)
            weights = step_by_step(x, y, epsilon_micro=MICRO, steps=steps)
            row.append(plain - max(-1.0, float(r2_score(target[held], test @ weights.numpy()))))
        losses.append(row)
        print(
            f"{name:20} n {len(target):6} d {rows.shape[1]:3} plain {plain:.3f} least loss {min(row):.4f}", flush=True
        )
    tell(candidates, losses)


def logistic(tables: Any) -> None:
    """The share of epsilon that lambda may cost."""
    from training.mechanisms import objective

    losses = []
    for package, name, target, positive in CLASSIFICATIONS:
        frame = tables.data(package, name)
        frame = frame[frame[target].notna()]
        rows, labels = features(frame, without=target), (frame[target].astype(str) == positive).to_numpy().astype(float)
        held = np.random.default_rng(5).random(len(labels)) < 0.25
        model = LogisticRegression(max_iter=1000).fit(rows[~held], labels[~held])
        plain = roc_auc_score(labels[held], model.decision_function(rows[held]))
        x, y = torch.from_numpy(rows[~held]), torch.from_numpy(labels[~held])
        norm = math.ceil(math.sqrt(rows.shape[1] + 1) * MICRO)
        for epsilon in EPSILONS:
            row = []
            for share in CURVATURES:
                ridge = math.ceil((norm / MICRO) ** 2 / 4 / math.expm1(share * min(epsilon, 1.0)) * MICRO)
                plan = plan_objective(
                    target_micro=int(epsilon * MICRO),
                    delta=DELTA,
                    row_norm_micro=norm,
                    population=len(labels),
                    regularisation_micro=ridge,
                )
                runs = [objective_auc(plan, x, y, rows[held], labels[held]) for _ in range(6)]
                row.append(plain - sum(runs) / len(runs))
            losses.append(row)
            print(f"{name:20} n {len(labels):6} d {rows.shape[1]:3} epsilon {epsilon} plain {plain:.3f} ", end="")
            print(" ".join(f"{one:.4f}" for one in row), flush=True)
    tell([(one,) for one in CURVATURES], losses)
    print(f"in use: {objective.CURVATURE_SHARE}")


def objective_auc(plan: Any, x: torch.Tensor, y: torch.Tensor, rows: Numbers, labels: Numbers) -> float:
    """The area under the curve of one private run."""
    weights = solve_objective(plan, x, y, entropy=random_bytes)
    return float(roc_auc_score(labels, rows @ weights[:-1].numpy()))


def tell(candidates: Sequence[tuple[float, ...]], losses: list[list[float]]) -> None:
    """The best candidates by the mean logarithm of their loss beside the least one."""
    table = np.maximum(np.array(losses), 0.0) + FLOOR
    score = np.log(table / table.min(axis=1, keepdims=True)).mean(axis=0)
    for place in np.argsort(score)[:10]:
        print(f"{candidates[place]}: {score[place]:.3f} above the best on average, as a logarithm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("linear", "logistic", "stepwise"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tables = source()
    for name, choose in {"linear": linear, "logistic": logistic, "stepwise": stepwise}.items():
        if arguments.only in (None, name):
            choose(tables)


if __name__ == "__main__":
    main()
