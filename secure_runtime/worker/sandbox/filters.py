"""The seccomp stages: what a worker may ask of the kernel while it loads models, and while it serves.

    load      while models load
    seal      while serving; one that offers single-use processes has one descriptor more, to the zygote
    zygote    the process that forks a process for each single-use request: it holds no key and opens nothing
    once      such a process: it computes, and ends

Filters add up and never come off: with single-use processes offered, "load" must allow what "zygote" allows. The
worker itself loses it again with "seal".

Everything is denied unless listed. How a denied call ends is chosen by what it means:

- killed (the whole process): calls that neither our code nor any library we use has a reason to make, and that only an
  attacker makes: trace or read another process, exec, mount, namespaces, keyrings, modules, io_uring, bpf, perf,
  userfaultfd, the 32-bit and x32 interfaces. The host sees the worker die of SIGSYS, and an attacker gets one guess.
- EPERM: everything else. Libraries try harmless things (a socket, a file, a child process for `uname -p`, setting a
  scheduler) and go on without; killing for these would turn a lazy import into an outage. Denial probes are of this
  kind, because a probe must survive its own denial.
- ENOSYS: calls whose flags stand in memory, where a filter cannot read them (clone3, openat2), and calls younger than
  our table. The C library then takes the older call, whose flags can be read.
- EROFS: opening for writing, because that is what a read-only file system says.

Trusts: nothing. Never: allows a call after the seal that can create a descriptor or a mapping of a file (but for the
driver of a GPU: gpus.py), nor, but for the zygote's fork, a process.
"""

from __future__ import annotations

import errno
import os

from secure_runtime.worker.sandbox import gpus as gpu
from secure_runtime.worker.sandbox.bpf import ALLOW, KILL, Condition, Rule, assemble, deny
from secure_runtime.worker.sandbox.syscalls import AUDIT_ARCH, HIGHEST_KNOWN, NUMBERS, numbers_of

SOCKET = 3
"""The one descriptor beside /dev/null (0, 1, 2): the worker's to the host, the zygote's to the worker."""
CHANNEL = 4
"""The worker's to the zygote, where there is one."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_HOSTILE = _words(
    """
    ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_open pidfd_getfd
    pidfd_send_signal execve execveat bpf perf_event_open userfaultfd io_uring_setup io_uring_enter
    io_uring_register init_module finit_module delete_module create_module kexec_load kexec_file_load reboot
    swapon swapoff mount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick
    mount_setattr unshare setns keyctl add_key request_key iopl ioperm modify_ldt vhangup acct quotactl
    quotactl_fd nfsservctl open_by_handle_at name_to_handle_at lookup_dcookie syslog settimeofday clock_settime
    clock_adjtime adjtimex sethostname setdomainname personality uselib _sysctl fanotify_init
    landlock_create_ruleset landlock_add_rule landlock_restrict_self
    """
)

# Memory, time, signals, locks and questions about oneself: needed by any threaded program, harmless in both stages.
_ALWAYS = _words(
    """
    munmap mremap mprotect madvise brk mlock mlock2 munlock futex sched_yield sched_getaffinity set_robust_list
    rseq set_tid_address membarrier getcpu clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday
    time times getrandom rt_sigreturn rt_sigprocmask rt_sigaction sigaltstack restart_syscall exit exit_group
    getpid gettid getppid getuid geteuid getgid getegid uname getrusage sysinfo poll ppoll close
    """
)

# What the interpreter, the dynamic loader and torch need to load from a read-only file system.
_LOADING = _words(
    """
    mmap read readv pread64 write writev lseek fstat stat lstat newfstatat statx statfs fstatfs access faccessat
    faccessat2 getdents64 readlink readlinkat getcwd fcntl dup close_range mincore msync select pselect6
    epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd2 sched_getscheduler sched_getparam mbind
    get_mempolicy set_mempolicy getpgrp getpgid getresuid getresgid getgroups capget getrlimit setrlimit
    arch_prctl recvfrom sendto sendmsg shutdown getsockopt getsockname getpeername
    """
)

_THREAD_FLAGS = 0x7D0F00  # what pthread_create asks for: glibc and musl
_THREAD_NEEDED = 0x010F00  # CLONE_VM, FS, FILES, SIGHAND and THREAD
_THREADS = (
    Rule(("clone3",), deny(errno.ENOSYS)),
    Rule(
        ("clone",),
        ALLOW,
        (Condition(0, 0, mask=0xFFFFFFFF ^ _THREAD_FLAGS), Condition(0, _THREAD_NEEDED, mask=_THREAD_NEEDED)),
    ),
)
_NO_THREADS = (Rule(("clone3",), deny(errno.ENOSYS)),)

_FORK = 0x01200011  # CLONE_CHILD_SETTID, CLONE_CHILD_CLEARTID and SIGCHLD: glibc's fork(), and nothing else
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
_SET_MODE_FILTER, _TSYNC = 1, 1
# A timer can signal only the process that made it; the fork's deadline is one.
_FORKING = (
    Rule(("clone",), ALLOW, (Condition(0, _FORK, whole=True),)),
    Rule(("wait4", "timer_create", "timer_settime"), ALLOW),
    Rule(("prctl",), ALLOW, (Condition(0, _PR_SET_PDEATHSIG), Condition(1, _SIGKILL))),
    Rule(("seccomp",), ALLOW, (Condition(0, _SET_MODE_FILTER), Condition(1, _TSYNC))),
)
_PR_SET_NAME, _PR_GET_NAME = 15, 16
_SETTLED = tuple(Rule(("prctl",), ALLOW, (Condition(0, option),)) for option in (_PR_SET_NAME, _PR_GET_NAME))

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_FIOCLEX, _FIONBIO, _TCGETS = 0x5451, 0x5421, 0x5401
_OPENING = (
    Rule(("openat2",), deny(errno.ENOSYS)),
    Rule(("open",), ALLOW, (Condition(1, 0, mask=_WRITING),)),
    Rule(("openat",), ALLOW, (Condition(2, 0, mask=_WRITING),)),
    Rule(("open", "openat"), deny(errno.EROFS)),
    *(Rule(("ioctl",), ALLOW, (Condition(1, request),)) for request in (_FIOCLEX, _FIONBIO, _TCGETS)),
)
_PR_GETTERS = (3, 21, 23, 27, 39)  # dumpable, seccomp, bounding set, securebits, no-new-privileges
_MAP_ANONYMOUS = 0x20
_OWN_MEMORY = Rule(("mmap",), ALLOW, (Condition(3, _MAP_ANONYMOUS, mask=_MAP_ANONYMOUS),))
# Reading one's own limits: the C library does, to place a thread's stack.
_OWN_LIMITS = Rule(("prlimit64",), ALLOW, (Condition(0, 0), Condition(2, 0, whole=True)))


def _own_signals(own_pid: int) -> Rule:
    """abort() and raise() signal one's own threads; nobody else's."""
    return Rule(("tgkill",), ALLOW, (Condition(0, own_pid),))


def load_rules(own_pid: int, *, forks: bool = False, gpus: bool = False) -> tuple[Rule, ...]:
    """Stage 1: reading, threads, memory. `seccomp` and `prctl` getters stay open so that stage 2 can be put on."""
    return (
        Rule(_HOSTILE, KILL),
        *(gpu.LOAD_RULES if gpus else ()),
        *(_FORKING if forks else ()),
        *_THREADS,
        Rule((*_ALWAYS, *_LOADING), ALLOW),
        # 0 is the caller: never another process, which without a process-id namespace could be named.
        Rule(("prlimit64", "sched_setaffinity"), ALLOW, (Condition(0, 0),)),
        Rule(("seccomp",), ALLOW, (Condition(0, 1),)),
        *_OPENING,
        *_SETTLED,
        *(Rule(("prctl",), ALLOW, (Condition(0, option),)) for option in _PR_GETTERS),
        _own_signals(own_pid),
    )


def seal_rules(own_pid: int, *, channel: bool = False, gpus: bool = False) -> tuple[Rule, ...]:
    """Stage 2: anonymous memory, threads, clocks, and the one socket. `recvmsg` is left out: it accepts descriptors.

    With `channel`, also the socket to the zygote; with `gpus`, what a GPU's driver needs (gpus.py).
    """
    on_socket = (Condition(0, SOCKET),)
    return (
        Rule(_HOSTILE, KILL),
        *(gpu.SEAL_RULES if gpus else ()),
        *_THREADS,
        Rule(_ALWAYS, ALLOW),
        _OWN_MEMORY,
        Rule(("recvfrom", "sendto", "sendmsg", "shutdown", "getsockopt"), ALLOW, on_socket),
        Rule(("read", "write"), ALLOW, on_socket),
        *((Rule(("recvfrom", "sendto"), ALLOW, (Condition(0, CHANNEL),)),) if channel else ()),
        *(Rule(("write",), ALLOW, (Condition(0, null),)) for null in (1, 2)),
        *_SETTLED,
        _OWN_LIMITS,
        _own_signals(own_pid),
    )


ZYGOTE_RULES = (
    Rule(_HOSTILE, KILL),
    *_FORKING,
    *_NO_THREADS,
    Rule(_ALWAYS, ALLOW),
    _OWN_MEMORY,
    _OWN_LIMITS,
    Rule(("recvfrom", "sendto"), ALLOW, (Condition(0, SOCKET),)),
    *_SETTLED,
)
"""The zygote: it forks, waits, and speaks with the worker; no thread, no signal."""

ONCE_RULES = (
    Rule(_HOSTILE, KILL),
    *_NO_THREADS,
    Rule(_ALWAYS, ALLOW),
    _OWN_MEMORY,
    _OWN_LIMITS,
    *_SETTLED,
)
"""A process for one request: memory and clocks. No descriptor, no thread, no process, no signal, not even to itself."""

REAPER_RULES = (
    Rule(_HOSTILE, KILL),
    Rule((*_ALWAYS, "wait4", "waitid"), ALLOW),
    _OWN_MEMORY,
)
"""The process that waits for the worker's process-id namespace: it may wait and end."""


def program_for(rules: tuple[Rule, ...], *, machine: str) -> bytes:
    """The assembled filter for an architecture of the table; raises KeyError for another."""
    return assemble(
        rules,
        numbers=numbers_of(machine),
        arch=AUDIT_ARCH[machine],
        highest_known=HIGHEST_KNOWN,
        default=deny(errno.EPERM),
        younger=deny(errno.ENOSYS),
    )


def known_machine() -> bool:
    """Whether the table has this machine's architecture."""
    return bool(NUMBERS)
