"""A whole deployment whose evidence a TPM quotes (swtpm): real host, worker and gateway, and a client that insists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sealgate.client.attest_commands import ATTEST
from sealgate.errors import SealgateError
from sealgate.evidence.measure import measure_code
from tests.live import MODEL, Live
from tests.secure_runtime.attestation.conftest import SoftTpm


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[SoftTpm]:
    made = SoftTpm(tmp_path)
    yield made
    made.stop()


def attest(*words: Any) -> int:
    import argparse

    parser = argparse.ArgumentParser(prog="sealgate")
    ATTEST.configure(parser)
    return ATTEST.run(parser.parse_args([str(word) for word in words]))


def test_a_client_that_insists_on_the_tpm_is_served_until_the_tpm_is_another(
    fresh: Callable[[], Live], tpm: SoftTpm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    live = fresh()
    settings = live.root / "deployment.toml"
    settings.write_text(f'{settings.read_text()}\n[attestation]\ntpm = "{tpm.socket}"\ntpm_pcrs = [0, 7]\n')
    live.start()
    live.ready()
    assert attest("show", "--trust", live.trust) == 0
    seen = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if " " in line.strip())
    name = next(line.split()[-1] for line in (f"{key} {value}" for key, value in seen.items()) if "000b" in line)
    text = live.trust.read_text().replace("accept_software = true", "accept_software = false")
    pins = f'\n[tpm]\nattestation_keys = ["{name}"]\n[tpm.pcrs]\n7 = ["{"0" * 64}"]\n'
    live.trust.write_text(text + pins)
    assert attest("verify", "--trust", live.trust) == 0
    assert "ACCEPTED under the trust file, grade tpm" in capsys.readouterr().out
    with live.session() as session:
        result = session.infer(MODEL, live.rows[:2])
        assert result.evidence.grade == "tpm"
        assert result.receipt.record.assurance == "tpm"
        measured = result.evidence.claims.measurements
        assert measured["environment"] == measured["worker.environment"]
        if measured["code"] == measure_code():  # nobody saved a file of the checkout meanwhile
            assert measured["code"] == measured["worker.code"]
    live.trust.write_text(text + pins.replace(name, "000b" + "0" * 64))
    with live.session() as session, pytest.raises(SealgateError, match="attestation_keys does not name"):
        session.infer(MODEL, live.rows[:2])
