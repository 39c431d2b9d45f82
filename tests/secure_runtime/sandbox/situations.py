"""Starts a payload worker the way another kind of machine would: run by the tests as a process of its own, as root.

    situations.py SITUATION     plan and boot file as JSON on standard input, one JSON line on standard output

    root                 root with every capability
    user                 an ordinary user, user namespaces allowed
    user-no-namespaces   an ordinary user whom the machine's seccomp profile forbids namespaces (as Docker's does)
    root-no-admin        root with Docker's default capabilities
    root-no-namespaces   the same, and namespaces forbidden

With `attacker` in the order, that program is run beside the live worker, as the worker's own user, against the worker
or, by `depth`, against its child or grandchild.

Everything happens in a mount namespace of its own, in which Python can be reached by anybody even if it lives in
root's home. Only tests start it.
"""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
USER = 12345


def main() -> None:
    from secure_runtime.host import inspect, spawn
    from secure_runtime.worker.sandbox import bpf, filters, kernel
    from secure_runtime.worker.sandbox.syscalls import MACHINE

    situation, order = sys.argv[1], json.load(sys.stdin)
    kernel.call("unshare", kernel.CLONE_NEWNS)
    kernel.mount(b"none", b"/", b"", kernel.MS_REC | kernel.MS_PRIVATE)
    make_reachable([sys.base_prefix, sys.prefix, str(ROOT)])
    if situation.startswith("user"):
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    elif situation != "root":
        docker = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)
        for capability in range(64):
            if capability not in docker:
                kernel.attempt("prctl", kernel.PR_CAPBSET_DROP, capability, 0, 0, 0)
        kernel.set_capabilities(sum(1 << capability for capability in docker))
    if situation.endswith("no-namespaces"):
        new = 0x7E020000  # every namespace flag but that of time
        rules = (
            *(bpf.Rule(("unshare",), bpf.deny(errno.EPERM), (bpf.Condition(0, f, mask=f),)) for f in flags(new)),
            bpf.Rule(("clone3",), bpf.deny(errno.ENOSYS)),
            *(bpf.Rule(("clone",), bpf.deny(errno.EPERM), (bpf.Condition(0, f, mask=f),)) for f in flags(new)),
            bpf.Rule(("mount", "pivot_root", "open_tree", "setns"), bpf.deny(errno.EPERM)),
        )
        allow = filters.assemble(
            rules,
            numbers=filters.NUMBERS,
            arch=filters.AUDIT_ARCH[MACHINE],
            highest_known=0x3FFFFFFF,
            default=bpf.ALLOW,
            younger=bpf.ALLOW,
        )
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        bpf.install(allow)
    worker = spawn._start(
        Path(order["boot"]), json.dumps(order["plan"]).encode(), python=sys.executable, environment=spawn._ENVIRONMENT
    )
    worker.sock.settimeout(60)
    data = b""
    while more := worker.sock.recv(1 << 20):
        data += more
        if len(data) > 4 and data[4:].endswith(b"\n"):
            break
    host = {name: [layer.state, layer.detail] for name, layer in inspect.read_layers(worker.sealed_pid()).items()}
    sealed = worker.sealed_pid()
    attacked = attack(order["attacker"], descendant(sealed, order["depth"])) if "attacker" in order else None
    worker.sock.close()
    told = {"data": data.decode("latin-1"), "host": host, "code": worker.wait(), "attacked": attacked, "sealed": sealed}
    print(json.dumps(told))


def descendant(pid: int, depth: int) -> int:
    """The process itself, its only child, or that one's only child."""
    for _ in range(depth):
        (pid,) = (int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return pid


def attack(program: str, worker: int) -> object:
    """Let another process of the worker's user attack the worker, and a plain process of that user to compare."""
    user = os.stat(f"/proc/{worker}").st_uid
    as_user = {"user": user, "group": user, "extra_groups": []} if os.geteuid() == 0 else {}
    plain = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "import sys; print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **as_user,
    )
    with plain:
        plain.stdout.readline()
        command = [sys.executable, "-I", "-S", program, str(worker), str(plain.pid)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, **as_user)
        plain.stdin.close()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def flags(mask: int) -> list[int]:
    return [1 << bit for bit in range(32) if mask >> bit & 1]


def make_reachable(paths: list[str]) -> None:
    """Cover each folder that others may not enter by one that shows only what is needed."""
    from secure_runtime.worker.sandbox import kernel

    closed: dict[str, list[str]] = {}
    for path in paths:
        for folder in [str(parent) for parent in Path(path).parents][::-1]:
            if not os.stat(folder).st_mode & 0o001:
                closed.setdefault(folder, []).append(path)
                break
    for folder, needed in closed.items():
        trees = [(path, kernel.clone_tree(path, 0)) for path in needed]
        kernel.mount(b"none", folder.encode(), b"tmpfs", 0, b"mode=0755")
        for path, tree in trees:
            os.makedirs(path, exist_ok=True)
            kernel.attach_tree(tree, path)
            os.close(tree)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
