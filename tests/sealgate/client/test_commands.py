"""`sealgate infer` and `sealgate audit` as people run them, against the service on a real port."""

from __future__ import annotations

import argparse
import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sealgate.client.audit_commands import AUDIT
from sealgate.client.commands import INFER
from sealgate.command import Command
from sealgate.errors import ConfigurationError, SealgateError
from sealgate.transparency.receipt import verify_receipt

TOKEN = "header.payload.signature"
CSV = "area,radius,texture\n3,1,2\n30,10,20\n"
Run = Callable[..., int]


def run(command: Command, *words: object) -> int:
    """What the `sealgate` entry point does with one command."""
    parser = argparse.ArgumentParser(prog="sealgate")
    command.configure(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.delenv("SEALGATE_TOKEN", raising=False)


@pytest.fixture
def infer(site: Any, tmp_path: Path) -> Run:
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "rows.csv").write_text(CSV)

    def ask(*words: object, purpose: str = "diagnosis") -> int:
        fixed = ("--trust", site.trust, "--token-file", tmp_path / "token", "--rows", tmp_path / "rows.csv")
        return run(INFER, *fixed, "--model", "toy", "--purpose", purpose, *words)

    return ask


@pytest.fixture
def audit(site: Any, tmp_path: Path) -> Run:
    (tmp_path / "token").write_text(TOKEN + "\n")
    return lambda action, *words: run(AUDIT, action, *words, "--trust", site.trust, "--token-file", tmp_path / "token")


def test_answers_are_a_table_with_what_was_verified_below(infer: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert infer() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["row", "label", "scores:", "benign", "scores:", "malignant"]
    assert lines[2].split() == ["1", "benign", "0.75", "0.25"]
    assert lines[3].split() == ["2", "malignant", "0.125", "0.875"]
    text = "\n".join(lines)
    assert "epsilon 2.5 per example, delta 0.00001" in text
    assert "receipt   verified: record" in text
    assert "evidence  verified: software, profile strict" in text


def test_answers_are_json_for_machines(infer: Run, capsys: pytest.CaptureFixture[str]) -> None:
    infer("--json", "--explain")
    document = json.loads(capsys.readouterr().out)
    assert document["labels"] == ["benign", "malignant"]
    assert document["outputs"]["scores"] == [[0.75, 0.25], [0.125, 0.875]]
    assert document["receipt"]["kind"] == "inference.completed"
    assert {check["outcome"] for check in document["checks"]["receipt"]} == {"pass"}
    assert document["grades"]["layers"] == "self-asserted"


def test_explain_tells_all_twelve_steps_and_every_check(infer: Run, capsys: pytest.CaptureFixture[str]) -> None:
    infer("--explain")
    text = capsys.readouterr().out
    steps = [line.split()[0] for line in text.splitlines() if line[:4].strip().isdigit() and "  " in line]
    assert [str(number) for number in range(1, 13)] == steps[-12:]
    for name in ("signature", "endorsement", "nonce", "key-configs", "request", "response", "worker", "state"):
        assert f"\n{name}" in text


def test_the_receipt_is_kept(site: Any, infer: Run, tmp_path: Path) -> None:
    infer("--receipt-out", tmp_path / "receipt")
    assert stat.S_IMODE((tmp_path / "receipt").stat().st_mode) == 0o600
    verified = verify_receipt((tmp_path / "receipt").read_bytes(), site.service.trust().log_keys)
    assert verified.record.kind == "inference.completed"


def test_the_receipt_of_a_refusal_is_kept_too(
    site: Any, infer: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SealgateError, match="403 forbidden"):
        infer("--receipt-out", tmp_path / "receipt", purpose="marketing")
    verified = verify_receipt((tmp_path / "receipt").read_bytes(), site.service.trust().log_keys)
    assert verified.record.kind == "inference.denied"
    assert "on record: inference.denied" in capsys.readouterr().err


@pytest.mark.parametrize("place", [".", "missing/receipt"])
def test_a_receipt_that_has_no_place_is_said_before_anything_is_asked(
    site: Any, infer: Run, tmp_path: Path, place: str
) -> None:
    with pytest.raises(ConfigurationError, match="--receipt-out"):
        infer("--receipt-out", tmp_path / place)
    assert not site.peers


def test_an_answer_is_printed_even_if_its_receipt_cannot_be_kept(
    infer: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigurationError, match="receipt cannot be written"):
        infer("--receipt-out", tmp_path / "loop")
    assert "benign" in capsys.readouterr().out


def test_refused_evidence_is_explained_on_request(site: Any, infer: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SealgateError, match="strict"):
        infer("--strict", "--explain")
    assert "fail" in capsys.readouterr().err
    site.service.claim_changes = {"audience": "elsewhere.test"}
    with pytest.raises(SealgateError, match="another deployment"):
        infer()
    assert capsys.readouterr().out == ""


def test_rows_come_from_standard_input_and_the_token_from_the_environment(
    site: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    monkeypatch.setenv("SEALGATE_TOKEN", TOKEN)
    monkeypatch.setattr("sys.stdin", io.StringIO("1,2,3\n"))
    words = ("--trust", site.trust, "--model", "toy", "--purpose", "diagnosis", "--rows", "-")
    assert run(INFER, *words) == 0
    assert "benign" in capsys.readouterr().out


def test_a_certificate_instead_of_a_token(site: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.csv").write_text(CSV)
    certificate, key = site.authority.issue(tmp_path, "integration")
    words = ("--trust", site.trust, "--model", "toy", "--purpose", "diagnosis", "--rows", tmp_path / "rows.csv")
    assert run(INFER, *words, "--client-cert", certificate, "--client-key", key) == 0
    assert site.peers[-1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "no credential"),
        (("--token-file", "missing"), "sealgate token issue"),
        (("--client-cert", "a.pem"), "give both"),
        (("--token-file", "token", "--timeout", "0"), "--timeout"),
        (("--token-file", "token", "--trust", "missing"), "sealgate init"),
        (("--token-file", "token", "--rows", "missing"), "missing cannot be read"),
    ],
)
def test_mistakes_are_one_line_that_says_how_to_mend_them(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "rows.csv").write_text(CSV)
    fixed = ("--trust", site.trust, "--model", "toy", "--purpose", "diagnosis", "--rows", "rows.csv")
    with pytest.raises(ConfigurationError, match=says) as failure:
        run(INFER, *fixed, *words)
    assert "\n" not in str(failure.value)
    assert TOKEN not in str(failure.value)


def test_no_command_takes_a_token_on_its_command_line() -> None:
    for command in (INFER, AUDIT):
        parser = argparse.ArgumentParser()
        command.configure(parser)
        assert "--token " not in parser.format_help()
        with pytest.raises(SystemExit):
            parser.parse_args(["--token", TOKEN])


# Audit -----------------------------------------------------------------------------------------------------------


def test_query_prints_a_table_or_json(infer: Run, audit: Run, capsys: pytest.CaptureFixture[str]) -> None:
    infer()
    capsys.readouterr()
    assert audit("query", "--kind", "inference.completed", "--since", "1h") == 0
    text = capsys.readouterr().out
    assert text.count("inference.completed") == 2
    assert "2 records of a log of" in text
    audit("query", "--limit", "1", "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["more"] is True
    assert document["records"][0]["record"]["kind"] == "inference.completed"
    assert isinstance(document["records"][0]["index"], int)


def test_query_goes_on_over_pages_until_its_limit(
    infer: Run, audit: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    infer()
    capsys.readouterr()
    monkeypatch.setattr("sealgate.client.audit.MAX_PAGE", 2)
    audit("query", "--limit", "5", "--oldest", "--json")
    document = json.loads(capsys.readouterr().out)
    assert [row["index"] for row in document["records"]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--limit", "0"), "--limit"),
        (("--since", "soon"), "not a time"),
        (("--since", "1d", "--until", "2d"), "earlier than --until"),
        (("--kind", "inference.deniedd"), "there are: .*inference.denied"),
    ],
)
def test_query_says_what_it_cannot_ask(site: Any, audit: Run, words: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        audit("query", *words)
    assert not site.peers


def test_show_proves_a_record_of_the_service_or_of_a_receipt(
    site: Any, infer: Run, audit: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    infer("--receipt-out", tmp_path / "receipt")
    capsys.readouterr()
    assert audit("show", "record-3") == 0
    assert "proven" in capsys.readouterr().out
    audit("show", "--receipt", tmp_path / "receipt", "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["record"]["kind"] == "inference.completed"
    damaged = bytearray((tmp_path / "receipt").read_bytes())
    damaged[100] ^= 1
    (tmp_path / "receipt").write_bytes(damaged)
    with pytest.raises(SealgateError):
        audit("show", "--receipt", tmp_path / "receipt")
    with pytest.raises(ConfigurationError, match="name one record"):
        audit("show")
    capsys.readouterr()
    audit("show", "2", "--json")
    assert json.loads(capsys.readouterr().out)["index"] == 2


def test_a_checkpoint_is_kept_and_growth_proven_from_it(
    infer: Run, audit: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit("checkpoint", "--out", tmp_path / "kept")
    infer()
    capsys.readouterr()
    audit("checkpoint", "--kept", tmp_path / "kept", "--json")
    assert "only grew, from 2 to 6" in json.loads(capsys.readouterr().out)["grown"]
    audit("checkpoint")
    assert "signed by" in capsys.readouterr().out
    kept = (tmp_path / "kept").read_bytes()
    with pytest.raises(ConfigurationError, match="never replaced"):
        audit("checkpoint", "--kept", tmp_path / "kept", "--out", tmp_path / "kept")
    assert (tmp_path / "kept").read_bytes() == kept
    audit("checkpoint", "--out", tmp_path / "newer one")
    assert f"kept in    {tmp_path / 'newer one'}" in capsys.readouterr().out
    audit("export", "--kept", tmp_path / "newer one", "--out", tmp_path / "bundle")
    assert f"--kept '{tmp_path / 'newer one'}'" in capsys.readouterr().out


def verify(site: Any, *words: object) -> int:
    return run(AUDIT, "verify", *words, "--trust", site.trust / "trust.toml")


def test_an_export_is_verified_offline_and_a_flipped_byte_refused(
    site: Any, infer: Run, audit: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit("checkpoint", "--out", tmp_path / "kept")
    infer("--receipt-out", tmp_path / "receipt")
    bundle = tmp_path / "evidence.zip"
    assert audit("export", "--out", bundle, "--kept", tmp_path / "kept") == 0
    assert "sealgate audit verify" in capsys.readouterr().out
    assert list(tmp_path.glob(".evidence*")) == []

    assert verify(site, bundle, "--strict", "--kept", tmp_path / "kept", "--receipt", tmp_path / "receipt") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"VERIFIED: all 10 steps hold for records 0 to (\d+) of the (\d+) of \S+", last)
    assert verify(site, bundle) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "skipped" in last
    assert "VERIFIED" not in last
    assert verify(site, bundle, "--strict") == 1
    assert re.search(r"^REFUSED: \d were skipped, which --strict does not accept$", capsys.readouterr().out, re.M)

    damaged = bytearray(bundle.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    bundle.write_bytes(damaged)
    assert verify(site, bundle) == 1
    assert "REFUSED" in capsys.readouterr().out
    assert verify(site, bundle, "--json") == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
    bundle.write_bytes(b"not a bundle")
    assert verify(site, bundle, "--json") == 1
    assert json.loads(capsys.readouterr().out)["records"] is None


def test_a_part_of_the_log_is_not_said_to_be_the_whole(
    site: Any, infer: Run, audit: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    infer()
    bundle = tmp_path / "evidence.zip"
    audit("export", "--out", bundle, "--first", "1", "--last", "1")
    capsys.readouterr()
    assert verify(site, bundle, "--json") == 0
    covered = json.loads(capsys.readouterr().out)["records"]
    assert (covered["first"], covered["last"]) == (1, 1)
    assert covered["size"] > 2
    assert covered["origin"]


def test_a_file_is_replaced_through_a_name_that_nobody_could_prepare(
    audit: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / ".kept.new").symlink_to(precious)
    (tmp_path / "link").symlink_to(precious)
    with pytest.raises(ConfigurationError, match="never replaced"):
        audit("checkpoint", "--out", tmp_path / "link")
    (tmp_path / "kept").symlink_to(tmp_path / "elsewhere")
    assert audit("checkpoint", "--out", tmp_path / "kept") == 0
    assert precious.read_text() == "mine"
    assert not (tmp_path / "kept").is_symlink()
    assert not (tmp_path / "elsewhere").exists()
    assert len(list(tmp_path.glob(".kept*"))) == 1


def test_an_export_that_breaks_off_leaves_no_file(site: Any, audit: Run, tmp_path: Path) -> None:
    site.cut = lambda body: body[: len(body) // 2] if body.startswith(b"PK") else body
    with pytest.raises(SealgateError):
        audit("export", "--out", tmp_path / "evidence.zip")
    assert list(tmp_path.glob("*evidence*")) == []
    assert list(tmp_path.glob(".evidence*")) == []


def test_files_that_are_not_there_are_one_line(site: Any, audit: Run, tmp_path: Path) -> None:
    for words in (
        ("export", "--out", tmp_path / "no" / "evidence.zip"),
        ("checkpoint", "--kept", tmp_path / "missing"),
        ("checkpoint", "--out", tmp_path / "no" / "kept"),
    ):
        with pytest.raises(ConfigurationError):
            audit(*words)
    with pytest.raises(ConfigurationError):
        verify(site, tmp_path / "missing.zip")
    (tmp_path / "huge").write_bytes(b"x" * 100_000)
    with pytest.raises(ConfigurationError, match="larger"):
        verify(site, tmp_path / "missing.zip", "--receipt", tmp_path / "huge")
