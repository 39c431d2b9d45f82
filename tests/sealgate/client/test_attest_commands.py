"""`sealgate attest` as people run it, against the service on a real port; then offline, on what was kept."""

from __future__ import annotations

import argparse
import base64
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from sealgate.client.attest_commands import ATTEST
from sealgate.errors import DecodeError, SealgateError
from sealgate.evidence.kept import parse_kept
from sealgate.evidence.measure import measure_code
from sealgate.protocol.canonical import canonical_json


def run(*words: object) -> int:
    parser = argparse.ArgumentParser(prog="sealgate")
    ATTEST.configure(parser)
    return ATTEST.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost")


@pytest.fixture
def kept(site: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Evidence that was judged and kept."""
    assert run("verify", "--trust", site.trust, "--out", tmp_path / "kept.json") == 0
    capsys.readouterr()
    return tmp_path / "kept.json"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a network was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def test_verifying_prints_every_check_and_claims_no_more_than_that(
    site: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", "--trust", site.trust) == 0
    out = capsys.readouterr().out
    for check in ("signature", "endorsement", "grade", "nonce", "time", "key-configs", "log", "measurements", "layers"):
        assert f"\n{check} " in out
    assert "ACCEPTED under the trust file, grade software (the operator's word, no hardware); " in out
    assert "had nothing to compare with" in out
    assert "VERIFIED" not in out
    assert not any(word in out.lower() for word in ("tee", "enclave", "confidential", "trusted execution"))


def test_a_refusal_names_its_check_and_ends_with_one(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    site.service.claim_changes = {"audience": "elsewhere.test"}
    assert run("verify", "--trust", site.trust) == 1
    assert "\nREFUSED (audience): evidence refused: it is about another deployment" in capsys.readouterr().out
    assert run("verify", "--trust", site.trust, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["accepted"], document["code"], document["checks"][-1]["outcome"]) == (False, "audience", "fail")


def test_a_skipped_check_refuses_under_strict(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", "--trust", site.trust, "--strict") == 1
    assert "strict: a skipped check is a failure" in capsys.readouterr().out


def test_what_was_kept_is_judged_again_without_a_network(
    site: Any, kept: Path, offline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", kept, "--trust", site.trust, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["accepted"] is True
    assert document["skipped"] == sum(check["outcome"] == "skipped" for check in document["checks"]) > 0
    assert run("show", kept) == 0
    assert "NOT JUDGED" in capsys.readouterr().out


def test_kept_evidence_expires_unless_it_is_judged_as_of_its_time(
    site: Any, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = parse_kept(kept.read_bytes()).received_us // 1_000_000 + 7200
    import datetime

    moment = datetime.datetime.fromtimestamp(later, datetime.UTC).isoformat()
    assert run("verify", kept, "--trust", site.trust, "--as-of", moment) == 1
    assert "REFUSED (time)" in capsys.readouterr().out
    assert run("verify", kept, "--trust", site.trust, "--as-of", "kept") == 0
    assert "not of now" in capsys.readouterr().out


def test_refused_evidence_is_kept_too(site: Any, tmp_path: Path) -> None:
    site.service.claim_changes = {"audience": "elsewhere.test"}
    assert run("verify", "--trust", site.trust, "--out", tmp_path / "refused.json") == 1
    assert run("verify", tmp_path / "refused.json", "--trust", site.trust) == 1


@pytest.mark.parametrize("member", ["nonce", "evidence", "published"])
def test_every_part_of_a_kept_file_is_bound_to_the_others(
    site: Any, kept: Path, tmp_path: Path, member: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is exchanged for that of another evidence of the same, honest service."""
    site.service.instance.rotate(9)
    assert run("verify", "--trust", site.trust, "--out", tmp_path / "other.json") == 0
    mixed = json.loads(kept.read_bytes())
    mixed[member] = json.loads((tmp_path / "other.json").read_bytes())[member]
    (tmp_path / "mixed.json").write_bytes(canonical_json(mixed))
    assert run("verify", tmp_path / "mixed.json", "--trust", site.trust) == 1
    assert "REFUSED" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {"form": "sealgate kept evidence v2"},
        {"received_us": -1},
        {"received_us": True},
        {"received_us": "now"},
        {"nonce": "?"},
        {"nonce": 5},
        {"more": 1},
    ],
)
def test_other_files_are_not_taken_for_kept_evidence(kept: Path, change: dict[str, object]) -> None:
    with pytest.raises(DecodeError):
        parse_kept(canonical_json(json.loads(kept.read_bytes()) | change))


def test_showing_tells_models_measurements_and_who_endorses(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "--trust", site.trust) == 0
    out = capsys.readouterr().out
    assert out.startswith("NOT JUDGED")
    for seen in ("a" * 64, "b" * 64, "c" * 64, "d" * 64, "landlock", "software", "2.5"):
        assert seen in out
    assert run("show", "--trust", site.trust, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verified"] is False
    assert document["claims"]["measurements"] == {"code": "c" * 64}
    assert base64.b64decode(document["claims"]["nonce"])


def test_showing_needs_a_service_or_a_file() -> None:
    with pytest.raises(SealgateError, match="--trust"):
        run("show")


def test_a_file_that_cannot_be_read_is_one_line_that_says_what_a_file_is(tmp_path: Path) -> None:
    with pytest.raises(SealgateError, match=r"cannot be read: .*; FILE is what .* to ask a service, give --trust"):
        run("show", tmp_path)
    (tmp_path / "rows.csv").write_text("age,pulse")
    with pytest.raises(SealgateError, match=r"rows.csv is no kept evidence: not a JSON document; FILE"):
        run("show", tmp_path / "rows.csv")


def test_measuring_prints_what_a_trust_file_can_pin(capsys: pytest.CaptureFixture[str]) -> None:
    before = measure_code()
    assert run("measure") == 0
    assert before in capsys.readouterr().out or before != measure_code()


def test_a_pin_that_no_longer_holds_refuses_the_next_request(site: Any) -> None:
    """Also when the worker was replaced by one of other code while the session lived."""
    text = (site.trust / "trust.toml").read_text()
    (site.trust / "trust.toml").write_text(f'{text}[measurements]\ncode = ["{"c" * 64}"]\n')
    with site.session() as session:
        assert session.infer("toy", [[1.0, 2.0, 3.0]]).receipt.index
        site.service.instance.rotate(9)
        site.service.claim_changes = {"measurements": {"code": "0" * 64}}
        with pytest.raises(SealgateError, match="measurement 'code'"):
            session.infer("toy", [[1.0, 2.0, 3.0]])
