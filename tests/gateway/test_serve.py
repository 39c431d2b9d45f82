"""The commands as they are run: real processes, with a runtime that speaks the frames and does nothing else."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import threading
from http.client import HTTPException, HTTPSConnection
from pathlib import Path

import httpx
import pytest

from gateway.serve import serve
from gateway.supervise import _Probe, supervise
from policy.decide import load_policy
from sealgate.ambient import monotonic_ns
from sealgate.cli import main
from sealgate.deployment import open_deployment
from sealgate.errors import ConfigurationError, SealgateError
from tests.gateway.conftest import Running

# Stands in for `sealgate`: the real gateway, and a runtime that says what the file STATE/runtime-says holds.
PROGRAM = """
import asyncio, json, os, sys
from pathlib import Path
command, state = sys.argv[1], Path(sys.argv[2])
if command == "gateway":
    from sealgate.cli import main
    sys.exit(main(sys.argv[1:]))
from sealgate.protocol import frames
says = json.loads((state / "runtime-says").read_text())
if "exit" in says:
    sys.exit(says["exit"])
state_frame = frames.RuntimeState(
    ready=says["ready"], detail="as told", log_state="ok", log="l", key_configs=b"", models=(),
    policy_digest=says["policy"], assurance="software", profile="dev", degraded=True,
)
async def serve(reader, writer):
    for part in frames.encode_frame(state_frame):
        writer.write(part)
    await reader.read()
async def run():
    (state / "run").mkdir(exist_ok=True)
    await asyncio.start_unix_server(serve, state / "run" / "runtime.sock")
    (state / "runtime-pid").write_text(str(os.getpid()))
    await asyncio.Event().wait()
asyncio.run(run())
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def settled(deployment):
    """The deployment on a port of its own."""
    path = deployment.root / "deployment.toml"
    port = free_port()
    assert "port = 8443" in path.read_text()
    path.write_text(path.read_text().replace("port = 8443", f"port = {port}"))
    return open_deployment(deployment.root)


def says(deployment, **what):
    what = {"ready": True, "policy": load_policy(deployment.policy).digest} | what
    (deployment.root / "runtime-says").write_text(json.dumps(what))
    program = deployment.root / "program.py"
    program.write_text(PROGRAM)
    return (sys.executable, str(program))


@pytest.fixture
def no_longer(monkeypatch):
    """`supervise` waits for the first word of the runtime as long as a busy machine needs, and then no longer."""
    heard, ask = threading.Event(), _Probe.ready

    def ready(probe):
        found = ask(probe)
        if "as told" in str(probe):
            heard.set()
        return found

    monkeypatch.setattr(_Probe, "ready", ready)
    monkeypatch.setattr("gateway.supervise.monotonic_ns", lambda: monotonic_ns() + heard.is_set() * 3600 * 10**9)


def answer_of(deployment, path="/health/live"):
    context = ssl.create_default_context(cafile=deployment.pki / "ca.pem")
    connection = HTTPSConnection("localhost", deployment.settings.gateway.port, context=context, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def gone(pid):
    """Ended, if not yet fetched by whoever is the parent of orphans here."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


# gateway -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_the_gateway_command_serves_and_stops_in_order(settled, host, workers):
    path = settled.root / "deployment.toml"
    path.write_text(path.read_text().replace("[gateway]\n", f"[gateway]\nworkers = {workers}\n"))
    assert open_deployment(settled.root).settings.gateway.workers == workers
    process = subprocess.Popen(
        [sys.executable, "-m", "sealgate", "gateway", str(settled.root)], stderr=subprocess.PIPE, text=True
    )
    try:
        Running.until(lambda: answer_of(settled, "/health/ready") == 200)
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    events = [json.loads(line)["event"] for line in errors.splitlines()]
    assert events[0] == "listening"
    assert "runtime-state" in events


def test_workers_of_a_killed_gateway_do_not_go_on_listening(settled, host):
    path = settled.root / "deployment.toml"
    path.write_text(path.read_text().replace("[gateway]\n", "[gateway]\nworkers = 2\n"))
    process = subprocess.Popen([sys.executable, "-m", "sealgate", "gateway", str(settled.root)])
    try:
        Running.until(lambda: answer_of(settled, "/health/ready") == 200)
    finally:
        process.kill()
        process.wait()
    Running.until(lambda: answer_of(settled) is None)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_proxys_socket_is_served_beside_tls_and_gone_afterwards(settled, host, workers):
    path, local = settled.root / "deployment.toml", settled.root / "run" / "gateway.sock"
    more = f'[gateway]\nworkers = {workers}\nunix_socket = "run/gateway.sock"\n'
    path.write_text(path.read_text().replace("[gateway]\n", more))
    process = subprocess.Popen(
        [sys.executable, "-m", "sealgate", "gateway", str(settled.root)], stderr=subprocess.PIPE, text=True
    )
    try:
        Running.until(lambda: answer_of(settled, "/health/ready") == 200)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(local))) as client:
            for _ in range(4):
                assert client.get("http://localhost/health/live", headers={"Connection": "close"}).status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    addresses = [line["address"] for line in map(json.loads, errors.splitlines()) if line["event"] == "listening"]
    assert addresses == [f"127.0.0.1:{settled.settings.gateway.port}", "run/gateway.sock"]
    assert not local.exists()


def test_a_deployment_that_is_wrong_is_said_in_one_line(settled, capsys):
    (settled.tokens / "jwks.json").write_text("{}")
    assert main(["gateway", str(settled.root)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("sealgate: ")
    assert "jwks.json" in said
    assert said.count("\n") == 1


def test_an_address_in_use_is_said_in_one_line(settled):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settled.settings.gateway.port))
        taken.listen()
        with pytest.raises(ConfigurationError, match="is another gateway running"):
            serve(settled)


# serve ---------------------------------------------------------------------------------------------------------------


def test_serve_starts_both_says_when_ready_and_stops_both(settled, capfd):
    program = says(settled)
    ready_file = settled.root / "ready"
    precious = settled.root / "precious"
    precious.write_text("mine")
    (settled.root / "ready.new").symlink_to(precious)  # as somebody might who shares the folder
    reading, writing = os.pipe()
    done = []
    main_thread = threading.get_ident()

    def stop_when_ready():
        done.append(os.read(reading, 100))
        done.append(ready_file.read_text())
        done.append(answer_of(settled, "/health/ready"))
        signal.pthread_kill(main_thread, signal.SIGTERM)

    threading.Thread(target=stop_when_ready).start()
    code = supervise(settled, ready_file=ready_file, ready_descriptor=writing, program=program)
    os.close(reading)
    assert code == 0
    assert done == [b"ready\n", "https://localhost:8443\n", 200]
    assert not ready_file.exists()
    assert precious.read_text() == "mine"
    assert answer_of(settled) is None
    assert gone(int((settled.root / "runtime-pid").read_text()))
    said = capfd.readouterr().out.splitlines()
    assert said[0].startswith("sealgate: starting")
    assert said[1].startswith("sealgate: ready after")
    assert said[-1] == "sealgate: stopped"


def test_serve_does_not_take_another_service_for_its_own(settled, capfd):
    """A second `serve` of a deployment must not say ready because the first answers, nor take its file away."""
    program = says(settled)
    ready_file = settled.root / "ready"
    ready_file.write_text("of the first one")
    with socket.socket() as first:
        first.bind(("127.0.0.1", settled.settings.gateway.port))
        first.listen()
        with pytest.raises(ConfigurationError, match="already; is this deployment being served"):
            supervise(settled, ready_file=ready_file, program=program)
    assert ready_file.read_text() == "of the first one"
    assert not (settled.root / "runtime-pid").exists()
    assert capfd.readouterr().out == ""


def test_a_ready_file_without_a_folder_is_said_before_anything_starts(settled):
    with pytest.raises(ConfigurationError, match="folder that exists"):
        supervise(settled, ready_file=settled.root / "missing" / "ready", program=says(settled))
    assert not (settled.root / "runtime-pid").exists()


def test_a_ready_file_that_a_killed_service_left_does_not_speak_for_the_next(settled, no_longer):
    (settled.root / "ready").write_text("of one that was killed")
    with pytest.raises(SealgateError, match=r"not ready after 120 s: .*as told"):
        supervise(settled, ready_file=settled.root / "ready", program=says(settled, ready=False))
    assert not (settled.root / "ready").exists()


def test_when_the_runtime_ends_the_gateway_is_stopped_too(settled, capfd):
    program = says(settled)

    def kill_when_ready():
        Running.until(lambda: answer_of(settled, "/health/ready") == 200)
        os.kill(int((settled.root / "runtime-pid").read_text()), signal.SIGKILL)

    threading.Thread(target=kill_when_ready).start()
    with pytest.raises(SealgateError, match="the runtime was ended by SIGKILL"):
        supervise(settled, program=program)
    assert answer_of(settled) is None


def test_a_runtime_that_does_not_start_is_said(settled, capfd):
    program = says(settled, exit=3)
    with pytest.raises(SealgateError, match="the runtime ended with exit code 3"):
        supervise(settled, program=program)
    assert answer_of(settled) is None


def test_a_runtime_that_never_gets_ready_is_said_with_its_reason(settled, capfd, no_longer):
    program = says(settled, ready=False)
    with pytest.raises(SealgateError, match=r"not ready after 120 s: .*as told"):
        supervise(settled, program=program)
    assert gone(int((settled.root / "runtime-pid").read_text()))


def test_children_do_not_outlive_a_killed_parent(settled):
    program = says(settled)
    script = (
        "from pathlib import Path; import sys\n"
        "from gateway.supervise import supervise\n"
        "from sealgate.deployment import open_deployment\n"
        f"supervise(open_deployment(Path(sys.argv[1])), program={program!r})\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(settled.root)], stdout=subprocess.DEVNULL)
    Running.until(lambda: answer_of(settled, "/health/ready") == 200)
    parent.kill()
    parent.wait()
    Running.until(lambda: answer_of(settled) is None)
    Running.until(lambda: gone(int((settled.root / "runtime-pid").read_text())))


# init, token ---------------------------------------------------------------------------------------------------------


def test_init_and_token_on_the_command_line(tmp_path, capsys):
    state = tmp_path / "state"
    assert main(["init", str(state), "--audience", "localhost:9443", "--profile", "dev"]) == 0
    said = capsys.readouterr().out
    assert "localhost:9443" in said
    assert "localhost/sealgate" in said
    assert str(state / "client") in said
    assert "127.0.0.1 port 9443" in said
    assert open_deployment(state).settings.runtime.require_audit
    assert main(["init", str(state)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["init", str(state), "--profile", "dev", "--overwrite"]) == 0
    assert f"{state}.replaced-" in capsys.readouterr().out
    out = tmp_path / "token"
    arguments = ["token", str(state), "--tenant", "clinic", "--subject", "alice", "--purpose", "treatment"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count(".") == 2
    assert main([*arguments, "--out", str(out)]) == 0
    assert out.stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().out == ""
    assert main([*arguments[:3], "nobody", *arguments[4:]]) == 1


def test_what_init_says_can_be_pasted_into_a_shell(tmp_path, capsys):
    state = tmp_path / "a state; with marks"
    assert main(["init", str(state), "--profile", "dev"]) == 0
    train, serve_it = (shlex.split(line) for line in capsys.readouterr().out.splitlines()[-2:])
    assert train[3:] == ["--out", str(state / "models"), "--key", str(state / "publisher.key")]
    assert serve_it == ["sealgate", "serve", str(state)]


@pytest.mark.parametrize("command", ["init", "serve", "gateway", "token"])
def test_help_is_there_without_the_server_packages(command):
    """`sealgate --help` must work in a base install: command modules import nothing heavy."""
    script = (
        "import sys\n"
        "for name in ('litestar', 'uvicorn', 'jwt', 'cedarpy', 'sqlalchemy', 'torch'): sys.modules[name] = None\n"
        "import gateway.commands as commands, argparse\n"
        f"command = commands.{command.upper()}\n"
        "parser = argparse.ArgumentParser(); command.configure(parser); print(parser.format_help(), command.summary)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "STATE" in done.stdout
