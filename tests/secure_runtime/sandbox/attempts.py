"""What an attacker with code execution in a worker would try. Test material: runs inside the sandbox and outside it.

As a payload inside a worker every attempt must fail; as a plain process (`python attempts.py CONTEXT NAME...`) every
attempt must reach its goal, or else its failure inside proves nothing. An attempt raises OSError when it is refused and
returns a few words when it got somewhere.

QUIET attempts are answered with an error number; LOUD ones end the process by SIGSYS.
"""

import array
import contextlib
import ctypes
import encodings.idna  # noqa: F401
import errno
import fcntl
import json
import mmap
import os
import platform
import resource
import select
import signal
import socket
import subprocess
import sys
import threading

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
X86 = platform.machine() == "x86_64"
HERE = b".sealgate-attempt"
SPACE = ctypes.create_string_buffer(4096)

# name: (x86_64, aarch64), written down again from the kernel's headers, so that a wrong number in the sandbox's own
# table cannot hide itself.
CALLS = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "execve": (59, 221),
    "execveat": (322, 281),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "syslog": (103, 116),
    "settimeofday": (170, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "sethostname": (170 if X86 else 161, 161),
    "personality": (135, 92),
    "fanotify_init": (300, 262),
    "landlock_create_ruleset": (444, 444),
    "process_madvise": (440, 440),
    "memfd_create": (319, 279),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "prlimit64": (302, 261),
    "clone": (56, 220),
    "inotify_init1": (294, 26),
    "mknodat": (259, 33),
}
if X86:
    CALLS["settimeofday"] = (164, 170)


def call(name, *arguments):
    number = CALLS[name][0 if X86 else 1]
    passed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    passed += [ctypes.c_long(0)] * (6 - len(passed))
    result = LIBC.syscall(ctypes.c_long(number), *passed)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


# Answered with an error ----------------------------------------------------------------------------------------------


def tcp_connect(context):
    with socket.create_connection(("127.0.0.1", context["port"]), timeout=2) as connection:
        connection.sendall(b"leak")
    return "payload sent over TCP"


def udp_send(context):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"leak", ("127.0.0.1", context["port"]))
    return "payload sent over UDP"


def abstract_socket(context):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("\0" + context["abstract"])
    return "connected"


def path_socket(context):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(context["socket_path"])
    return "connected"


def netlink_socket(_context):
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
    return "opened"


def vsock_socket(_context):
    socket.socket(getattr(socket, "AF_VSOCK", 40), socket.SOCK_STREAM).close()
    return "opened"


def read_passwd(_context):
    descriptor = os.open("/etc/passwd", os.O_RDONLY)
    try:
        return os.read(descriptor, 4).decode()
    finally:
        os.close(descriptor)


def read_secret(context):
    descriptor = os.open(context["secret"], os.O_RDONLY)
    try:
        return os.read(descriptor, 100).decode()
    finally:
        os.close(descriptor)


def list_folders(context):
    return str(len(os.listdir(context["folder"])))


def parents_environment(context):
    descriptor = os.open(f"/proc/{context['parent']}/environ", os.O_RDONLY)
    try:
        return str(len(os.read(descriptor, 4096)))
    finally:
        os.close(descriptor)


def overwrite_model(context):
    descriptor = os.open(context["model"], os.O_WRONLY | os.O_TRUNC)
    os.write(descriptor, b"poisoned")
    os.close(descriptor)
    return "model replaced"


def write_anywhere(context):
    for folder in ("/tmp", "/dev/shm", "/var/tmp", ".", context["folder"]):
        with contextlib.suppress(OSError):
            name = os.path.join(folder, HERE.decode())
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600))
            os.unlink(name)
            return f"wrote in {folder}"
    raise OSError(errno.EPERM, "nowhere")


def kernel_devices(_context):
    for device in ("/dev/mem", "/dev/kmsg", "/dev/kvm", "/dev/null"):
        with contextlib.suppress(OSError):
            os.close(os.open(device, os.O_RDWR))
            return f"opened {device}"
    raise OSError(errno.EPERM, "none")


def make_node(_context):
    call("mknodat", -100, HERE, 0o010600, 0)
    os.unlink(HERE)
    return "made"


def run_program(_context):
    return str(subprocess.run(["/bin/true"], check=False).returncode)


def fork(_context):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return "forked"


def clone_new_user(_context):
    child = call("clone", 0x10000000 | signal.SIGCHLD)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return "cloned into a user namespace"


def memory_file(_context):
    os.close(call("memfd_create", b"stage2", 0))
    return "made"


def signal_parent(context):
    os.kill(context["parent"], 0)
    return "parent can be signalled"


def signal_thread_of_parent(context):
    call("tgkill", context["parent"], context["parent"], 0)
    return "a thread of the parent can be signalled"


def limits_of_parent(context):
    return str(resource.prlimit(context["parent"], resource.RLIMIT_NOFILE))


def raise_own_limits(_context):
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    except ValueError:  # what Python makes of EPERM
        raise OSError(errno.EPERM, "setrlimit") from None
    if hard == 0:
        raise OSError(errno.EPERM, "no more than zero")
    return "limits changed"


def become_root(_context):
    os.setresuid(os.getuid(), os.geteuid(), -1)
    return "setresuid answered"


def dumpable_again(_context):
    if LIBC.prctl(4, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    return "dumpable"


def terminal_input(context):
    for descriptor in (context.get("terminal", 0), 0, 3):
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, 0x5413, b"\0" * 8)  # TIOCGWINSZ: any terminal call but the one allowed
            return "spoke to a terminal"
    raise OSError(errno.EPERM, "no terminal")


def shared_memory(_context):
    segment = call("shmget", 0, 4096, 0o600)
    LIBC.shmctl(segment, 0, None)
    return "segment made"


def message_queue(_context):
    queue = call("msgget", 0, 0o600)
    LIBC.msgctl(queue, 0, None)
    return "queue made"


def watch_files(_context):
    os.close(call("inotify_init1", 0))
    return "watching"


def allocate_over_limit(context):
    pages = mmap.mmap(-1, context["over_limit"])
    pages.close()
    return "allocated"


def thread_bomb(context):
    stop, started = threading.Event(), []
    try:
        while len(started) < context["thread_bomb"]:
            thread = threading.Thread(target=stop.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        raise OSError(errno.EAGAIN, f"after {len(started)} threads") from None
    finally:
        stop.set()
        for thread in started:
            thread.join()
    return f"{len(started)} threads"


def stray_descriptors(context):
    poller = select.poll()
    for descriptor in range(4, 4096):
        poller.register(descriptor, 0)
        if not dict(poller.poll(0)).get(descriptor, 0) & select.POLLNVAL:
            return f"descriptor {descriptor} is open"
        poller.unregister(descriptor)
    raise OSError(errno.EBADF, "none")


def duplicate_descriptor(_context):
    os.close(os.dup(0))
    return "duplicated"


def smuggled_descriptors(_context):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 5))])
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(20))
    return f"{len(ancillary)} messages with descriptors"


QUIET = (
    tcp_connect,
    udp_send,
    abstract_socket,
    path_socket,
    netlink_socket,
    vsock_socket,
    read_passwd,
    read_secret,
    list_folders,
    parents_environment,
    overwrite_model,
    write_anywhere,
    kernel_devices,
    make_node,
    run_program,
    fork,
    clone_new_user,
    memory_file,
    signal_parent,
    signal_thread_of_parent,
    limits_of_parent,
    raise_own_limits,
    become_root,
    dumpable_again,
    terminal_input,
    shared_memory,
    message_queue,
    watch_files,
    allocate_over_limit,
    thread_bomb,
    stray_descriptors,
    duplicate_descriptor,
    smuggled_descriptors,
)

# Answered by death ---------------------------------------------------------------------------------------------------


class Span(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def read_memory_of_parent(context):
    mine = ctypes.create_string_buffer(8)
    local, remote = Span(ctypes.addressof(mine), 8), Span(context["address"], 8)
    call("process_vm_readv", context["parent"], ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    return mine.raw.decode("latin-1")


def trace_parent(context):
    call("ptrace", 0x4206, context["parent"], 0, 0)  # PTRACE_SEIZE: does not stop it; ends with this process
    return "tracing"


def steal_descriptor_of_parent(context):
    handle = call("pidfd_open", context["parent"], 0)
    os.close(call("pidfd_getfd", handle, 0, 0))
    os.close(handle)
    return "stolen"


def replace_program(_context):
    os.execv("/bin/true", ["true"])


def run_from_memory(_context):
    """Without the file: the filter must not get as far as looking at it."""
    call("execveat", 0, b"", None, None, 0x1000)


def new_mount(_context):
    call("mount", b"none", b"/nowhere", b"tmpfs", 0, None)


def new_namespaces(_context):
    call("unshare", 0x10000000)
    return "user namespace"


def x32_call(_context):
    LIBC.syscall(ctypes.c_long(0x40000000 | 39))
    return "answered"


def call_of_32_bit(_context):
    """getpid through the 32-bit interface, whose numbers mean other calls: mov eax, 20; int 0x80; ret."""
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\x53\xcd\x80\x5b\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return str(ctypes.CFUNCTYPE(ctypes.c_int)(address)())


def _bare(name, *arguments):
    """The call with arguments that the kernel itself refuses: to be refused by it, it must be reached."""

    def attempt(_context):
        call(name, *arguments)
        return "answered"

    attempt.__name__ = f"call_{name}"
    return attempt


LOUD = (
    read_memory_of_parent,
    trace_parent,
    steal_descriptor_of_parent,
    replace_program,
    run_from_memory,
    new_mount,
    new_namespaces,
    *((x32_call, call_of_32_bit) if X86 else ()),
    _bare("process_vm_writev", 0, None, 0, None, 0, 0),
    _bare("process_madvise", -1, None, 0, 0, 0),
    _bare("kcmp", 0, 0, 99, 0, 0),
    _bare("pidfd_send_signal", -1, 0, None, 0),
    _bare("bpf", 9999, None, 0),
    _bare("perf_event_open", None, 0, -1, -1, 0),
    _bare("userfaultfd", 0x7FFFFFFF),
    _bare("io_uring_setup", 0, None),
    _bare("init_module", None, 0, None),
    _bare("finit_module", -1, None, 0),
    _bare("delete_module", None, 0),
    _bare("kexec_load", 0, 99, None, 0xFFFF),
    _bare("reboot", 0, 0, 0, None),
    _bare("swapon", None, 0),
    _bare("umount2", None, 0),
    _bare("pivot_root", None, None),
    _bare("chroot", None),
    _bare("open_tree", -1, None, 0),
    _bare("move_mount", -1, None, -1, None, 0),
    _bare("fsopen", None, 0),
    _bare("mount_setattr", -1, None, 0, None, 0),
    _bare("setns", -1, 0),
    _bare("keyctl", 9999, 0, 0, 0, 0),
    _bare("add_key", None, None, None, 0, 0),
    _bare("request_key", None, None, None, 0),
    _bare("acct", b"/nowhere"),
    _bare("quotactl", 0, None, 0, None),
    _bare("open_by_handle_at", -1, None, 0),
    _bare("name_to_handle_at", -1, None, None, None, 0),
    _bare("syslog", 99, None, 0),
    _bare("settimeofday", ctypes.c_void_p(1), None),
    _bare("clock_settime", 99, None),
    _bare("adjtimex", None),
    _bare("sethostname", None, -1),
    _bare("personality", 0xFFFFFFFF),
    _bare("fanotify_init", 0xFFFFFFFF, 0),
    _bare("landlock_create_ruleset", None, 0, 0),
)
NAMED = {attempt.__name__: attempt for attempt in (*QUIET, *LOUD)}


def run(names, context):
    """{name: "reached: ..."} or {name: "refused: ERRNO"}."""
    told = {}
    for name in names:
        try:
            told[name] = f"reached: {NAMED[name](context)}"
        except OSError as error:
            # An error of the attempt itself (an import that is no longer possible) would prove nothing.
            told[name] = f"refused: {errno.errorcode.get(error.errno, 'other')} {error.strerror}"
        except Exception as error:
            told[name] = f"broken: {type(error).__name__} {error}"
    return told


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(sys.argv[2:], json.loads(sys.argv[1]))))
