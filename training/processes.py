"""DP-SGD on several processes of this machine: starts them, deals the units out, watches, and ends with the first loss.

Each process is spawned anew, gets a shard of the units (all rows of a person in one shard, or they would be clipped
apart) and runs the engine as a member of a gloo group (`training.dp_sgd.distributed`, or `sharding`). This process is
no member: it waits for the first one's word after each step, and so notices at once when any of them dies. A run of
which one process is lost ends as a whole; nothing of it is used but its checkpoint, if it kept one. Which shard a unit
is in follows from its place among the rows alone and moves no released number but by rounding: the sum is over all
shards, and every unit is drawn on its own.

Trusts: the loopback interface, over which sums go before noise is added, without authentication. Never: listens on
another interface, writes rows to a file, or leaves a process behind.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import distributed, nn

from sealgate.errors import SealgateError
from training.dp_sgd.checkpoint import Checkpoints
from training.dp_sgd.choice import Choice
from training.dp_sgd.distributed import leave
from training.errors import TrainingError
from training.limits import PROCESS_JOIN_S, PROCESS_SILENCE_S
from training.losses import Loss
from training.private_sgd import PrivateSgd, train_privately

Tensors = tuple[torch.Tensor, ...]
_CHOSEN, _WEIGHTS, _STEP, _DONE, _FAILED = "chosen", "weights", "step", "done", "failed"
_FIRST = 0


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a process is told: its place among how many, where they meet, and the run. Its tensors follow: those of the
    module, which is hollow here, then its rows, of which so many are inputs."""

    place: int
    count: int
    meeting: str
    threads: int
    module: nn.Module
    inputs: int
    constants: PrivateSgd
    loss: Loss
    sharded: bool
    checkpoints: Checkpoints | None


@dataclass(frozen=True, kw_only=True)
class _Member:
    process: BaseProcess
    pipe: Connection


def train_on_processes(
    module: nn.Module,
    inputs: Tensors,
    targets: torch.Tensor,
    *,
    count: int,
    constants: PrivateSgd,
    loss: Loss,
    groups: torch.Tensor | None,
    on_step: Callable[[int], None],
    on_choice: Callable[[Choice], None],
    sharded: bool = False,
    checkpoints: Checkpoints | None = None,
) -> int:
    """As `train_privately`, by `count` processes of as many threads as this one has. Raises TrainingError.

    The module has a step's weights when `on_step` is called; what is changed in them is lost.
    """
    parameters = [one for one in module.parameters() if one.requires_grad]
    with _meeting() as meeting, _started(count) as members:
        for place, rows in enumerate(shards(len(targets), groups, count=count)):
            task = Task(
                place=place,
                count=count,
                meeting=meeting,
                threads=torch.get_num_threads(),
                module=hollow(module),
                inputs=len(inputs),
                constants=constants,
                loss=loss,
                sharded=sharded,
                checkpoints=checkpoints,
            )
            labels = () if groups is None else (groups[rows],)
            shard = (*(_as_used(one[rows], constants) for one in inputs), targets[rows], *labels)
            _hand_over(members[place], task, (*_tensors(module), *shard))
        for what, said in _heard(members, resumable=checkpoints is not None):
            if what == _DONE:
                break
            if what == _WEIGHTS:
                place, values = said
                with torch.no_grad():
                    parameters[place].copy_(torch.from_numpy(values))
            else:
                (on_choice if what == _CHOSEN else on_step)(said)
    return constants.steps


def shards(rows: int, groups: torch.Tensor | None, *, count: int) -> list[torch.Tensor]:
    """Row numbers of each process, int64: units are dealt out in turn, all rows of a person to one process."""
    units = torch.arange(rows) if groups is None else torch.unique(groups, return_inverse=True)[1]
    return [torch.nonzero(units % count == place).flatten() for place in range(count)]


@contextlib.contextmanager
def _meeting() -> Iterator[str]:
    """A path for gloo's rendezvous, in a folder that nobody else can open. It holds addresses, never rows."""
    folder = tempfile.mkdtemp(prefix="sealgate-train-")
    try:
        yield str(Path(folder) / "meeting")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _started(count: int) -> Iterator[list[_Member]]:
    """So many processes with a pipe to each; all of them are gone when this ends, however it ends."""
    context, members = get_context("spawn"), list[_Member]()
    try:
        for place in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_take_part, args=(theirs,), name=f"sealgate-train-{place}", daemon=True)
            process.start()
            theirs.close()
            members.append(_Member(process=process, pipe=ours))
        yield members
    finally:
        for one in members:
            one.pipe.close()
            one.process.kill()
        for one in members:
            one.process.join(PROCESS_JOIN_S)


def _as_used(rows: torch.Tensor, constants: PrivateSgd) -> torch.Tensor:
    return rows.to(constants.dtype) if rows.is_floating_point() else rows


def hollow(module: nn.Module) -> nn.Module:
    """A copy without numbers. torch would send tensors as memory that all processes then share, and train in."""
    made = copy.deepcopy(module)
    for one in _tensors(made):
        one.data = torch.empty(0, dtype=one.dtype)
    return made


def _tensors(module: nn.Module) -> Tensors:
    return (*module.parameters(), *module.buffers())


def _hand_over(member: _Member, task: Task, tensors: Tensors) -> None:
    """The task, then each tensor as bytes behind its type and shape."""
    pipe = member.pipe
    try:
        pipe.send(task)
        pipe.send([(one.dtype, tuple(one.shape)) for one in tensors])
        for one in tensors:
            pipe.send_bytes(one.detach().contiguous().numpy().tobytes())
    except OSError as error:
        raise _lost([member]) from error
    except Exception as error:  # whatever a module of the user's does about being copied
        raise TrainingError(
            f"this model cannot be sent to another process ({type(error).__name__}); leave --processes out",
            code="processes-unsupported",
        ) from error


def _heard(members: list[_Member], *, resumable: bool) -> Iterator[tuple[str, Any]]:
    """What the first process says, and nothing else; raises TrainingError as soon as any one fails or is gone."""
    pipes = [one.pipe for one in members]
    while True:
        ready = wait(pipes, timeout=PROCESS_SILENCE_S)
        if not ready:
            raise TrainingError(
                f"the training processes said nothing for {PROCESS_SILENCE_S // 60} minutes", code="process-lost"
            )
        for pipe in ready:
            assert isinstance(pipe, Connection)
            try:
                what, said = pipe.recv()
            except (EOFError, OSError) as error:
                raise _lost(members, resumable=resumable) from error
            if what == _FAILED:
                raise _lost(members, resumable=resumable) if said is None else TrainingError(said[1], code=said[0])
            if pipe is members[_FIRST].pipe:
                yield what, said
            else:
                pipes.remove(pipe)  # it is done, and may go


def _lost(members: list[_Member], *, resumable: bool = False) -> TrainingError:
    """One line about the process that went first: those that miss it end by themselves, with a status."""
    for one in members:
        one.process.join(PROCESS_JOIN_S)
    codes = [one.process.exitcode for one in members if one.process.exitcode]
    killed = sorted(code for code in codes if code < 0)
    how = f"was killed by signal {-killed[0]}" if killed else "failed"
    memory = " (out of memory?)" if killed and killed[0] == -signal.SIGKILL else ""
    advice = "start it again, or go on from its last checkpoint with --resume"
    return TrainingError(
        f"one of the training processes {how}{memory}; the run has ended"
        + (f": {advice}" if resumable else " and nothing of it is kept: start it again"),
        code="process-lost",
    )


def _take_part(pipe: Connection) -> None:
    """One of the processes, from its task to its last word. Interrupts are the first process' affair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # gloo greets its peers on the terminal
    os.dup2(nowhere, 2)
    said: tuple[str, str] | None = None
    try:
        _train(pipe, pipe.recv(), _received(pipe))
    except SealgateError as error:
        said = (error.code, str(error))
    except Exception:  # told without its words, which may be about rows
        said = None
    with contextlib.suppress(OSError):
        pipe.send((_FAILED, said))
    raise SystemExit(1)


def _received(pipe: Connection) -> list[torch.Tensor]:
    found = []
    for dtype, shape in pipe.recv():
        data = bytearray(pipe.recv_bytes())
        found.append(torch.frombuffer(data, dtype=dtype).view(shape) if data else torch.empty(shape, dtype=dtype))
    return found


def _train(pipe: Connection, task: Task, tensors: list[torch.Tensor]) -> NoReturn:
    module, first = task.module, task.place == _FIRST
    own = _tensors(module)
    for one, values in zip(own, tensors, strict=False):
        one.data = values
    inputs, (targets, *groups) = tuple(tensors[len(own) :][: task.inputs]), tensors[len(own) + task.inputs :]
    torch.set_num_threads(task.threads)
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    os.environ["GLOO_SOCKET_IFNAME"] = loopback  # otherwise the interface that the host's name stands for
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{task.meeting}",
        rank=task.place,
        world_size=task.count,
        timeout=timedelta(seconds=PROCESS_SILENCE_S),
    )
    del tensors, own, values  # a sharded module is to be the only one that holds its weights

    def tell(place: int, values: torch.Tensor) -> None:  # as numbers: torch would leave tensors in shared memory
        if first:
            pipe.send((_WEIGHTS, (place, values.numpy())))

    train_privately(
        module,
        inputs,
        targets,
        constants=task.constants,
        loss=task.loss,
        groups=groups[0] if groups else None,
        on_step=lambda step: pipe.send((_STEP, step)) if first else None,
        on_choice=lambda choice: pipe.send((_CHOSEN, choice)) if first else None,
        on_weights=tell,
        checkpoints=task.checkpoints,
        distributed=True,
        sharded=task.sharded,
    )
    for place, one in enumerate(one for one in module.parameters() if one.requires_grad):
        tell(place, one.detach())
    pipe.send((_DONE, None))
    leave()
