"""What a run needs to go on after a crash: weights, the optimizer's state, and how many steps were spent.

A checkpoint is written aside, flushed to the disk and renamed over the last one, so there is always a whole one. It is
a secret of the trainer (mode 0600): the certificate covers the final weights, and nobody else may see the ones on the
way. It holds no randomness: a run that goes on draws fresh keys, so no noise is ever used twice.

Steps that were executed after the last checkpoint are lost in a crash and are done again with fresh randomness. They
were seen by nobody: what left the process is what the checkpoint says. The number of steps that the published weights
have gone through is exactly the declared one, and it is never exceeded: a finished run does not go on.

`identity` binds a checkpoint to the run: constants, architecture and rows. With another identity it is refused.
A run on several processes has one checkpoint as well, written by the first of them, of whole tensors: so it may be
resumed on another number of processes, or on one.

Trusts: the file system. Never: reads pickles, or resumes what does not fit.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import distributed, nn

from sealgate.errors import ConfigurationError
from training.dp_sgd.sharding import fill, whole
from training.dp_sgd.updates import Update

FORMAT = "sealgate-training-checkpoint-1"


class Checkpoints:
    """The one checkpoint file of a run. Owns the file; `every` steps it is replaced."""

    def __init__(self, path: Path, *, identity: str, every: int, resume: bool) -> None:
        """Without `resume` a file that is there is an error; with it a missing one means: from the beginning."""
        if every < 1:
            raise ValueError("checkpoints are written every 1 or more steps")
        self._path = path
        self._identity = identity
        self._every = every
        self._resume = resume
        self.resumed = 0  # how often this run went on after a crash

    def restore(self, module: nn.Module, update: Update) -> int:
        """Fill module and optimizer; the number of steps that are done. Raises ConfigurationError."""
        if not self._path.exists():
            return 0
        if not self._resume:
            raise _in_the_way(self._path)
        facts, tensors = _read(self._path)
        if facts.get("format") != FORMAT or facts.get("identity") != self._identity:
            raise ConfigurationError(
                f"{self._path} belongs to another run: rows, constants, architecture or fingerprint differ; delete "
                "it to begin again"
            )
        wanted = _tensors(module, update)
        if {name: (one.shape, one.dtype) for name, one in wanted.items()} != {
            name: (one.shape, one.dtype) for name, one in tensors.items()
        }:
            raise ConfigurationError(f"{self._path} does not fit this model; delete it to begin again")
        with torch.no_grad():
            for name, one in wanted.items():
                fill(one, tensors[name])
        self.resumed = int(facts["resumed"]) + 1
        return int(facts["steps"])

    def after(self, step: int, module: nn.Module, update: Update, *, last: bool) -> None:
        """Called by all processes when a step is done; every so many, and after the last, the first one saves."""
        if last or step % self._every == 0:
            self.save(step, module, update)

    def save(self, step: int, module: nn.Module, update: Update) -> None:
        """Replace the checkpoint; it is on the disk when this returns in the process that writes."""
        facts = {
            "format": FORMAT,
            "identity": self._identity,
            "steps": str(step),
            "resumed": str(self.resumed),
        }
        writes = not distributed.is_initialized() or distributed.get_rank() == 0
        tensors: dict[str, torch.Tensor] = {}
        for name, one in _tensors(module, update).items():
            values = whole(one)
            if writes:
                tensors[name] = values
        if writes:
            _replace(self._path, safetensors.torch.save(tensors, metadata=facts))

    def discard(self) -> None:
        """The run's result is published: nothing is to be resumed any more."""
        self._path.unlink(missing_ok=True)


def require_checkpoint(path: Path, *, every: int, resume: bool) -> None:
    """Before anything is done: what `--resume` goes on with must be there and whole, and without it nothing may be.

    Whether it belongs to this run shows when the rows are read. Raises ConfigurationError.
    """
    if not every:
        if resume:
            raise ConfigurationError("--resume needs [engine] checkpoint_every = N (steps) in the run that is resumed")
        return
    if not path.exists():
        if resume:
            raise ConfigurationError(f"--resume: there is no checkpoint {path}; leave it out to begin a run")
        return
    if not resume:
        raise _in_the_way(path)
    facts, _ = _read(path)
    if facts.get("format") != FORMAT:
        raise ConfigurationError(f"{path} is no checkpoint of this version; delete it to begin again")


def _in_the_way(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{path} is the checkpoint of an unfinished run; say --resume to go on with it, or delete it"
    )


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """What a checkpoint says of itself, and its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(f"{path} cannot be read as a checkpoint; delete it to begin again") from error


def identity_of(*parts: bytes, inputs: tuple[torch.Tensor, ...], targets: torch.Tensor) -> str:
    """Which run it is: SHA-256 over the public parts and the rows, each with its length before it."""
    digest = hashlib.sha256()
    tensors = (*inputs, targets)
    for data in (*parts, *(f"{one.dtype} {tuple(one.shape)}".encode() for one in tensors)):
        digest.update(len(data).to_bytes(8, "big") + data)
    for one in tensors:
        digest.update(one.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _tensors(module: nn.Module, update: Update) -> dict[str, torch.Tensor]:
    found = {f"weights.{name}": one.detach() for name, one in module.named_parameters()}
    return found | {f"optimizer.{name}": one for name, one in update.state.items()}


def _replace(path: Path, data: bytes) -> None:
    """Write, flush, rename, flush the directory; raises ConfigurationError if the disk says no."""
    aside = path.with_name(f".{path.name}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise ConfigurationError(f"the checkpoint {path} cannot be written: {error.strerror}") from error
