"""Aggregation perturbation: run again and again on networks that differ in one edge, or in one node with its edges.

As in `repeated`, with the same probes: `neighbours` at the edge of what is declared, `outliers` with vectors a thousand
times too long, which only normalising makes harmless. At node level the steps of encoder and classifier are attacked,
too, by all of DP-SGD's probes, on the run's own classifier.

Trusts: nothing. Never: sees the private network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from sealgate.ambient import Entropy, random_bytes
from sealgate.certificate.architectures import EmbeddingBagSpec, MlpSpec
from secure_runtime.models.architectures import build
from training.auditing.gate import Findings, OnProbe, audit_dp_sgd
from training.auditing.probes import Probe
from training.auditing.repeated import audit_runs
from training.auditing.subject import Subject
from training.initialisation import initialise
from training.mechanisms.gap import GapPlan

_WIDTH = 2  # of the made-up nodes' vectors: the fewer numbers, the clearer the sight
_BESIDE = 3  # made-up nodes that the unit in question does not touch
_MOST_NEIGHBOURS = 8  # of the node in question

Aggregates = Callable[[torch.Tensor, torch.Tensor, Entropy], torch.Tensor]
"""Vectors [n, d], edges [m, 2] from 0, and randomness, to what is released: the plan's own, unless a test breaks it."""


def audit_network(
    plan: GapPlan,
    spec: EmbeddingBagSpec,
    *,
    entropy: Entropy = random_bytes,
    on_probe: OnProbe = lambda _probe: None,
) -> Findings:
    """The probes of repeated runs; and at node level those of the steps, named `steps: ...`."""
    findings = audit_aggregates(plan, entropy=entropy, on_probe=on_probe)
    if plan.sgd is None:
        return findings
    rows = MlpSpec(inputs=spec.width, hidden=spec.hidden, activation=spec.activation, classes=spec.classes)
    head = build(rows).double()
    initialise(head, entropy)

    def named(probe: Probe) -> Probe:
        return replace(probe, name=f"steps: {probe.name}")

    subject = Subject(constants=plan.sgd.constants, loss=plan.loss, delta=plan.delta, persons=False)
    steps = audit_dp_sgd(subject, rows, head, entropy=entropy, on_probe=lambda probe: on_probe(named(probe)))
    return replace(
        findings,
        probes=(*findings.probes, *map(named, steps.probes)),
        epsilon_lower_micro=max(findings.epsilon_lower_micro, steps.epsilon_lower_micro),
        canaries=findings.canaries + steps.canaries,
        steps=steps.steps,
    )


def audit_aggregates(
    plan: GapPlan,
    *,
    entropy: Entropy = random_bytes,
    on_probe: OnProbe = lambda _probe: None,
    aggregates: Aggregates | None = None,
) -> Findings:
    """The probes of repeated runs, on the aggregates alone, against the whole claim."""

    def own(vectors: torch.Tensor, edges: torch.Tensor, randomness: Entropy) -> torch.Tensor:
        return plan.aggregates(vectors, edges, entropy=randomness)

    release = aggregates or own

    def runs_of(size: float) -> Callable[[bool], NDArray[np.float64]]:
        vectors, without, edges = made_up_network(plan, size)

        def run(included: bool) -> NDArray[np.float64]:
            return release(vectors, edges if included else without, entropy).numpy().ravel()

        return run

    return audit_runs(runs_of, plan.account, entropy=entropy, on_probe=on_probe)


def made_up_network(plan: GapPlan, size: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Vectors of length `size`, float64 [n, 2]; edges without the unit in question, and with it: int64 [m, 2] from 0.

    The unit is the edge between the first two nodes, or the first node with as many neighbours as may be, up to eight.
    All that it touches looks the same way, across to what was there before: each sum turns as far as it can.
    """
    touched = 1 if plan.unit == "edge" else min(plan.max_degree, _MOST_NEIGHBOURS)
    nodes = 1 + touched + _BESIDE
    vectors = torch.zeros(nodes, _WIDTH, dtype=torch.float64)
    vectors[: 1 + touched, 0] = size
    vectors[1 + touched :, 1] = size
    # Each neighbour has one other, so that a sum has a direction before the unit turns it; the rest hang together.
    rest = 1 + touched
    before = [(neighbour, rest) for neighbour in range(1, min(rest, 1 + plan.max_degree)) if plan.max_degree > 1]
    before += [(rest + 1, rest + 2)]
    without = torch.tensor(before, dtype=torch.int64)
    unit = torch.tensor([(0, neighbour) for neighbour in range(1, 1 + touched)], dtype=torch.int64)
    return vectors, without, torch.cat((without, unit))
