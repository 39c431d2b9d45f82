"""What a permit demands of the answer: fewer digits, fewer classes, no scores.

Minimisation, not differential privacy: repeated queries can undo much of it, and the documentation says so. Noise is
more; it stands in `noise.py` and comes first: what is done here to a noised answer costs no epsilon.
Trusts: the grant. Never: widens an answer.
"""

from __future__ import annotations

import torch

from sealgate.protocol.frames import Obligations


def apply_to_scores(scores: torch.Tensor, obligations: Obligations) -> torch.Tensor | None:
    """Scores [rows, classes] as the permit allows them; None when they must not be given at all."""
    if obligations.hide_scores:
        return None
    if obligations.top_k is not None and scores.ndim == 2 and obligations.top_k < scores.shape[1]:
        kept = torch.zeros_like(scores)
        top = scores.topk(obligations.top_k, dim=1)
        scores = kept.scatter(1, top.indices, top.values)
    return apply_to_values(scores, obligations)


def apply_to_values(values: torch.Tensor, obligations: Obligations) -> torch.Tensor:
    """Floating-point values rounded to the demanded number of decimal places."""
    if obligations.round_digits is None or not values.is_floating_point():
        return values
    return torch.round(values, decimals=obligations.round_digits)
