"""The seccomp programs, judged by an interpreter of their own, on both architectures; the numbers, by the headers."""

from __future__ import annotations

import errno
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_runtime.worker.sandbox import bpf, filters
from secure_runtime.worker.sandbox.syscalls import AUDIT_ARCH, HIGHEST_KNOWN, numbers_of

MACHINES = sorted(AUDIT_ARCH)
OWN_PID = 1
KILL, ALLOW, EPERM, ENOSYS, EROFS = "kill", "allow", "EPERM", "ENOSYS", "EROFS"
THREAD_FLAGS = 0x3D0F00  # of glibc's pthread_create, read off a trace


def interpret(program: bytes, *, arch: int, number: int, arguments: tuple[int, ...] = ()) -> str:
    """Classic BPF as the kernel runs it, for the instructions that may occur; anything else is an error."""
    padded = (*arguments, *([0] * 6))[:6]
    data = struct.pack("<IIQ6Q", number, arch, 0, *(value & 0xFFFFFFFFFFFFFFFF for value in padded))
    assert len(program) % 8 == 0
    assert len(program) // 8 <= 4096, "the kernel takes no longer filter"
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, k = code[at]
        at += 1
        if operation == 0x20:
            assert k % 4 == 0
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif operation == 0x54:
            accumulator &= k
        elif operation == 0x15:
            at += if_true if accumulator == k else if_false
        elif operation == 0x25:
            at += if_true if accumulator > k else if_false
        elif operation == 0x06:
            return {0x7FFF0000: ALLOW, 0x80000000: KILL}.get(k) or errno.errorcode[k & 0xFFFF]
        else:
            raise AssertionError(f"instruction {operation:#x}")


def verdict(rules: tuple[bpf.Rule, ...], machine: str, name: str, *arguments: int) -> str:
    program = filters.program_for(rules, machine=machine)
    return interpret(program, arch=AUDIT_ARCH[machine], number=numbers_of(machine)[name], arguments=arguments)


SEAL_ALLOWS = """
    munmap mremap mprotect madvise brk mlock mlock2 munlock futex sched_yield sched_getaffinity set_robust_list rseq
    set_tid_address membarrier getcpu clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times
    getrandom rt_sigreturn rt_sigprocmask rt_sigaction sigaltstack restart_syscall exit exit_group getpid gettid
    getppid getuid geteuid getgid getegid uname getrusage sysinfo poll ppoll close
"""

ONCE_ALLOWS = SEAL_ALLOWS
GPU_SEAL_ALLOWS = (
    SEAL_ALLOWS
    + """
    open openat ioctl memfd_create ftruncate fallocate pipe2 mmap read write pread64 lseek eventfd2 fstat stat lstat
    newfstatat statx access faccessat faccessat2 readlink mbind get_mempolicy set_mempolicy mincore
"""
)
ZYGOTE_ALLOWS = ONCE_ALLOWS + "wait4 timer_create timer_settime"

LOAD, SEAL = filters.load_rules(OWN_PID), filters.seal_rules(OWN_PID)
FORKING_LOAD, CHANNEL_SEAL = filters.load_rules(OWN_PID, forks=True), filters.seal_rules(OWN_PID, channel=True)
GPU_LOAD, GPU_SEAL = filters.load_rules(OWN_PID, gpus=True), filters.seal_rules(OWN_PID, gpus=True)
ZYGOTE, ONCE = filters.ZYGOTE_RULES, filters.ONCE_RULES
EVERY = {
    "load": LOAD,
    "seal": SEAL,
    "reaper": filters.REAPER_RULES,
    "forking load": FORKING_LOAD,
    "channel seal": CHANNEL_SEAL,
    "load with a GPU": GPU_LOAD,
    "seal with a GPU": GPU_SEAL,
    "zygote": ZYGOTE,
    "once": ONCE,
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("rules", EVERY.values(), ids=EVERY.keys())
def test_every_hostile_call_kills_in_every_stage(rules: tuple[bpf.Rule, ...], machine: str) -> None:
    for name in filters._HOSTILE:
        if name in numbers_of(machine):
            assert verdict(rules, machine, name) == KILL, name


@pytest.mark.parametrize("machine", MACHINES)
def test_the_seal_allows_exactly_this(machine: str) -> None:
    """A list written down a second time: adding to the filter means adding here, under somebody's eyes."""
    allowed = {name for name in numbers_of(machine) if verdict(SEAL, machine, name) == ALLOW}
    always = set(SEAL_ALLOWS.split())
    at_zero = {"prlimit64"}  # with all arguments zero it reads one's own limit
    assert allowed == (always | at_zero) & set(numbers_of(machine))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("recvfrom", (3,), ALLOW),
        ("recvfrom", (4,), EPERM),
        ("sendto", (3,), ALLOW),
        ("sendmsg", (3,), ALLOW),
        ("sendmsg", (0,), EPERM),
        ("recvmsg", (3,), EPERM),
        ("write", (1,), ALLOW),
        ("write", (5,), EPERM),
        ("read", (3,), ALLOW),
        ("read", (0,), EPERM),
        ("mmap", (0, 4096, 3, 0x22, -1, 0), ALLOW),
        ("mmap", (0, 4096, 1, 0x02, 3, 0), EPERM),
        ("clone", (THREAD_FLAGS,), ALLOW),
        ("clone", (THREAD_FLAGS | 0x400000,), ALLOW),
        ("clone", (17,), EPERM),
        ("clone", (THREAD_FLAGS & ~0x10000,), EPERM),
        ("clone", (THREAD_FLAGS & ~0x100,), EPERM),
        ("clone", (THREAD_FLAGS | 0x10000000,), EPERM),
        ("clone", (THREAD_FLAGS | 0x2000,), EPERM),
        ("clone3", (0,), ENOSYS),
        ("prctl", (15,), ALLOW),
        ("prctl", (4, 1), EPERM),
        ("prctl", (22, 2), EPERM),
        ("prlimit64", (0, 7, 0), ALLOW),
        ("prlimit64", (0, 7, 1 << 32), EPERM),
        ("prlimit64", (0, 7, 0x7FFF0000), EPERM),
        ("prlimit64", (2, 7, 0), EPERM),
        ("tgkill", (OWN_PID, 1, 6), ALLOW),
        ("tgkill", (2, 2, 9), EPERM),
        ("openat", (0, 0, 0), EPERM),
        ("newfstatat", (), EPERM),
        ("ioctl", (0, 0x5401), EPERM),
        ("socket", (1, 1, 0), EPERM),
        ("seccomp", (1, 0, 0), EPERM),
        ("dup", (3,), EPERM),
        ("fcntl", (3, 0), EPERM),
    ],
)
def test_the_seal_looks_at_arguments(machine: str, name: str, arguments: tuple[int, ...], expected: str) -> None:
    assert verdict(SEAL, machine, name, *arguments) == expected


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("openat", (-100, 0, 0), ALLOW),
        ("openat", (-100, 0, 0o2000000), ALLOW),
        ("openat", (-100, 0, 1), EROFS),
        ("openat", (-100, 0, 2), EROFS),
        ("openat", (-100, 0, 0o100), EROFS),
        ("openat", (-100, 0, 0o1000), EROFS),
        ("openat2", (), ENOSYS),
        ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0, 0x5412), EPERM),
        ("socket", (1, 1, 0), EPERM),
        ("socketpair", (1, 1, 0), EPERM),
        ("connect", (3,), EPERM),
        ("recvmsg", (3,), EPERM),
        ("seccomp", (1, 1), ALLOW),
        ("seccomp", (2, 0), EPERM),
        ("prlimit64", (0, 7), ALLOW),
        ("prlimit64", (99, 7), EPERM),
        ("kill", (1, 9), EPERM),
        ("clone", (17,), EPERM),
        ("memfd_create", (), EPERM),
        ("mknodat", (), EPERM),
        ("unlinkat", (), EPERM),
        ("newfstatat", (), ALLOW),
        ("prctl", (4, 1), EPERM),
    ],
)
def test_loading_looks_at_arguments(machine: str, name: str, arguments: tuple[int, ...], expected: str) -> None:
    assert verdict(LOAD, machine, name, *arguments) == expected


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("rules", "listed"),
    [(CHANNEL_SEAL, SEAL_ALLOWS), (ZYGOTE, ZYGOTE_ALLOWS), (ONCE, ONCE_ALLOWS), (GPU_SEAL, GPU_SEAL_ALLOWS)],
    ids=["channel seal", "zygote", "once", "GPU"],
)
def test_with_single_use_processes_or_a_gpu_exactly_this_is_allowed(
    rules: tuple[bpf.Rule, ...], listed: str, machine: str
) -> None:
    allowed = {name for name in numbers_of(machine) if verdict(rules, machine, name) == ALLOW}
    assert allowed == (set(listed.split()) | {"prlimit64"}) & set(numbers_of(machine))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("rules", [GPU_LOAD, GPU_SEAL], ids=["load", "seal"])
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("openat", (-100, 0, 0), ALLOW),
        ("openat", (-100, 0, 0o2000002), ALLOW),  # O_RDWR and O_CLOEXEC: Landlock says of what
        ("openat", (-100, 0, 1), "denied"),
        ("openat", (-100, 0, 0o102), "denied"),
        ("openat", (-100, 0, 0o1002), "denied"),
        ("openat", (-100, 0, 0o20000002), "denied"),  # O_TMPFILE makes a file without O_CREAT
        ("openat2", (), "denied"),
        ("ioctl", (9, 0xC020462A), ALLOW),  # NV_ESC_RM_CONTROL
        ("ioctl", (9, 0x30000001), ALLOW),  # UVM_INITIALIZE
        ("ioctl", (9, 0x30000003), "denied"),
        ("ioctl", (9, 37), ALLOW),  # of nvidia-uvm
        ("ioctl", (9, 0x5412), "denied"),  # TIOCSTI
        ("ioctl", (9, 0x8912), "denied"),  # SIOCGIFCONF
        ("ioctl", (9, 0x40086602), "denied"),  # FS_IOC_SETFLAGS
        ("recvmsg", (3,), "denied"),
        ("sendmsg", (4,), "denied"),
        ("dup", (3,), None),
        ("fcntl", (3, 3), ALLOW),
        ("fcntl", (3, 0), None),  # F_DUPFD
        ("socket", (1, 1, 0), "denied"),
        ("clone", (17,), "denied"),
        ("kill", (1, 9), "denied"),
    ],
)
def test_a_gpus_driver_is_asked_and_nothing_else(
    rules: tuple[bpf.Rule, ...], machine: str, name: str, arguments: tuple[int, ...], expected: str | None
) -> None:
    found = verdict(rules, machine, name, *arguments)
    if name == "sendmsg" and rules is GPU_LOAD:
        expected = ALLOW  # before the seal there is nothing to send to
    if expected is None:
        expected = ALLOW if rules is GPU_LOAD else "denied"
    assert (found if found == ALLOW else "denied") == expected, found


FORK = 0x01200011  # of glibc's fork(), read off a trace


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "zygote", "once"),
    [
        ("clone", (FORK,), ALLOW, EPERM),
        ("clone", (17,), EPERM, EPERM),
        ("clone", (FORK | 1 << 32,), EPERM, EPERM),
        ("clone", (FORK | 0x10000000,), EPERM, EPERM),
        ("clone", (FORK | 0x20000000,), EPERM, EPERM),
        ("clone", (FORK | 0x100,), EPERM, EPERM),
        ("clone", (FORK | 0x2000,), EPERM, EPERM),
        ("clone", (THREAD_FLAGS,), EPERM, EPERM),
        ("clone3", (0,), ENOSYS, ENOSYS),
        ("wait4", (-1,), ALLOW, EPERM),
        ("timer_create", (), ALLOW, EPERM),
        ("timer_settime", (), ALLOW, EPERM),
        ("seccomp", (1, 1), ALLOW, EPERM),
        ("seccomp", (1, 9), EPERM, EPERM),
        ("seccomp", (2, 1), EPERM, EPERM),
        ("prctl", (1, 9), ALLOW, EPERM),
        ("prctl", (1, 0), EPERM, EPERM),
        ("prctl", (4, 1), EPERM, EPERM),
        ("recvfrom", (3,), ALLOW, EPERM),
        ("recvfrom", (4,), EPERM, EPERM),
        ("sendto", (3,), ALLOW, EPERM),
        ("sendmsg", (3,), EPERM, EPERM),
        ("read", (3,), EPERM, EPERM),
        ("write", (1,), EPERM, EPERM),
        ("tgkill", (OWN_PID, OWN_PID, 9), EPERM, EPERM),
        ("kill", (1, 9), EPERM, EPERM),
        ("mmap", (0, 4096, 3, 0x21, -1, 0), ALLOW, ALLOW),
        ("mmap", (0, 4096, 1, 0x01, 3, 0), EPERM, EPERM),
        ("prlimit64", (0, 7, 0), ALLOW, ALLOW),
        ("prlimit64", (0, 7, 1 << 32), EPERM, EPERM),
    ],
)
def test_zygote_and_child_look_at_arguments(
    machine: str, name: str, arguments: tuple[int, ...], zygote: str, once: str
) -> None:
    assert (verdict(ZYGOTE, machine, name, *arguments), verdict(ONCE, machine, name, *arguments)) == (zygote, once)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_channel_adds_one_descriptor_to_the_seal_and_nothing_else(machine: str) -> None:
    for name in numbers_of(machine):
        for first in range(8):
            expected = ALLOW if first == 4 and name in ("recvfrom", "sendto") else verdict(SEAL, machine, name, first)
            assert verdict(CHANNEL_SEAL, machine, name, first) == expected, (name, first)
    assert verdict(CHANNEL_SEAL, machine, "clone", FORK) == EPERM


@settings(max_examples=300)
@given(machine=st.sampled_from(MACHINES), name=st.sampled_from(sorted(numbers_of("aarch64"))),
       arguments=st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 20), min_size=6, max_size=6))  # fmt: skip
def test_each_stage_allows_nothing_that_the_one_before_did_not(machine: str, name: str, arguments: list[int]) -> None:
    """Filters add up: what an earlier stage denies would not work in a later one, and nobody would know why."""
    chains = ((LOAD, SEAL), (FORKING_LOAD, CHANNEL_SEAL), (FORKING_LOAD, ZYGOTE), (ZYGOTE, ONCE), (GPU_LOAD, GPU_SEAL))
    for earlier, later in chains:
        if verdict(later, machine, name, *arguments) == ALLOW:
            assert verdict(earlier, machine, name, *arguments) == ALLOW, name


@pytest.mark.parametrize("machine", MACHINES)
def test_the_seal_allows_nothing_that_loading_did_not(machine: str) -> None:
    for name in numbers_of(machine):
        if verdict(SEAL, machine, name) == ALLOW:
            assert verdict(LOAD, machine, name) == ALLOW, name


@settings(max_examples=300)
@given(
    machine=st.sampled_from(MACHINES),
    arch=st.integers(0, 2**32 - 1),
    number=st.integers(0, 2**32 - 1) | st.integers(0, 600),
    arguments=st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6),
)
def test_any_call_gets_an_answer_and_foreign_interfaces_die(
    machine: str, arch: int, number: int, arguments: list[int]
) -> None:
    for rules in EVERY.values():
        program = filters.program_for(rules, machine=machine)
        if arch != AUDIT_ARCH[machine]:
            assert interpret(program, arch=arch, number=number, arguments=tuple(arguments)) == KILL
        own = interpret(program, arch=AUDIT_ARCH[machine], number=number, arguments=tuple(arguments))
        if number >= 0x40000000:
            assert own == KILL
        elif number > HIGHEST_KNOWN:
            assert own == ENOSYS
        elif number not in numbers_of(machine).values():
            assert own == EPERM


@settings(max_examples=300)
@given(machine=st.sampled_from(MACHINES), flags=st.integers(0, 2**32 - 1))
def test_clone_makes_threads_only_and_in_the_zygote_processes_only(machine: str, flags: int) -> None:
    answer = verdict(SEAL, machine, "clone", flags)
    a_thread = flags & 0x10F00 == 0x10F00 and flags & ~0x7D0F00 == 0
    assert answer == verdict(CHANNEL_SEAL, machine, "clone", flags) == (ALLOW if a_thread else EPERM)
    assert verdict(ZYGOTE, machine, "clone", flags) == (ALLOW if flags == FORK else EPERM)
    assert verdict(ONCE, machine, "clone", flags) == EPERM


def test_no_filter_kills_only_a_thread() -> None:
    """SECCOMP_RET_KILL_THREAD is zero: it would leave a process that neither answers nor ends."""
    for machine in MACHINES:
        for rules in EVERY.values():
            program = filters.program_for(rules, machine=machine)
            returned = {k for code, _, _, k in struct.iter_unpack("=HBBI", program) if code == 0x06}
            assert 0 not in returned


X86_HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
GENERIC_HEADER = Path("/usr/include/asm-generic/unistd.h")


def test_numbers_of_x86_64_are_those_of_the_headers() -> None:
    if not X86_HEADER.exists():
        pytest.skip(f"NOT TESTED: {X86_HEADER} is not installed")
    headers = {name: int(number) for name, number in re.findall(r"__NR_(\w+) (\d+)", X86_HEADER.read_text())}
    ours = numbers_of("x86_64")
    assert {name: number for name, number in ours.items() if headers.get(name, number) != number} == {}
    assert len(set(ours) & set(headers)) > 200


def test_numbers_of_aarch64_are_those_of_the_headers() -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not GENERIC_HEADER.exists() or compiler is None:
        pytest.skip(f"NOT TESTED: no {GENERIC_HEADER} or no compiler")
    source = "".join(
        f"#define {name}\n"
        for name in (
            "__ARCH_WANT_RENAMEAT",
            "__ARCH_WANT_NEW_STAT",
            "__ARCH_WANT_SET_GET_RLIMIT",
            "__ARCH_WANT_SYS_CLONE3",
            "__ARCH_WANT_MEMFD_SECRET",
        )
    )
    source += "#define __BITS_PER_LONG 64\n#include <asm-generic/unistd.h>\n"
    names = sorted(numbers_of("aarch64"))
    source += "".join(f"\nWANTED {name} __NR_{name}" for name in names)
    out = subprocess.run([compiler, "-E", "-P", "-"], input=source, capture_output=True, text=True, check=True).stdout
    headers = {name: int(number) for name, number in re.findall(r"WANTED (\w+) (\d+)", out)}
    assert {name: number for name, number in numbers_of("aarch64").items() if headers.get(name, number) != number} == {}
    assert len(headers) > 180


@pytest.mark.parametrize("machine", MACHINES)
def test_a_number_stands_for_one_call(machine: str) -> None:
    numbers = list(numbers_of(machine).values())
    assert len(numbers) == len(set(numbers))
    assert max(numbers) <= HIGHEST_KNOWN


def test_every_name_in_a_rule_is_in_the_table() -> None:
    known = set(numbers_of("x86_64")) | set(numbers_of("aarch64"))
    for rules in EVERY.values():
        assert {name for rule in rules for name in rule.calls} - known == set()


def test_an_unknown_machine_has_no_table() -> None:
    assert numbers_of("riscv64") == {}
