"""The run's own architecture: no example moves a step's sum by more than the clip norm.

Lanes show what the trainer does with gradients; they do not show that it computes the norms of this model's layers
rightly. So the trainer makes one step on some made-up examples of the model's own form, and the same step, under the
same randomness, with one more: the difference must not be longer than the clip norm, over all parameters together. Some
of the added examples are a thousand times too large, as no checked row can be.

Trusts: nothing. Never: sees private rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import torch
from torch import nn

from sealgate.ambient import Entropy
from sealgate.certificate.architectures import Spec
from training.auditing.probes import Probe
from training.auditing.replay import RepeatedRandomness
from training.auditing.specimens import made_up_inputs, made_up_targets
from training.auditing.subject import Subject
from training.limits import AUDIT_NEIGHBOURS, AUDIT_OTHERS
from training.randomness import Keystream

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
"""Of a clip norm, for what rounding does to a difference of two noisy sums."""

_EXTREME = 1000.0


def no_example_moves_more(subject: Subject, spec: Spec, make: Callable[[], nn.Module], entropy: Entropy) -> Probe:
    """The probe `neighbours`. `make` gives an initialised module of the architecture `spec`."""
    stream = Keystream(entropy)
    total = AUDIT_OTHERS + AUDIT_NEIGHBOURS
    inputs = made_up_inputs(spec, total, stream, dtype=subject.dtype)
    targets = made_up_targets(spec, total, stream, dtype=subject.dtype)
    if not spec.vocabulary:
        extreme = torch.ones(total, dtype=subject.dtype)
        extreme[-(AUDIT_NEIGHBOURS // 4) :] = _EXTREME
        inputs = (inputs[0] * extreme.reshape(-1, *(1 for _ in inputs[0].shape[1:])), *inputs[1:])
    module = make().to(subject.dtype)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    word = entropy(32)
    # Every row enters the step, and the weights move by the noisy sum itself.
    constants = replace(subject.bare(steps=1), rate=Fraction(1), learning_rate=subject.constants.divisor)

    def after(rows: list[int]) -> torch.Tensor:
        module.load_state_dict(state)
        subject.trainer(
            module,
            tuple(one[rows] for one in inputs),
            targets[rows],
            constants=constants,
            loss=subject.loss,
            entropy=RepeatedRandomness(word),
            on_step=lambda _step: None,
        )
        return torch.cat([one.detach().ravel().clone() for one in module.parameters() if one.requires_grad])

    others = list(range(AUDIT_OTHERS))
    without = after(others)
    moved = [
        float((after([*others, row]) - without).norm()) / subject.constants.clip_norm
        for row in range(AUDIT_OTHERS, total)
    ]
    most = max(moved) if all(map(math.isfinite, moved)) else math.inf
    return Probe(
        name="neighbours",
        held=most <= 1.0 + TOLERANCE.get(subject.dtype, 1e-6),
        found=f"each of {len(moved)} made-up examples moved the sum by {min(moved):.4f} to {most:.4f} clip norms",
    )
