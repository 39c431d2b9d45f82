"""Made-up examples for any declared architecture: what the audit shows to a model in place of private rows.

Trusts: the architecture's own word about its inputs. Never: resembles, or was computed from, anybody's data.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from sealgate.certificate.architectures import Spec
from training.randomness import Keystream


def made_up_inputs(spec: Spec, count: int, stream: Keystream, *, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """`count` examples, each tensor [count, ...]: numbers uniform in [-1, 1], tokens uniform over the vocabulary.

    A second input that is square, as the adjacency of a graph's nodes is, is symmetric and holds ones and zeros,
    with ones on its diagonal: every node is there.
    """
    shapes = spec.input_shapes()
    found: list[torch.Tensor] = []
    for index, shape in enumerate(shapes):
        uniform = torch.from_numpy(stream.uniform(count * math.prod(shape)).reshape(count, *shape))
        if spec.vocabulary:
            found.append((uniform * spec.vocabulary).to(torch.int64))
        elif index and len(shape) == 2 and shape[0] == shape[1] == shapes[0][0]:
            upper = (uniform < 0.5).triu(diagonal=1)
            found.append((upper | upper.transpose(1, 2) | torch.eye(shape[0], dtype=torch.bool)).to(dtype))
        else:
            found.append((2 * uniform - 1).to(dtype))
    return tuple(found)


def made_up_targets(spec: Spec, count: int, stream: Keystream, *, dtype: torch.dtype) -> torch.Tensor:
    """[count]: classes at random, or values in [-1, 1]."""
    uniform = stream.uniform(count)
    values = np.floor(uniform * spec.classes) if spec.classes else 2 * uniform - 1
    return torch.from_numpy(values).to(dtype)
