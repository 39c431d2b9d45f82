"""One gateway for every attack on identity, with the record of what became of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from sealgate.deployment import Deployment
from sealgate.protocol import frames
from tests.adversary.forge import OTHER_KEYS, REALM_KEYS, Forge, issuers_file, key_set
from tests.adversary.wire import Seen, Wire
from tests.gateway.conftest import Running, copied, hosted, plain_answer, provisioned, sealed_request

__all__ = ["provisioned"]  # a fixture of the gateway's tests, taken over

# attack -> (what the caller saw, the reason that the host alone was told), for the summary of `pytest -v`
MATRIX: dict[str, tuple[str, str]] = {}


class Target:
    """The gateway under attack, as the attacker reaches it, and what its host hears."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.forge = Forge(running.deployment.token_audience)
        self.wire = Wire(running.port, running.tls())
        raw, media_type = sealed_request(64)
        self.body = raw
        self.plain_fields: tuple[tuple[str, str], ...] = (("Content-Type", media_type), ("Purpose", "treatment"))
        self.nobody = self.ask()
        assert (self.nobody.status, self.reason()) == (401, "no-credential")

    @property
    def deployment(self) -> Deployment:
        return self.running.deployment

    def ask(self, fields: Iterable[tuple[str, str | bytes]] = (), *, wire: Wire | None = None, **more: str) -> Seen:
        """One sealed request with these further fields."""
        return (wire or self.wire).ask((*self.plain_fields, *fields), body=self.body, **more)

    def bearer(self, token: str | bytes, *, wire: Wire | None = None) -> Seen:
        text = token if isinstance(token, bytes) else token.encode("latin-1")
        return self.ask([("Authorization", b"Bearer " + text)], wire=wire)

    def fresh_nonce(self) -> str:
        """What the gateway tells everybody who has to prove something."""
        nonce = self.ask().field("dpop-nonce")
        assert nonce is not None
        self.reason()
        return nonce

    def reason(self) -> str:
        """The one reason that the host was told since the last time."""
        failures = self.running.host.heard(frames.AuthFailed)
        assert len(failures) == 1
        self.running.host.told.clear()
        return str(failures[0].reason)

    def refused(self, attack: str, seen: Seen, *reasons: str) -> None:
        """The answer tells nothing that the answer to nobody does not; the host alone was told one of `reasons`."""
        assert seen.told == self.nobody.told, attack
        reason = self.reason()
        MATRIX[attack] = (str(seen.status), reason)
        assert reason in reasons, f"{attack}: {reason}"
        assert not self.running.host._of(frames.Submit), attack

    def served(self, seen: Seen) -> frames.Submit:
        """The caller was let in; what the host was given."""
        assert seen.status == 200, seen.body
        (submitted,) = self.running.host.heard(frames.Submit)
        self.running.host.told.clear()
        found: frames.Submit = submitted
        return found


def add_realms(deployment: Deployment) -> None:
    """Two issuers of the forger's."""
    folder = deployment.tokens
    (folder / "realm.json").write_text(json.dumps(key_set(REALM_KEYS)))
    (folder / "other-realm.json").write_text(json.dumps(key_set(OTHER_KEYS)))
    with (folder / "issuers.toml").open("a") as file:
        file.write(issuers_file())


@pytest.fixture(scope="session")
def _target(provisioned: Path) -> Iterator[Target]:
    with copied(provisioned) as deployment:
        add_realms(deployment)
        with hosted(deployment) as host:
            running = Running(deployment, host)
            made = Target(running)
            yield made
            made.wire.close()
            running.close()


@pytest.fixture
def target(_target: Target) -> Target:
    """The gateway, its host's memory empty."""
    _target.running.host.script = plain_answer
    _target.running.host.told.clear()
    return _target


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not MATRIX:
        return
    reasons = {reason for _, reason in MATRIX.values()}
    terminalreporter.write_line(f"adversary: {len(MATRIX)} attacks refused alike, for {len(reasons)} reasons")
    if terminalreporter.config.get_verbosity() > 0:
        terminalreporter.write_line("| attack | the caller sees | the host is told |\n|---|---|---|")
        for attack, (status, reason) in sorted(MATRIX.items()):
            name = ascii(attack)[1:-1].replace("|", "/").replace("Ellipsis", "left out")
            terminalreporter.write_line(f"| {name} | {status} | {reason} |")
