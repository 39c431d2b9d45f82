"""The run's own architecture: no example moves a step's sum by more than the clip norm.

Lanes show what the trainer does with gradients; they do not show that it computes the norms of this model's layers
rightly. So the trainer makes one step on some made-up examples of the model's own form, and the same step, under the
same randomness, with one more: the difference must not be longer than the clip norm, over all parameters together. Some
of the added examples are a thousand times too large, as no checked row can be.

Trusts: nothing. Never: sees private rows.
"""

from __future__ import annotations

import math
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
from training.fixed_features import fixed_first
from training.limits import AUDIT_NEIGHBOURS, AUDIT_OTHERS
from training.randomness import Keystream

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-2}
"""Of a clip norm, for what rounding (to a grid too, where the noise is discrete) does to a difference of noisy sums."""

_EXTREME = 1000.0


def no_example_moves_more(subject: Subject, spec: Spec, module: nn.Module, entropy: Entropy) -> Probe:
    """The probe `neighbours`. `module` is an initialised one of the architecture `spec`, and is trained here."""
    stream = Keystream(entropy)
    total = AUDIT_OTHERS + AUDIT_NEIGHBOURS
    inputs = made_up_inputs(spec, total, stream, dtype=subject.dtype)
    targets = made_up_targets(spec, total, stream, dtype=subject.dtype)
    trained, inputs = fixed_first(module, inputs)
    if inputs[0].is_floating_point():
        extreme = torch.ones(total, dtype=subject.dtype)
        extreme[-(AUDIT_NEIGHBOURS // 4) :] = _EXTREME
        inputs = (inputs[0] * extreme.reshape(-1, *(1 for _ in inputs[0].shape[1:])), *inputs[1:])
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    word = entropy(32)
    # Every row enters the step, and the weights move by the noisy sum itself.
    constants = replace(subject.quiet(steps=1), rate=Fraction(1), learning_rate=subject.constants.divisor)
    if constants.augmentation is not None:  # one row more would vary the others otherwise
        constants = replace(constants, augmentation=replace(constants.augmentation, shift=0, flip=False))

    def after(rows: list[int]) -> torch.Tensor:
        trained.load_state_dict(state)
        subject.trainer(
            trained,
            tuple(one[rows] for one in inputs),
            targets[rows],
            constants=constants,
            loss=subject.loss,
            groups=torch.arange(len(rows)) if subject.persons else None,
            entropy=RepeatedRandomness(word),
            on_step=lambda _step: None,
        )
        return torch.cat([one.detach().ravel().clone() for one in trained.parameters() if one.requires_grad])

    others = list(range(AUDIT_OTHERS))
    without = after(others)
    moved = [
        float((after([*others, row]) - without).norm()) / subject.constants.clip_norm
        for row in range(AUDIT_OTHERS, total)
    ]
    most = max(moved) if all(map(math.isfinite, moved)) else math.inf
    return Probe(
        name="neighbours",
        held=most <= 1.0 + TOLERANCE[subject.dtype],
        found=f"each of {len(moved)} made-up examples moved the sum by {min(moved):.4f} to {most:.4f} clip norms",
    )
