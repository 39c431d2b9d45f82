"""Nothing repeats: two runs on the same rows differ everywhere, whatever generators a program may seed.

The first trap of DP-SGD libraries is noise that comes from a generator which anybody in the process can seed: it can be
drawn again and subtracted. Trusts: nothing. Never: leaves torch's or numpy's generator in another state than it was.
"""

from __future__ import annotations

import math
import random

import numpy as np
import torch

from sealgate.ambient import Entropy
from training.auditing.lanes import Canaries, watch
from training.auditing.probes import Probe, binomial_tail
from training.auditing.subject import Subject
from training.dp_sgd.noise import ROUNDED_BITS
from training.limits import AUDIT_CANARY_SIZE, AUDIT_CONSTANT_LANES


def randomness_is_fresh(subject: Subject, entropy: Entropy, *, alarm: float) -> Probe:
    """The probe `freshness`: with all seedable generators seeded alike, no lane moves alike twice."""
    lanes = AUDIT_CONSTANT_LANES
    canaries = Canaries(lanes=np.arange(0, lanes, 2), sizes=np.full(lanes // 2, AUDIT_CANARY_SIZE))
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    runs = []
    try:
        for _ in range(2):
            torch.manual_seed(0)
            np.random.seed(0)
            random.seed(0)
            runs.append(watch(subject, canaries, lanes=lanes, constants=subject.bare(steps=2), entropy=entropy))
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
    steps = np.concatenate(runs)  # [4, lanes]
    alike = sum(int((steps[i] == steps[j]).sum()) for i in range(4) for j in range(i))
    # Noise is rounded to a grid: independent normal values fall on the same point with this chance.
    chance = 2.0**-ROUNDED_BITS / math.sqrt(4.0 * math.pi)
    return Probe(
        name="freshness",
        held=alike == 0 or binomial_tail(alike, 6 * lanes, rate=chance) > alarm,
        found=f"{alike} of {6 * lanes} movements were the same in two runs or steps with all generators seeded alike",
    )
