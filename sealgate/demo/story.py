"""The story that `sealgate demo` tells: from private training to an audited, encrypted answer, in eight acts.

Everything in it is real: patients, training, processes, TLS, refusals. It uses the commands and
the client library, nothing else. Trusts: this machine. Never: pretends; if a step does not hold, the demo fails.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from sealgate.client.errors import ServiceRefused
from sealgate.client.session import Session
from sealgate.client.transport import open_trust, tls_context
from sealgate.demo.stage import Narrator, Server, free_port, sealgate, sealgate_fails
from sealgate.errors import SealgateError

_CONFIG = Path(__file__).with_name("breast_cancer.toml")
_MODEL = "breast-cancer"
_PURPOSE = "treatment"
_ROWS = 8


@dataclass(frozen=True)
class _Stage:
    """Where the story takes place."""

    state: Path
    narrator: Narrator

    @property
    def trust(self) -> Path:
        return self.state / "client" / "trust.toml"

    @property
    def bundle(self) -> Path:
        return self.state / "models" / _MODEL

    @property
    def heldout(self) -> Path:
        return self.state / "heldout.csv"

    def session(self, token: str, *, purpose: str = _PURPOSE, outer: httpx.BaseTransport | None = None) -> Session:
        return Session(self.trust, purpose=purpose, token=token, outer=outer, trust_env=False)


def tell_story(*, state: Path | None, keep: bool) -> int:
    """Tell it; returns 0, or raises SealgateError where it does not hold."""
    chosen = Path(tempfile.mkdtemp(prefix="sealgate-demo-")) if state is None else state
    stage = _Stage(chosen.absolute() / "deployment", Narrator())
    # torch makes a folder of this name for compiled code wherever it is imported: not beside the demo's own.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(chosen.absolute() / "deployment" / "run" / "torch")
    try:
        _deployment(stage)
        _training(stage)
        _bundle(stage)
        stage.narrator.act("Start the runtime host, the sandboxed worker and the gateway (TLS 1.3, loopback)")
        with Server(stage.state) as server:
            _say_isolation(stage)
            _clients(stage)
            _refusals(stage)
            _auditor(stage, chosen)
            _goodbye(stage, keep=keep)
            if keep:
                print("\nThe deployment keeps running; press Ctrl-C to stop it.", flush=True)
                server.wait()
    finally:
        if not keep and state is None:
            shutil.rmtree(chosen, ignore_errors=True)
    return 0


def _deployment(stage: _Stage) -> None:
    stage.narrator.act("Make a local deployment: authority, certificates, token issuer, policies, log keys")
    said = sealgate("init", stage.state, "--audience", f"localhost:{free_port()}")
    for line in said.strip().splitlines()[:4]:
        stage.narrator.say(line)
    private = [path for path in stage.state.rglob("*.key") if path.stat().st_mode & 0o077]
    if private:
        raise SealgateError(f"{private[0]} can be read by others")
    stage.narrator.say("every private key file is readable by its owner only (0600)")


def _training(stage: _Stage) -> None:
    stage.narrator.act("Train on 569 real patients (30 measurements each) with differential privacy: DP-SGD, Opacus")
    config = stage.state / _CONFIG.name
    shutil.copyfile(_CONFIG, config)
    sealgate(
        "train",
        config,
        "--out",
        stage.bundle.parent,
        "--key",
        stage.state / "publisher.key",
        "--heldout-csv",
        stage.heldout,
        show=True,
    )


def _bundle(stage: _Stage) -> None:
    stage.narrator.act("Check the signed bundle: digests, signature, and epsilon computed again from the certificate")
    said = sealgate("models", "verify", stage.bundle, "--publishers", stage.state / "publishers.toml")
    stage.narrator.say(said.strip())


def _say_isolation(stage: _Stage) -> None:
    stage.narrator.say("ready: the gateway sees only ciphertext; the worker has no network, no files, no other process")


def _rows(stage: _Stage) -> tuple[list[list[float]], list[str]]:
    """The first held-out patients: measurements and the true diagnosis."""
    with stage.heldout.open() as file:
        lines = list(csv.reader(file))[1 : _ROWS + 1]
    return [[float(value) for value in line[:-1]] for line in lines], [line[-1] for line in lines]


def _token(stage: _Stage, *extra: str) -> str:
    return sealgate(
        "token", stage.state, "--tenant", "clinic", "--subject", "triage-app", "--purpose", _PURPOSE, *extra
    ).strip()


def _clients(stage: _Stage) -> None:
    narrator = stage.narrator
    narrator.act("Ask as a client with a token, then as an integration with a certificate (mTLS)")
    rows, truth = _rows(stage)
    with stage.session(_token(stage)) as session:
        evidence = session.evidence()
        narrator.say(f"evidence verified: {len(evidence.transcript)} checks, assurance: {evidence.claims.assurance}")
        result = session.infer(_MODEL, rows)
        _tell_answer(narrator, result.labels, truth)
        narrator.say(f"receipt verified: record {result.receipt.index} of the log {result.receipt.record.log}")
        (stage.state / "receipt").write_bytes(result.receipt_bytes)
    clients = stage.state / "pki" / "clients"
    certificate = (clients / "integration.pem", clients / "integration.key")
    with Session(stage.trust, purpose=_PURPOSE, certificate=certificate, trust_env=False) as session:
        result = session.infer(_MODEL, rows[:1])
        narrator.say(
            f"mTLS integration: {(result.labels or ('?',))[0]}, record {result.receipt.index}, receipt verified"
        )


def _tell_answer(narrator: Narrator, labels: tuple[str, ...] | None, truth: list[str]) -> None:
    if labels is None:
        raise SealgateError("the model gave no labels")
    narrator.say("answers to sealed questions about held-out patients:")
    for number, (answer, true) in enumerate(zip(labels, truth, strict=True), start=1):
        narrator.say(f"  patient {number}: {answer:<10} (truly {true})")


class _Altering(httpx.BaseTransport):
    """A network that flips one bit of every sealed request on its way."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = bytearray(request.read())
        if request.url.path.startswith("/sealed/") and body:
            body[-1] ^= 1
        altered = httpx.Request(
            request.method, request.url, headers=request.headers, content=bytes(body), extensions=request.extensions
        )
        return self._inner.handle_request(altered)

    def close(self) -> None:
        self._inner.close()


def _proof(error: ServiceRefused) -> str:
    if error.receipt is not None:
        return f"record {error.receipt.index}, receipt verified"
    return "its receipt names another request than ours" if error.receipt_refused else "counted in the log"


def _refusals(stage: _Stage) -> None:
    narrator = stage.narrator
    narrator.act("Three refusals, each with its audit record")
    sealgate("audit", "checkpoint", *_auditor_credential(stage), "--out", stage.state / "kept-checkpoint")
    narrator.say("an auditor keeps today's checkpoint, to see later that the log only grew")
    rows, _ = _rows(stage)
    network = httpx.HTTPTransport(verify=tls_context(open_trust(stage.trust), None, trust_env=False))
    good = _token(stage)
    attempts: tuple[tuple[str, Callable[[], Session]], ...] = (
        ("an expired token", lambda: stage.session(_token(stage, "--issued-ago", "7200"))),
        ("a purpose that is not allowed", lambda: stage.session(good, purpose="research")),
        ("a sealed request altered on the way", lambda: stage.session(good, outer=_Altering(network))),
    )
    for what, open_session in attempts:
        with open_session() as session:
            try:
                session.infer(_MODEL, rows[:1])
            except ServiceRefused as error:
                narrator.say(f"{what}: refused with {error.status} {error.code} ({_proof(error)})")
            else:
                raise SealgateError(f"{what} was not refused")
    for line in _refusal_records(stage):
        narrator.say(line)


def _auditor_credential(stage: _Stage) -> tuple[str | Path, ...]:
    clients = stage.state / "pki" / "clients"
    return (
        "--trust",
        stage.trust,
        "--client-cert",
        clients / "auditor.pem",
        "--client-key",
        clients / "auditor.key",
    )


def _refusal_records(stage: _Stage) -> list[str]:
    lines: list[str] = []
    for kind in ("auth.failed", "inference.denied", "inference.failed"):
        said = json.loads(sealgate("audit", "query", *_auditor_credential(stage), "--kind", kind, "--json"))
        if not said["records"]:
            raise SealgateError(f"the log has no {kind} record")
        last = said["records"][0]  # newest first
        lines.append(f"in the log: record {last['index']} {kind}, reason {last['record'].get('reason', '')}")
    return lines


def _auditor(stage: _Stage, folder: Path) -> None:
    narrator = stage.narrator
    narrator.act("As an auditor: query the log, export evidence, verify it offline, then flip one byte")
    said = sealgate("audit", "query", *_auditor_credential(stage), "--model", _MODEL, "--limit", "20")
    narrator.say(said.rstrip())
    bundle = folder / "evidence.zip"
    sealgate("audit", "export", *_auditor_credential(stage), "--out", bundle)
    given = ("--receipt", stage.state / "receipt", "--kept", stage.state / "kept-checkpoint")
    said = sealgate("audit", "verify", bundle, "--trust", stage.trust, "--strict", *given)
    narrator.say(said.rstrip())
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    copy = folder / "evidence-altered.zip"
    copy.write_bytes(bytes(data))
    refused = sealgate_fails("audit", "verify", copy, "--trust", stage.trust)
    narrator.say("one byte of a copy flipped: " + refused.strip().splitlines()[-1])


def _goodbye(stage: _Stage, *, keep: bool) -> None:
    narrator = stage.narrator
    narrator.act("How to go on")
    state = stage.state if keep else Path("STATE")
    narrator.say(
        f"sealgate init STATE && sealgate serve STATE      your own deployment\n"
        f"sealgate train CONFIG.toml --out STATE/models --key STATE/publisher.key\n"
        f"sealgate audit query --trust {state}/client/trust.toml --client-cert ... --client-key ...\n"
        f"sealgate audit export ... --out evidence.zip && sealgate audit verify evidence.zip --trust ...\n"
        f"in Python:\n"
        f"  from sealgate import Session\n"
        f'  with Session("{state}/client/trust.toml", purpose="{_PURPOSE}", token=TOKEN) as session:\n'
        f'      print(session.infer("{_MODEL}", rows).labels)'
    )
    narrator.close()
