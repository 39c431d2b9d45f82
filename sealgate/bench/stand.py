"""A deployment to measure: one of our own, made for this and removed afterwards, or one that runs already.

Ours is made with the commands that a user has: `init`, `train`, `token issue`, `serve`. Its budgets are raised so
that no request is refused (they are reserved and settled all the same), and its metrics are on. Never: changes a
deployment that it did not make; what is asked of one that runs counts against its budgets and is in its log, like any
other request.
"""

from __future__ import annotations

import csv
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from sealgate import demo
from sealgate.ambient import monotonic_ns
from sealgate.bench.accounting import roles, serving
from sealgate.bench.load import Load
from sealgate.bench.sealing import Sealer
from sealgate.client.credentials import read_token_file
from sealgate.client.errors import UsageError
from sealgate.client.session import Session
from sealgate.client.transport import open_trust, tls_context
from sealgate.demo.stage import Server, free_port, sealgate
from sealgate.evidence.trust import Trust
from sealgate.protocol.inference import InferRequest, encode_infer_request
from sealgate.protocol.tensors import Tensor, tensor_from_list

_CONFIG = Path(demo.__file__).with_name("breast_cancer.toml")
_KEY_S = 300  # that a request key of a soak is published, and then opened
_MODEL, _PURPOSE = "breast-cancer", "treatment"
_LARGEST_MB = 104  # of a request: 100 MiB, and what stands around them
_BUDGETS = """\
# Raised for measuring: reserved and settled for every request, never reached.
[[budget]]
name = "bench-day"
tenant = "clinic"
requests = 1_000_000_000
units = 1_000_000_000_000
window = "day"

[[budget]]
name = "bench-minute"
tenant = "clinic"
requests = 1_000_000_000
window = "minute"
"""


@dataclass(kw_only=True)
class Stand:
    """What is measured. `state` is its folder where that lies on this machine, `metrics` the URL of its figures."""

    trust: Trust
    token: str
    model: str
    purpose: str
    rows: list[list[float]]
    state: Path | None = None
    metrics: str = ""
    start_s: float = 0.0  # from `sealgate serve` until it was ready; 0: it ran already
    own: bool = False
    workers: int = 1
    tls: ssl.SSLContext = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.tls = tls_context(self.trust, None, trust_env=False)
        self._url = httpx.URL(self.trust.url)

    def sealer(self) -> Sealer:
        """A caller that seals beforehand, with evidence that it verified."""
        http = httpx.Client(base_url=self.trust.url, verify=self.tls, trust_env=False, timeout=30)
        host = self._url.netloc.decode()
        sealer = Sealer(self.trust, self.token, http=http, purpose=self.purpose, host=host, workers=self.workers)
        try:
            sealer.renew()
        except BaseException:
            sealer.close()
            raise
        return sealer

    def load(self, callers: int) -> Load:
        """Connections to its gateway over TLS."""
        host = self._url.host
        return Load(host, self._url.port or 443, connections=callers, tls=self.tls, name=host)

    def session(self) -> Session:
        """The client library, as a program uses it."""
        return Session(self.trust, purpose=self.purpose, token=self.token, trust_env=False)

    def message(self, rows: int = 1) -> tuple[str, list[tuple[str, str]], bytes]:
        """Path, header fields and body of an inner request for so many rows, as a binary tensor."""
        with self.session() as session:
            wanted = session.metadata(self.model).inputs[0]
        if wanted.datatype != "FP32" or len(wanted.shape) != 2:
            raise UsageError("measuring needs a model whose first input is a table of numbers (FP32 [rows, columns])")
        known, width = self.rows[:rows], len(self.rows[0])
        block = tensor_from_list(wanted.name, "FP32", (len(known), width), [value for row in known for value in row])
        whole, rest = divmod(rows, len(known))  # as bytes: a hundred mebibytes are too many numbers to make one by one
        data = bytes(block.data) * whole + bytes(block.data[: rest * 4 * width])
        tensor = Tensor(wanted.name, "FP32", (rows, width), data)
        fields, body = encode_infer_request(InferRequest(inputs=(tensor,)), binary=True)
        return f"/v2/models/{self.model}/infer", fields, body

    def processes(self) -> dict[int, str]:
        """Its processes by role, where it runs on this machine; empty otherwise."""
        if self.state is None:
            return {}
        found: dict[int, str] = {}
        for pid in serving(self.state):
            found.update(roles(pid))
        return found


def running(
    *, trust: Path, token_file: Path, model: str, purpose: str, rows: Path, state: Path | None, metrics: str
) -> Stand:
    """A deployment that runs already."""
    return Stand(
        trust=open_trust(trust),
        token=read_token_file(token_file),
        model=model,
        purpose=purpose,
        rows=_read_rows(rows),
        state=state.resolve() if state is not None else None,
        metrics=metrics,
    )


class Workshop:
    """A deployment of our own in `folder`: made once, served as often as is measured."""

    def __init__(self, folder: Path, *, short_keys: bool = False) -> None:
        """`short_keys`: request keys change every five minutes, so that what hangs on them comes and goes in a soak."""
        self._short_keys = short_keys
        self.state = folder / "deployment"
        self._heldout = folder / "rows.csv"
        self._config = folder / _CONFIG.name
        self._metrics = free_port()

    def make(self) -> None:
        """Keys, budgets, metrics, and a model that is trained for a moment (and not audited: it answers only here)."""
        sealgate("init", self.state, "--audience", f"localhost:{free_port()}")
        (self.state / "policy" / "budgets.toml").write_text(_BUDGETS)
        settings = self.state / "deployment.toml"
        said = settings.read_text().replace("require_audit = true", "require_audit = false")
        said = said.replace("[deployment]\n", f"[deployment]\nmax_request_mb = {_LARGEST_MB}\n")
        if self._short_keys:
            said = said.replace("[runtime]\n", f"[runtime]\nkey_active_s = {_KEY_S}\nkey_stale_s = {_KEY_S}\n")
        settings.write_text(f'{said}\n[telemetry]\nmetrics = "127.0.0.1:{self._metrics}"\n')
        text = (
            _CONFIG.read_text()
            .replace("\nsteps = 150", "\nsteps = 12")
            .replace("average_steps = 75", "average_steps = 6")
        )
        self._config.write_text(text)
        models, key = self.state / "models", self.state / "publisher.key"
        sealgate("train", self._config, "--out", models, "--key", key, "--heldout-csv", self._heldout, "--no-audit")

    @contextmanager
    def serve(self, *, gateways: int = 1, workers: int = 1) -> Iterator[Stand]:
        """Serve it with so many gateway processes and workers."""
        settings = self.state / "deployment.toml"
        before = settings.read_text()
        text = before.replace("[gateway]\n", f"[gateway]\nworkers = {gateways}\n")
        settings.write_text(text.replace("[runtime]\n", f"[runtime]\nworkers = {workers}\n"))
        try:
            began = monotonic_ns()
            with Server(self.state):
                start_s = (monotonic_ns() - began) / 1e9
                yield Stand(
                    trust=open_trust(self.state / "client"),
                    token=self._token(),
                    model=_MODEL,
                    purpose=_PURPOSE,
                    rows=_read_rows(self._heldout),
                    state=self.state.resolve(),
                    metrics=f"http://127.0.0.1:{self._metrics}/metrics",
                    start_s=start_s,
                    own=True,
                    workers=workers,
                )
        finally:
            settings.write_text(before)

    def _token(self) -> str:
        given = ("--tenant", "clinic", "--subject", "triage-app", "--purpose", _PURPOSE)
        return sealgate("token", "issue", self.state, *given).strip()


def _read_rows(path: Path) -> list[list[float]]:
    """Numbers of a CSV file with a heading; a last column that is no number (a label) is left out."""
    try:
        with path.open(newline="") as file:
            lines = list(csv.reader(file))[1:1001]
        rows = [[float(value) for value in line if _is_number(value)] for line in lines if line]
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if not rows or not rows[0] or len({len(row) for row in rows}) != 1:
        raise UsageError(f"{path} must be a CSV file with a heading and rows of numbers, all of one length")
    return rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
