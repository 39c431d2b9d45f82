"""What each step of authentication and authorisation costs, in microseconds: first time, and when it was seen before.

One process, one thread, no network: the very parts that `gateway.app.make_gate` puts together for a new deployment are
called as a request calls them. Interleaved rounds; the table gives the median of the rounds and their range.

`python -m benchmarks.identity [--rounds 15] [--calls 40]`. Writes nothing outside a temporary folder.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from gateway.app import make_gate
from gateway.gate import Gate
from gateway.provisioning import issue_token, provision
from gateway.telemetry import Telemetry
from policy.decide import load_policy
from policy.entities import Action, Context, Principal, Role
from sealgate.ambient import monotonic_ns, now_us
from sealgate.client.dpop import DpopKey, Prover
from sealgate.deployment import Deployment
from sealgate.protocol.frames import ModelFacts
from sealgate.terminal import render_table

URL = "https://localhost:8443/sealed/m"
FACTS = ModelFacts(
    name="m",
    version="1",
    model_digest="a" * 64,
    certificate_digest="b" * 64,
    epsilon_micro=3_000_000,
    delta="0.00001",
    privacy_unit="example",
    sensitivity="personal",
    purposes=("treatment",),
)


class _Bench:
    """The parts, and one function for each row of the table."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.gate: Gate = make_gate(deployment, telemetry=Telemetry())
        self.certificate = (deployment.pki / "clients" / "integration.pem").read_text()
        self.key = DpopKey.generate()
        self.known, self.bound = self.token(), self.token(jkt=self.key.jkt)
        self.prover = Prover(self.key)
        self.principal = Principal(
            tenant="clinic",
            subject="triage-app",
            roles=frozenset({Role.CLIENT}),
            purposes=frozenset({"treatment"}),
            authn="jwt",
            mtls=False,
            credential_binding="",
            expires_us=0,
        )

    def token(self, *, jkt: str = "") -> str:
        confirmation: dict[str, Any] = {"confirmation": {"jkt": jkt}} if jkt else {}
        return issue_token(
            self.deployment,
            subject="triage-app",
            tenant="clinic",
            roles=["client"],
            purposes=["treatment"],
            lifetime_s=3600,
            now=now_us(),
            **confirmation,
        )

    def scope(self, *headers: tuple[bytes, bytes], certificate: str = "") -> dict[str, Any]:
        chain = (certificate,) if certificate else ()
        return {
            "type": "http",
            "method": "POST",
            "path": "/sealed/m",
            "raw_path": b"/sealed/m",
            "headers": list(headers),
            "extensions": {"tls": {"client_cert_chain": chain}},
        }

    def bearer(self, token: str) -> dict[str, Any]:
        return self.scope((b"authorization", b"Bearer " + token.encode()))

    def proven(self) -> dict[str, Any]:
        proof = self.prover.proof("POST", URL, token=self.bound)
        return self.scope((b"authorization", b"DPoP " + self.bound.encode()), (b"dpop", proof.encode()))

    def forget(self) -> None:
        """Start as a process that has seen nobody."""
        self.close()
        self.gate = make_gate(self.deployment, telemetry=Telemetry())

    def close(self) -> None:
        self.gate.audit.close()
        self.gate.authenticator.let_go()


async def _each(calls: list[Callable[[], Awaitable[object]]]) -> float:
    """Microseconds a call."""
    start = monotonic_ns()
    for call in calls:
        await call()
    return (monotonic_ns() - start) / 1000 / len(calls)


async def _learn_nonce(bench: _Bench) -> None:
    """As a client does: the first proof is refused, and the refusal tells the nonce."""
    from gateway.authentication.possession import NONCE
    from gateway.errors import Unauthenticated

    scope = bench.proven()
    try:
        await bench.gate.authenticator.authenticate(scope)
    except Unauthenticated:
        bench.prover.learn({"dpop-nonce": scope[NONCE]})


async def _round(bench: _Bench, calls: int) -> dict[str, float]:
    bench.forget()
    await _learn_nonce(bench)
    authenticate = bench.gate.authenticator.authenticate
    fresh = [bench.bearer(bench.token()) for _ in range(calls)]
    proofs = [bench.proven() for _ in range(calls)]
    certified = bench.scope(certificate=bench.certificate)
    known = bench.bearer(bench.known)
    found = {"token, first seen (ES256)": await _each([lambda s=s: authenticate(s) for s in fresh])}
    await authenticate(known)
    verifier = bench.gate.authenticator._tokens  # the lookup alone, without what makes a Principal of it

    async def look_up() -> object:
        return verifier.verify_remembered(bench.known)

    found["  of which: the lookup, revocations and keys asked"] = await _each([look_up for _ in range(calls * 20)])
    found["token, seen before"] = await _each([lambda: authenticate(dict(known)) for _ in range(calls * 20)])
    found["token and DPoP proof (ES256)"] = await _each([lambda s=s: authenticate(s) for s in proofs])
    found["client certificate, first seen"] = await _each([lambda: authenticate(dict(certified))])
    found["client certificate, seen before"] = await _each(
        [lambda: authenticate(dict(certified)) for _ in range(calls)]
    )
    policy = load_policy(bench.deployment.policy)
    contexts = [
        Context(purpose="treatment", sealed=True, assurance="software", now_us=hour * 3_600_000_000)
        for hour in range(calls)
    ]

    async def decide(context: Context) -> object:
        return policy.decide(bench.principal, Action.INFER, FACTS, context)

    found["policy, first asked"] = await _each([lambda c=c: decide(c) for c in contexts])
    found["policy, asked before"] = await _each([lambda: decide(contexts[0]) for _ in range(calls * 20)])
    return found


async def _measure(deployment: Deployment, *, rounds: int, calls: int) -> dict[str, list[float]]:
    bench = _Bench(deployment)
    table: dict[str, list[float]] = {}
    for _ in range(rounds + 1):
        for name, value in (await _round(bench, calls)).items():
            table.setdefault(name, []).append(value)
    bench.close()
    return {name: values[1:] for name, values in table.items()}  # the first round warms up


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix=f"identity-{uuid.uuid4().hex[:6]}") as folder:
        deployment = provision(
            Path(folder) / "state", audience="localhost:8443", origin="localhost/sealgate", profile="strict"
        )
        table = asyncio.run(_measure(deployment, rounds=arguments.rounds, calls=arguments.calls))
    rows = [
        (name, f"{statistics.median(values):.1f}", f"{min(values):.1f} - {max(values):.1f}")
        for name, values in table.items()
    ]
    print(render_table(("step", "median us", "range"), rows))


if __name__ == "__main__":
    main()
