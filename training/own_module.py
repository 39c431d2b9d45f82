"""A person's own `nn.Module`, trained in place of the declared architecture and then exported to it.

`[model] module = "package.module:Class"` names a class without arguments that Python can import where `sealgate train`
runs. Bundles carry no code, so the class must compute what a declared architecture computes: its tensors must have the
shapes of the declared ones in the same order, under whatever names, and with the same made-up weights both must give
the same answers on made-up examples. Then training the one is training the other; the bundle holds the declared one.

Trusts: the author of the configuration, whose code this runs. Never: puts code, or names of classes, into a bundle.
"""

from __future__ import annotations

import importlib

import torch
from torch import nn

from sealgate.errors import ConfigurationError
from training.dp_sgd.choice import made_up
from training.limits import CHECK_ROWS
from training.losses import Loss
from training.randomness import Keystream

_CLOSE = 1e-9  # of float64 answers of both


def own_module(path: str, declared: nn.Module, inputs: tuple[torch.Tensor, ...], *, loss: Loss) -> nn.Module:
    """An instance in float64 with the declared module's weights; raises ConfigurationError if it is another model.

    `inputs` give shapes and types only.
    """
    module = _instance(path).double()
    own, wanted = list(module.named_parameters()), list(declared.named_parameters())
    if [one.shape for _, one in own] != [one.shape for _, one in wanted]:
        raise ConfigurationError(
            f"[model] module: {path} has tensors {_shapes(own)}, the declared architecture {_shapes(wanted)}: shapes "
            "and order must be the same"
        )
    if any(True for _ in module.buffers()):
        raise ConfigurationError(f"[model] module: {path} has buffers, which a bundle would not carry")
    before = [one.detach().clone() for _, one in wanted]
    stream = Keystream(lambda size: bytes([2]) * size)
    try:
        with torch.no_grad():
            for _, one in wanted:
                one.copy_(torch.from_numpy(stream.uniform(one.numel()) - 0.5).view(one.shape))
        transfer(declared, module)
        rows, _ = made_up(declared, inputs, loss=loss, count=max(CHECK_ROWS), dtype=torch.float64)
        with torch.no_grad():
            theirs, ours = module(*rows), declared(*rows)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"[model] module: {path} cannot be called like the architecture: {error}") from error
    finally:
        with torch.no_grad():
            for (_, one), value in zip(wanted, before, strict=True):
                one.copy_(value)
    if theirs.shape != ours.shape or not torch.allclose(theirs, ours, rtol=_CLOSE, atol=_CLOSE):
        raise ConfigurationError(
            f"[model] module: {path} gives other answers than the declared architecture with the same weights"
        )
    transfer(declared, module)
    return module


def transfer(source: nn.Module, target: nn.Module) -> None:
    """Copy the weights, tensor by tensor in their order."""
    with torch.no_grad():
        for one, value in zip(target.parameters(), source.parameters(), strict=True):
            one.copy_(value)


def _instance(path: str) -> nn.Module:
    package, _, name = path.partition(":")
    try:
        made = getattr(importlib.import_module(package), name)()
    except Exception as error:  # the code is not ours: whatever it raises, the person is told
        raise ConfigurationError(f"[model] module: {path} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise ConfigurationError(f"[model] module: {path} is no torch.nn.Module")
    return made


def _shapes(named: list[tuple[str, nn.Parameter]]) -> str:
    return ", ".join(f"{name} {list(one.shape)}" for name, one in named[:8])
