"""The zygote and its single-use processes: what the attacker's list reaches in each, in every situation, and that none
of them outlives its time or its parent."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sealgate.protocol.frames import Layer
from secure_runtime.worker.sandbox import offspring
from tests.secure_runtime.sandbox import test_red_team as red_team
from tests.secure_runtime.sandbox.test_red_team import LOUD, MEMORY, QUIET, context

__all__ = ["context"]  # a fixture: real targets for the attempts

SITUATIONS = ["here", "user", "user-no-namespaces", "root-no-admin", "root-no-namespaces"]
ATTACKER = Path(__file__).with_name("attacker.py")
ATTEMPTS = red_team.SOURCE.read_text().split('if __name__ == "__main__"')[0]

MAKE = """
import mmap
from secure_runtime.worker import sandbox
from secure_runtime.worker.sandbox import offspring
worker = os.getpid()
shared = mmap.mmap(-1, 1 << 16)
def zygote(task):
    child = os.fork()
    if child == 0:
        try:
            task(offspring.become_zygote(worker))
            os._exit(0)
        except BaseException as error:
            text = repr(error).encode()
            shared[:len(text)] = text
            os._exit(99)
    return child
def heard(channel):
    data = channel.recv(1 << 16)
    return json.loads(data) if data else shared[:].rstrip(b"\\0").decode()
"""
SEAL = """
zygote(lambda channel: (channel.sendall(json.dumps(offspring.try_out()).encode()), offspring.wait_for(channel)))
channel = offspring.keep_workers_end()
sandbox.seal(report, zygote=heard(channel))
"""


def payload(*parts: str) -> str:
    return "\n".join(("import os", ATTEMPTS, MAKE, *parts))


# What is reported ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("situation", SITUATIONS)
def test_both_layers_close_in_every_situation_and_the_worker_loses_nothing(
    boot_as: Callable[..., Any], situation: str
) -> None:
    ended = boot_as(
        situation,
        payload(SEAL, "tell([report.layers, report.probes, report.missing(profile='container'), os.getpid()])"),
        single_use=True,
    )
    layers, probes, missing, pid = ended.must()
    tried = len(probes)
    assert layers["seccomp-zygote"] == {"state": "on", "detail": f"it may fork; {tried} other attempts were denied"}
    assert layers["seccomp-once"]["state"] == "on"
    assert layers["seccomp-once"]["detail"] == f"{tried} attempts were denied; a child that hung was ended"
    assert "fork" in layers["seccomp-load"]["detail"], "what loading may is said"
    assert {entry["state"] for entry in probes.values()} == {"on"}, "the worker itself can no more than without"
    assert missing == []
    assert ended.host["seccomp"].state == "on"
    assert ended.host["zygote"] == Layer(state="on", detail="as the worker itself")
    if situation.endswith("no-namespaces"):
        assert ended.sealed_pid == pid, "the host looks at the worker, not at its zygote"


def test_the_host_sees_a_zygote_that_is_not_closed(boot: Callable[..., Any]) -> None:
    """It forked, and forgot its stage: a filter is missing."""
    forget = "if os.fork() == 0:\n    sock.recv(1)\n    os._exit(0)\nsandbox.seal(report)"
    ended = boot(payload(forget, "tell('up')"), single_use=True)
    assert ended.must() == "up"
    assert ended.host["zygote"] == Layer(state="failed", detail="lacks seccomp")


def test_a_probe_that_gets_through_in_a_child_is_reported(boot: Callable[..., Any]) -> None:
    """The same code with a stage that forgets to deny something."""
    told = boot(payload("""
from secure_runtime.worker.sandbox import bpf, filters
loose = (bpf.Rule(("dup", "chdir"), bpf.ALLOW), *filters.ONCE_RULES)
filters.ONCE_RULES = loose
filters.ZYGOTE_RULES = (bpf.Rule(("dup", "chdir"), bpf.ALLOW), *filters.ZYGOTE_RULES)
zygote(lambda channel: channel.sendall(json.dumps(offspring.try_out()).encode()))
tell(heard(offspring.keep_workers_end()))
"""), single_use=True).must()  # fmt: skip
    assert told["seccomp-zygote"] == {"state": "failed", "detail": "got through: duplicate-descriptor"}
    # A child has no descriptor that could be duplicated: what answers is not the filter, and that is said as well.
    assert told["seccomp-once"]["state"] == "failed"
    assert "duplicate-descriptor" in told["seccomp-once"]["detail"]


def test_a_child_that_hangs_is_noticed_when_nothing_ends_it(boot: Callable[..., Any]) -> None:
    told = boot(payload("""
offspring._HANG_S = 0.2
offspring._end_after = lambda lifetime_ns: None
zygote(lambda channel: channel.sendall(json.dumps(offspring.try_out()).encode()))
tell(heard(offspring.keep_workers_end()))
"""), single_use=True).must()  # fmt: skip
    assert told["seccomp-once"] == {"state": "failed", "detail": "got through: outlive-deadline"}


# The attacker's list -------------------------------------------------------------------------------------------------

IN_ZYGOTE = """
def attack(channel):
    channel.sendall(json.dumps(run({names!r}, {context!r})).encode())
zygote(attack)
tell(heard(offspring.keep_workers_end()))
"""
IN_CHILD = """
def attack(channel):
    def inside():
        text = json.dumps(run({names!r}, {context!r})).encode()
        shared[:len(text)] = text
    status = offspring._run(inside, lifetime_ns=60_000_000_000)
    channel.sendall(shared[:].rstrip(b"\\0") if status == 0 else json.dumps(status).encode())
zygote(attack)
tell(heard(offspring.keep_workers_end()))
"""
IN_WORKER = SEAL + "\ntell(run({names!r}, {context!r}))\n"
BY_DESIGN = {
    "zygote": {"fork": "it is there to fork"},
    "child": {},
    "worker": {"stray_descriptors": "the channel to the zygote; the next test looks at it"},
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("who", ["zygote", "child", "worker"])
def test_every_quiet_attempt_is_refused_to_each(
    boot_as: Callable[..., Any], context: dict[str, Any], situation: str, who: str
) -> None:
    source = {"zygote": IN_ZYGOTE, "child": IN_CHILD, "worker": IN_WORKER}[who]
    told = boot_as(
        situation,
        payload(source.format(names=QUIET, context=context)),
        single_use=True,
        memory_limit_bytes=MEMORY,
        models_dir=str(Path(context["model"]).parent),
    ).must()
    assert isinstance(told, dict), told
    assert set(told) == set(QUIET)
    got_through = {name: words for name, words in told.items() if not words.startswith("refused")}
    if situation.endswith("no-namespaces") and who == "worker":
        got_through.pop("thread_bomb", None)  # there the memory limit is what bounds threads
    assert set(got_through) == set(BY_DESIGN[who]), got_through
    assert Path(context["model"]).read_text() == "weights"


OPEN_ONES = """
import select
def open_ones():
    found = []
    for descriptor in range(64):
        poller = select.poll()
        poller.register(descriptor, 0)
        if not dict(poller.poll(0)).get(descriptor, 0) & select.POLLNVAL:
            found.append(descriptor)
    return found
def look(channel):
    channel.sendall(json.dumps(offspring.try_out()).encode())
    mine = open_ones()
    def inside():
        text = json.dumps([mine, open_ones()]).encode()
        shared[:len(text)] = text
    offspring._run(inside, lifetime_ns=60_000_000_000)
    channel.sendall(shared[:].rstrip(b"\\0"))
zygote(look)
channel = offspring.keep_workers_end()
sandbox.seal(report, zygote=heard(channel))
tell([open_ones(), *heard(channel)])
"""


def test_each_has_only_the_descriptors_that_it_needs(boot: Callable[..., Any]) -> None:
    worker, zygote, child = boot(payload(OPEN_ONES), single_use=True).must()
    assert worker == [0, 1, 2, 3, 4]
    assert zygote == [0, 1, 2, 3], "the host's socket is not among them: three is the channel"
    assert child == []


EACH_LOUD = """
def one(name):
    def attack(channel):
        if {in_child}:
            status = offspring._run(lambda: run([name], {context!r}), lifetime_ns=60_000_000_000)
            os._exit(0 if os.WIFSIGNALED(status) and os.WTERMSIG(status) == 31 else 98)
        run([name], {context!r})
        os._exit(97)
    _, status = os.waitpid(zygote(attack), 0)
    if {in_child}:
        return status == 0
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == 31
tell({{name: one(name) for name in {names!r}}})
"""


@pytest.mark.parametrize("situation", ["here", "user", "user-no-namespaces"])
@pytest.mark.parametrize("in_child", [False, True], ids=["zygote", "child"])
def test_each_loud_attempt_ends_who_makes_it(
    boot_as: Callable[..., Any], context: dict[str, Any], situation: str, in_child: bool
) -> None:
    source = EACH_LOUD.format(names=LOUD, context=context, in_child=in_child)
    told = boot_as(situation, payload(source), single_use=True).must()
    assert {name for name, killed in told.items() if not killed} == set()
    assert len(told) == len(LOUD)


# Time and death ------------------------------------------------------------------------------------------------------

STUBBORN = """
import ctypes, signal, time
def stubborn():
    # Everything that would keep a process alive which can be kept alive.
    for number in signal.valid_signals() - {9, 19}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    for call, *arguments in (("timer_settime", 0, 0, bytes(32), None), ("timer_settime", 1, 0, bytes(32), None)):
        from secure_runtime.worker.sandbox import kernel
        shared[0] += kernel.attempt(call, *arguments) == -1
    while True:
        time.sleep(1)
def task(channel):
    began = time.monotonic()
    status = offspring._run(stubborn, lifetime_ns=300_000_000)
    took = time.monotonic() - began
    channel.sendall(json.dumps([status, took, shared[0]]).encode())
zygote(task)
tell(heard(offspring.keep_workers_end()))
"""


def test_a_child_cannot_put_off_its_deadline(boot: Callable[..., Any]) -> None:
    status, took, denied = boot(payload(STUBBORN), single_use=True).must()
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert took > 0.25, "it had its time; and nothing but the deadline ends it at all"
    assert denied == 2, "the timer calls are gone with the last stage"


HANGING = """
import time
def task(channel):
    child = os.fork()
    if child == 0:
        offspring.become_single_use(os.getppid(), lifetime_ns=120_000_000_000)
        shared[0] = 1
        while True:
            time.sleep(1)
    while not shared[0]:
        pass
    channel.sendall(b'"up"')
    while channel.fileno() >= 0:
        offspring.wait_for(channel)
        try:
            if not channel.recv(1):
                os._exit(0)
        except BlockingIOError:
            pass
zygote(task)
channel = offspring.keep_workers_end()
heard(channel)
"""


def _descendants(pid: int, count: int) -> list[psutil.Process]:
    found = psutil.Process(pid).children(recursive=True)
    assert len(found) == count
    return found


def _all_end(watched: list[int]) -> bool:
    ended = [bool(select.select([descriptor], [], [], 30)[0]) for descriptor in watched]
    for descriptor in watched:
        os.close(descriptor)
    return all(ended)


@pytest.mark.parametrize("victim", ["worker", "zygote"])
def test_none_outlives_its_parent(start: Callable[..., Any], victim: str) -> None:
    worker = start(payload(HANGING, "tell('up')", "channel.recv(1)"), single_use=True)
    with worker.sock as sock:
        assert sock.recv(64)
        sealed = worker.sealed_pid()
        zygote, child = _descendants(sealed, 2)
        watched = [os.pidfd_open(process.pid) for process in (zygote, child)]
        os.kill(sealed if victim == "worker" else zygote.pid, signal.SIGKILL)
        assert _all_end(watched)
        worker.kill()
        worker.wait()


def test_a_worker_whose_zygote_died_finds_out(boot: Callable[..., Any]) -> None:
    told = boot(payload("zygote(lambda channel: os._exit(3))", "channel = offspring.keep_workers_end()",
                        "tell(channel.recv(10) == b'')"), single_use=True).must()  # fmt: skip
    assert told is True


@pytest.mark.root
@pytest.mark.parametrize("situation", ["root", "user", "user-no-namespaces", "root-no-namespaces"])
@pytest.mark.parametrize("depth", [1, 2], ids=["zygote", "child"])
def test_the_same_user_cannot_look_into_either(boot_as: Callable[..., Any], situation: str, depth: int) -> None:
    ended = boot_as(situation, payload(HANGING, "tell('up')"), single_use=True, attacker=ATTACKER, depth=depth)
    ended.must()
    process, plain = ended.attacked
    assert set(plain.values()) == {"reached"}, "the attacks do not even work on a plain process"
    assert {name: answer for name, answer in process.items() if answer not in ("EACCES", "EPERM")} == {}


def test_the_last_stage_is_assembled_once() -> None:
    assert offspring.once_program() is offspring.once_program()


def test_without_the_setting_nothing_forks_while_loading(boot: Callable[..., Any]) -> None:
    told = boot("""
import os
try:
    told = os.fork()
    if told == 0:
        os._exit(0)
except PermissionError:
    told = "refused"
tell(told)
""").must()
    assert told == "refused"
