"""Linear layers in whole numbers: weights in int8 as the bundle has them, activations in int8 as they come ("dynamic").

Symmetric and without data: a weight's scale belongs to its output (from the bundle), an activation's to its row (the
largest magnitude in it, over 127). A scale over the whole batch, as torch.ao's dynamic layers take it, would let one
caller's rows change another's answer. Sums are exact in int32, so here an answer never depends on the batch's size;
torch's kernel is tried against float64, which holds them exactly too, when a model is loaded.

    y[i, o] = sum_k q(x)[i, k] q(w)[o, k]  *  s(x)[i] s(w)[o]  +  b[o]

(Jacob et al. 2018, section 2.2, with zero points 0.)

Where gradients are asked for (explanations), the layer is the linear one that it stands for: rounding has none.

Trusts: weights that were verified. Never: calibrates, or keeps anything between two calls.
"""

from __future__ import annotations

import torch
from torch import nn

LARGEST = 127
MAX_WIDTH = (2**31 - 1) // LARGEST**2  # inputs of one layer whose sums still fit into int32: 133,144
_TRIED_ROWS = 33
_CUDA_ROWS, _CUDA_MULTIPLE = 17, 8  # torch._int_mm on CUDA: more than 16 rows, widths in eights


class Int8Linear(nn.Module):
    """A linear layer with whole [out, in] and `scale` [out]; takes the place of an nn.Linear."""

    whole: torch.Tensor
    scale: torch.Tensor

    def __init__(self, whole: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        if whole.shape[1] > MAX_WIDTH:
            raise ValueError("so many inputs could overflow int32")
        self.register_buffer("whole", whole.contiguous())  # int8 [out, in], also where the module is in float64
        self.register_buffer("scale", scale)  # [out]
        self._product = integer_product if multiplies_exactly(self.whole) else exact_product
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:  # [..., in] -> [..., out]
        if rows.requires_grad:
            weight = self.whole.to(rows.dtype) * self.scale.unsqueeze(1)
            return nn.functional.linear(rows, weight, self.bias)
        flat = rows.reshape(-1, rows.shape[-1])  # [n, in]
        span = flat.abs().amax(dim=1, keepdim=True) / LARGEST  # [n, 1]
        span = torch.where(span > 0, span, torch.ones_like(span))
        sums = self._product(torch.round(flat / span).to(torch.int8), self.whole)  # int32 [n, out]
        out = sums.to(rows.dtype) * (span * self.scale)
        if self.bias is not None:
            out = out + self.bias
        return out.reshape(*rows.shape[:-1], -1)


def exact_product(rows: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """int8 [n, in] and int8 [out, in] -> int32 [n, out]: rows @ whole'. Slow; float64 holds every sum exactly."""
    return (rows.double() @ whole.double().t()).to(torch.int32)


def multiplies_exactly(whole: torch.Tensor) -> bool:
    """Whether `integer_product` gives what it should for these weights, one row and many, on this processor.

    Tried because it does not everywhere: torch 2.13 is wrong for a single input, and kernels for processors without
    VNNI may saturate at 16 bits where activations and weights are large.
    """
    count, inputs = _TRIED_ROWS, whole.shape[1]
    ramp = torch.arange(count * inputs, device=whole.device).reshape(count, inputs) * 89 % 255 - LARGEST
    rows = ramp.to(torch.int8)
    rows[0], rows[1] = LARGEST, whole[0].sign() * LARGEST
    wanted = exact_product(rows, whole)
    return torch.equal(integer_product(rows, whole), wanted) and torch.equal(
        integer_product(rows[:1], whole), wanted[:1]
    )


def integer_product(rows: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """The same, fast: where `multiplies_exactly` says so."""
    if not rows.is_cuda:
        return torch._int_mm(rows, whole.t())
    count, (outputs, inputs) = len(rows), whole.shape
    padded = nn.functional.pad(rows, (0, -inputs % _CUDA_MULTIPLE, 0, max(0, _CUDA_ROWS - count)))
    widened = nn.functional.pad(whole, (0, -inputs % _CUDA_MULTIPLE, 0, -outputs % _CUDA_MULTIPLE))
    return torch._int_mm(padded, widened.t())[:count, :outputs]


def replace_linear(module: nn.Module, stored: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Put an Int8Linear in the place of every linear layer whose weight is among `stored`, by the weight's name.

    Kernels and tables, and layers too wide for int32, are left: they work on the numbers that theirs stand for.
    """
    for name, layer in list(module.named_modules()):
        found = stored.get(f"{name}.weight")
        if not isinstance(layer, nn.Linear) or found is None or layer.in_features > MAX_WIDTH:
            continue
        parent, _, child = name.rpartition(".")
        bias = None if layer.bias is None else layer.bias.detach()
        setattr(module.get_submodule(parent), child, Int8Linear(*found, bias))
