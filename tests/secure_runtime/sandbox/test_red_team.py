"""The attacker has code execution in the worker. Every attempt of attempts.py is first shown to reach its goal without
the sandbox, then refused inside it: after the seal, and already while models load, in every situation.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("attempts.py")
SITUATIONS = ["here", "user", "user-no-namespaces", "root-no-admin", "root-no-namespaces"]
SIGSYS_SEEN = 128 + signal.SIGSYS
MEMORY = 1 << 30


def _attempts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("attempts", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


QUIET = [attempt.__name__ for attempt in _attempts().QUIET]
LOUD = [attempt.__name__ for attempt in _attempts().LOUD]

# These three are about what a worker has, not about what it asks for: a plain process has no stray descriptor unless
# given one, and the limits that stop the other two are the worker's own. The control below gives it what it needs.
NEEDS_SETTING = {"stray_descriptors", "allocate_over_limit", "thread_bomb"}

# What the running kernel may have been built without; then being answered at all is all that the control can show.
OPTIONAL = {
    "call_bpf", "call_perf_event_open", "call_userfaultfd", "call_io_uring_setup", "call_kexec_load",
    "call_init_module", "call_finit_module", "call_delete_module", "call_keyctl", "call_add_key", "call_request_key",
    "call_fanotify_init", "call_acct", "call_quotactl", "call_swapon", "call_kcmp", "call_landlock_create_ruleset",
    "call_of_32_bit", "x32_call", "call_open_by_handle_at", "call_name_to_handle_at", "call_process_madvise",
}  # fmt: skip


@pytest.fixture(scope="module")
def context(shared_folder: Path) -> Iterator[dict[str, Any]]:
    """Real targets: listeners, a secret, a model, a terminal, and this process as the parent whose memory is read."""
    name = f"sealgate-attempts-{os.getpid()}"
    folder = Path(tempfile.mkdtemp(prefix="sealgate-target-"))
    folder.chmod(0o755)
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as by_path:
        tcp.bind(("127.0.0.1", 0))
        abstract.bind("\0" + name)
        by_path.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o777)
        for listener in (tcp, abstract, by_path):
            listener.listen(64)
        leader, terminal = pty.openpty()
        content = ctypes.create_string_buffer(b"in-heap!")
        yield {
            "parent": os.getpid(),
            "port": tcp.getsockname()[1],
            "abstract": name,
            "socket_path": str(folder / "socket"),
            "secret": str(shared_folder / "secret"),
            "folder": str(shared_folder),
            "model": str(shared_folder / "models" / "weights"),
            "address": ctypes.addressof(content),
            "over_limit": 2 * MEMORY,
            "thread_bomb": 600,
            "terminal": terminal,
        }
        os.close(leader)
        os.close(terminal)
    (folder / "socket").unlink()
    folder.rmdir()


def _outside(names: list[str], context: dict[str, Any], **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", str(SOURCE), json.dumps(context), *names],
        capture_output=True,
        text=True,
        check=False,
        cwd=context["folder"],
        pass_fds=(context["terminal"],),
        **more,
    )


@pytest.fixture(scope="module")
def outside(context: dict[str, Any]) -> dict[str, str]:
    """What the quiet attempts reach in a plain process of the present user."""
    done = _outside(QUIET, context)
    assert done.returncode == 0, done.stderr
    Path(context["model"]).write_text("weights")
    told: dict[str, str] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("name", QUIET)
def test_control_it_succeeds_without_a_sandbox(outside: dict[str, str], name: str) -> None:
    if os.geteuid() != 0 and outside[name].startswith("refused"):
        pytest.skip(f"NOT SHOWN: {name} is refused to an ordinary user even without a sandbox: {outside[name]}")
    assert outside[name].startswith("reached"), outside[name]


@pytest.fixture(scope="module")
def inside(boot_as: Callable[..., Any], context: dict[str, Any]) -> Callable[[str, str], dict[str, str]]:
    """What the quiet attempts reach in a worker, by situation and stage; each pair is booted once."""
    known: dict[tuple[str, str], dict[str, str]] = {}

    def ask(situation: str, stage: str) -> dict[str, str]:
        if (situation, stage) not in known:
            seal = "\nfrom secure_runtime.worker import sandbox\nsandbox.seal(report)\n"
            payload = SOURCE.read_text().split('if __name__ == "__main__"')[0]
            payload += seal if stage == "serving" else ""
            payload += f"\ntell(run({QUIET!r}, {context!r}))"
            known[situation, stage] = boot_as(situation, payload, memory_limit_bytes=MEMORY,
                                              models_dir=str(Path(context["model"]).parent)).must()  # fmt: skip
        return known[situation, stage]

    return ask


LOADING_MAY = {
    "duplicate_descriptor": "opens nothing new; the interpreter does it while it starts",
    "stray_descriptors": "asked after the seal, when all but four are closed for good",
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("stage", ["loading", "serving"])
def test_every_quiet_attempt_is_refused(
    inside: Callable[[str, str], dict[str, str]], outside: dict[str, str], context: dict[str, Any],
    situation: str, stage: str,
) -> None:  # fmt: skip
    told = inside(situation, stage)
    assert set(told) == set(outside)
    got_through = {name: words for name, words in told.items() if not words.startswith("refused")}
    if stage == "loading":
        got_through = {name: words for name, words in got_through.items() if name not in LOADING_MAY}
    if situation.endswith("no-namespaces"):
        # Alone with its user only in a user namespace: elsewhere the memory limit is what bounds threads.
        got_through.pop("thread_bomb", None)
    assert got_through == {}
    assert Path(context["model"]).read_text() == "weights"


@pytest.mark.parametrize("situation", ["here", "user-no-namespaces"])
def test_serving_refuses_by_filter_and_not_by_accident(
    inside: Callable[[str, str], dict[str, str]], situation: str
) -> None:
    told = inside(situation, "serving")
    by_limit = {"allocate_over_limit": "ENOMEM", "thread_bomb": "EAGAIN", "stray_descriptors": "EBADF"}
    if situation.endswith("no-namespaces"):
        del by_limit["thread_bomb"]
    for name, words in told.items():
        if name in by_limit:
            assert words.split()[1] == by_limit[name], f"{name}: {words}"
        elif name != "thread_bomb":
            assert words.split()[1] == "EPERM", f"{name}: {words}"


@pytest.fixture(scope="module")
def loud_outside(context: dict[str, Any]) -> dict[str, str]:
    """What the loud attempts are answered in a plain process; that it lives to tell is half of the answer."""
    last = "new_namespaces"  # it costs root its privilege, and with it the meaning of the others
    done = _outside([name for name in LOUD if name not in ("replace_program", last)] + [last], context)
    assert done.returncode == 0, done.stderr
    told: dict[str, str] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("name", [name for name in LOUD if name != "replace_program"])
def test_control_a_loud_attempt_is_answered_without_a_sandbox(loud_outside: dict[str, str], name: str) -> None:
    answer = loud_outside[name]
    assert answer.startswith(("reached", "refused"))
    if os.geteuid() == 0 and name not in OPTIONAL:
        assert "EPERM" not in answer
        assert "ENOSYS" not in answer
    if name == "read_memory_of_parent":
        assert answer == "reached: in-heap!"


def test_control_a_plain_process_can_become_another_program(context: dict[str, Any]) -> None:
    done = _outside(["replace_program"], context)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("situation", ["here", "user", "user-no-namespaces"])
@pytest.mark.parametrize("stage", ["loading", "serving"])
@pytest.mark.parametrize("name", LOUD)
def test_a_loud_attempt_ends_the_worker(
    boot_as: Callable[..., Any], context: dict[str, Any], name: str, stage: str, situation: str
) -> None:
    """By SIGSYS and not by an error number; the host sees the end of the socket, never a hang."""
    payload = SOURCE.read_text().split('if __name__ == "__main__"')[0]
    if stage == "serving":
        payload += "\nfrom secure_runtime.worker import sandbox\nsandbox.seal(report)\n"
    ended = boot_as(situation, payload + f"tell(run([{name!r}], {context!r}))")
    assert ended.told is None
    assert ended.code in (SIGSYS_SEEN, -signal.SIGSYS)  # through the reaper, or without one


def test_a_loud_attempt_on_another_thread_ends_the_whole_worker(boot: Callable[..., Any]) -> None:
    """SECCOMP_RET_KILL_THREAD would leave a zombie without an end of file."""
    ended = boot("""
import ctypes, threading
from secure_runtime.worker import sandbox
go = threading.Event()
def attack():
    go.wait()
    ctypes.CDLL(None).unshare(0x10000000)
thread = threading.Thread(target=attack)
thread.start()  # before the seal: TSYNC must cover it
sandbox.seal(report)
go.set()
thread.join()
tell("alive")
""")
    assert ended.told is None
    assert ended.code == SIGSYS_SEEN


def test_no_descriptor_of_the_host_is_inherited(start: Callable[..., Any], tmp_path: Path) -> None:
    secret = os.open(tmp_path / "secret", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(secret, True)
    try:
        worker = start("""
import os
open_ones = []
for descriptor in range(256):
    try:
        os.fstat(descriptor)
        open_ones.append(descriptor)
    except OSError:
        pass
tell(open_ones)
""")
        with worker.sock:
            told = json.loads(worker.sock.recv(4096)[4:])
        worker.wait()
    finally:
        os.close(secret)
    assert told == [0, 1, 2, 3]


def test_descriptors_sent_over_the_socket_do_not_arrive(start: Callable[..., Any], tmp_path: Path) -> None:
    """recv() drops them; after the seal there is no recvmsg, and no number that one could take."""
    worker = start("""
import select
from secure_runtime.worker import sandbox
sandbox.seal(report)
sock.sendall(b"r")
sock.recv(1)
poller = select.poll()
found = []
for descriptor in range(4, 32):
    poller.register(descriptor, 0)
    if not dict(poller.poll(0)).get(descriptor, 0) & select.POLLNVAL:
        found.append(descriptor)
    poller.unregister(descriptor)
tell(found)
""")
    with worker.sock as sock, (tmp_path / "secret").open("w") as secret:
        assert sock.recv(1) == b"r"
        socket.send_fds(sock, [b"x"], [secret.fileno()] * 5)
        told = json.loads(sock.recv(4096)[4:])
    worker.wait()
    assert told == []


def test_a_crash_leaves_no_core(start: Callable[..., Any]) -> None:
    worker = start("import os, resource; tell(resource.getrlimit(resource.RLIMIT_CORE)); os.abort()")
    with worker.sock as sock:
        assert json.loads(sock.recv(4096)[4:]) == [0, 0]
        sock.sendall(b"go")
    assert worker.wait() in (128 + signal.SIGABRT, 128 + signal.SIGSEGV)


def test_writable_and_executable_memory_is_possible_and_is_reported_so(boot: Callable[..., Any]) -> None:
    """The one item of the attacker's list that stays open: torch's kernels are compiled while it runs."""
    told = boot("""
import mmap
from secure_runtime.worker import sandbox
sandbox.seal(report)
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
tell(report.layers["write-xor-execute"])
""").must()
    assert told["state"] == "disabled"


def test_the_view_holds_nothing_but_code_and_bundles(boot_as: Callable[..., Any], shared_folder: Path) -> None:
    told = boot_as("here", """
import os
def names(path):
    try:
        return sorted(os.listdir(path))
    except PermissionError:
        return "refused"
seen = os.path.exists
beside, checkout = os.path.dirname(plan["models_dir"]), plan["checkout"]
tell({"root": names("/"), "dev": names("/dev"), "etc": names("/etc"), "home": names("/root"),
      "bundles": names(plan["models_dir"]), "proc": seen("/proc/self"), "sys": seen("/sys"),
      "secret": seen(beside + "/secret"),
      "git": seen(checkout + "/.git"), "tests": seen(checkout + "/tests"), "passwd": seen("/etc/passwd")})
""", profile="strict", models_dir=str(shared_folder / "models"), checkout=str(SOURCE.parents[3])).must()  # fmt: skip
    assert told["bundles"] == ["weights"]
    for place in ("root", "dev", "etc", "home"):
        assert told[place] == "refused"
    assert not any(told[place] for place in ("proc", "sys", "secret", "git", "tests", "passwd"))


def test_spawning_from_another_thread_is_refused(start: Callable[..., Any]) -> None:
    seen: list[BaseException] = []

    def attempt() -> None:
        try:
            start("tell(1)")
        except RuntimeError as error:
            seen.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert len(seen) == 1
