"""What a module's weights are before the first step: fresh random numbers that depend on nobody's data.

Weights are uniform with a variance of one over their fan-in (LeCun et al. 1998), vectors of tokens uniform with
variance one, biases zero; the gate that lets an LSTM forget begins open (Gers et al. 2000). A model of a single linear
layer stays at zero, where its convex loss may as well begin. Normalisations and frozen weights are left as they are.

Trusts: the `Entropy` it is given. Never: draws from torch's generator.
"""

from __future__ import annotations

import torch
from torch import nn

from sealgate.ambient import Entropy, random_bytes
from secure_runtime.models.families.recurrent import LstmLayer
from training.randomness import Keystream

_DRAWN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)


def initialise(module: nn.Module, entropy: Entropy = random_bytes) -> None:
    """Fill a module in place, in the type of its weights."""
    layers = [layer for layer in module.modules() if isinstance(layer, _DRAWN) and layer.weight.requires_grad]
    if len(layers) < 2:
        return
    stream = Keystream(entropy)
    with torch.no_grad():
        for layer in layers:
            fan_in = 1 if isinstance(layer, nn.Embedding) else layer.weight[0].numel()
            values = (2.0 * stream.uniform(layer.weight.numel()) - 1.0) * (3.0 / fan_in) ** 0.5
            layer.weight.copy_(torch.from_numpy(values).reshape(layer.weight.shape))
        for cells in module.modules():
            if isinstance(cells, LstmLayer):
                cells.input_to_gates.bias[cells.width : 2 * cells.width] = 1.0
