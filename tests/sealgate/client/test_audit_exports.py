"""`sealgate audit export --format` and `convert` as people run them: whole, broken off, gone on with, refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sealgate.client import line_download
from sealgate.client.audit_commands import AUDIT
from sealgate.client.commands import INFER
from sealgate.client.errors import UsageError
from sealgate.client.progress import ProgressBar
from sealgate.errors import ConfigurationError, DecodeError, SealgateError
from sealgate.transparency.cose_receipt import verify_cose_receipt
from sealgate.transparency.exports.formats import FORMATS
from sealgate.transparency.exports.leaves import place
from sealgate.transparency.exports.part import ExportLines, measure
from sealgate.transparency.record import Record

from .test_commands import TOKEN, run

Audit = Callable[..., int]


@pytest.fixture
def audit(site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Audit:
    """After some inferences, so that there are records."""
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.delenv("SEALGATE_TOKEN", raising=False)
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "rows.csv").write_text("area,radius,texture\n3,1,2\n")
    fixed = ("--trust", site.trust, "--token-file", tmp_path / "token")
    for _ in range(2):
        run(INFER, *fixed, "--rows", tmp_path / "rows.csv", "--model", "toy", "--purpose", "diagnosis")
    return lambda action, *words: run(AUDIT, action, *words, *fixed)


def leaves_of(site: Any) -> list[bytes]:
    leaves: list[bytes] = site.service.log.leaves
    return leaves


def expected(site: Any, name: str, first: int = 0, last: int | None = None) -> bytes:
    form, leaves = FORMATS[name], leaves_of(site)
    last = len(leaves) - 1 if last is None else last
    return form.header + b"".join(form.line(place(at, leaves[at])) for at in range(first, last + 1))


@pytest.mark.parametrize("name", FORMATS)
def test_every_form_is_fetched_in_several_requests(
    site: Any, audit: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(line_download, "RECORDS_PER_REQUEST", 3)
    out = tmp_path / "out"
    assert audit("export", "--format", name, "--out", out) == 0
    assert out.read_bytes() == expected(site, name)
    with pytest.raises(UsageError, match="--force"):
        audit("export", "--format", name, "--out", out)
    assert audit("export", "--format", name, "--out", out, "--first", "1", "--last", "2", "--force") == 0
    assert out.read_bytes() == expected(site, name, 1, 2)
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_that_broke_off_is_gone_on_with(
    site: Any, audit: Audit, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out, part = tmp_path / "out", tmp_path / "out.part"
    whole = expected(site, name)
    site.cut = lambda body: body[: len(body) * 2 // 3] if len(body) > len(whole) // 2 and body in whole else body
    with pytest.raises(SealgateError):
        audit("export", "--format", name, "--out", out)
    assert not out.exists()
    assert 0 < part.stat().st_size < len(whole)
    assert "--resume" in capsys.readouterr().err
    site.cut = lambda body: body
    with pytest.raises(UsageError, match="--resume"):
        audit("export", "--format", name, "--out", out)
    assert audit("export", "--format", name, "--out", out, "--resume") == 0
    assert out.read_bytes() == expected(site, name)
    assert not part.exists()


@pytest.mark.parametrize("kept", ["", "half a line", "a line", "all", "more"])
def test_whatever_the_part_holds(site: Any, audit: Audit, tmp_path: Path, kept: str) -> None:
    whole = expected(site, "csv")
    head = FORMATS["csv"].header
    first = whole[: whole.index(b"\n", len(head)) + 1]
    parts = {"": b"", "half a line": first[:-9], "a line": first, "all": whole, "more": whole + whole[len(head) :]}
    (tmp_path / "out.part").write_bytes(parts[kept])
    words = ("export", "--format", "csv", "--out", tmp_path / "out", "--resume")
    if kept == "more":
        with pytest.raises(UsageError, match="not a part of this export"):
            audit(*words)
        return
    assert audit(*words) == 0
    assert (tmp_path / "out").read_bytes() == whole


def test_a_part_of_something_else_is_not_gone_on_with(site: Any, audit: Audit, tmp_path: Path) -> None:
    part, out = tmp_path / "out.part", tmp_path / "out"
    leaves = leaves_of(site)
    other = leaves[0].replace(b"example", b"exbmple") if b"example" in leaves[0] else leaves[1]
    for content in (
        expected(site, "ocsf", 0, 1),  # another format
        expected(site, "ndjson", 1, 2),  # another range
        FORMATS["ndjson"].line(place(0, other)),  # another log
        b"no lines of ours\n",
    ):
        part.write_bytes(content)
        with pytest.raises(UsageError, match="not a part of this export"):
            audit("export", "--format", "ndjson", "--out", out, "--resume")
        assert part.read_bytes() == content
        assert not out.exists()


def prune(site: Any, *gone: int) -> None:
    """As the log announces it; the last record is never gone."""
    text = " ".join(map(str, gone))
    site.service.log.append(Record(kind="retention.pruned", outcome="pruned", detail={"pruned": text}))
    site.service.pruned |= set(gone)


def kept_lines(site: Any, name: str) -> bytes:
    form, leaves = FORMATS[name], leaves_of(site)
    at = [index for index in range(len(leaves)) if index not in site.service.pruned]
    return form.header + b"".join(form.line(place(index, leaves[index])) for index in at)


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_after_a_pruning_begins_at_the_first_record_that_is_kept_and_says_so(
    site: Any, audit: Audit, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any, name: str
) -> None:
    prune(site, 0, 1, 3)
    monkeypatch.setattr(line_download, "RECORDS_PER_REQUEST", 2)
    assert audit("export", "--format", name, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out").read_bytes() == kept_lines(site, name)
    said = capsys.readouterr().out
    assert f"3 of these {len(leaves_of(site))} records are no longer kept" in said
    assert "the first one that is kept is record 2" in said
    part = kept_lines(site, name)
    (tmp_path / "again.part").write_bytes(part[: part.rindex(b"\n", 0, -1) - 3])
    assert audit("export", "--format", name, "--out", tmp_path / "again", "--resume") == 0
    assert (tmp_path / "again").read_bytes() == part


def test_after_a_pruning_too_a_part_of_another_range_is_not_gone_on_with(
    site: Any, audit: Audit, tmp_path: Path
) -> None:
    prune(site, 0, 3)  # one that came before the pruning may stay in the part
    form, leaves = FORMATS["ndjson"], leaves_of(site)
    for indices in ((2,), (4, 5), (2, 1)):
        part = b"".join(form.line(place(index, leaves[index])) for index in indices)
        (tmp_path / "out.part").write_bytes(part)
        words = ("export", "--format", "ndjson", "--out", tmp_path / "out", "--resume")
        with pytest.raises(SealgateError):
            audit(*words)
        assert (tmp_path / "out.part").read_bytes() == part


def test_a_range_of_which_nothing_is_kept(
    site: Any, audit: Audit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prune(site, 0, 1)
    assert audit("export", "--format", "csv", "--out", tmp_path / "out", "--last", "1") == 0
    assert (tmp_path / "out").read_bytes() == FORMATS["csv"].header
    assert "none of them is" in capsys.readouterr().out


@pytest.mark.parametrize("name", FORMATS)
def test_each_line_says_which_record_it_is(site: Any, audit: Audit, name: str) -> None:
    form = FORMATS[name]
    for index in (0, 1, 1_000_003):
        line = form.line(place(index, leaves_of(site)[1]))
        assert form.index_of(line) == index
        for other in FORMATS:
            if other != name:
                with pytest.raises(DecodeError):
                    FORMATS[other].index_of(line)
    for garbage in (b"", b"\n", b"{}\n", b"\xff" * 9, b'{"sequence":"-0000000000000000001"}\n'):
        with pytest.raises(DecodeError):
            form.index_of(garbage)


def test_a_link_at_the_parts_name_is_not_followed(audit: Audit, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "out.part").symlink_to(precious)
    for words in ((), ("--resume",)):
        with pytest.raises(ConfigurationError):
            audit("export", "--format", "csv", "--out", tmp_path / "out", *words)
    assert precious.read_text() == "mine"


def test_slips_are_one_line(audit: Audit, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words in (
        ("--resume",),
        ("--format", "csv", "--kept", tmp_path / "token"),
        ("--format", "csv", "--first", "5", "--last", "2"),
        ("--format", "csv", "--first", "-1"),
    ):
        with pytest.raises(UsageError):
            audit("export", "--out", out, *words)
    with pytest.raises(ConfigurationError):
        audit("export", "--format", "csv", "--out", tmp_path / "no" / "out")
    with pytest.raises(SystemExit):
        audit("export", "--format", "xml", "--out", out)


# Offline -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_bundle_is_converted_to_the_same_lines(
    site: Any, audit: Audit, tmp_path: Path, name: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    bundle, out = tmp_path / "evidence.zip", tmp_path / "out"
    audit("export", "--out", bundle, "--first", "1")
    lines = expected(site, name, 1)
    words = ("convert", bundle, "--format", name, "--trust", site.trust)
    assert run(AUDIT, *words, "--out", out) == 0
    assert out.read_bytes() == lines
    with pytest.raises(UsageError, match="--force"):
        run(AUDIT, *words, "--out", out)
    assert run(AUDIT, *words, "--out", out, "--force") == 0
    capfdbinary.readouterr()
    assert run(AUDIT, *words) == 0
    assert capfdbinary.readouterr().out == lines


def test_a_bundle_that_does_not_verify_is_not_converted(
    site: Any, audit: Audit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, out = tmp_path / "evidence.zip", tmp_path / "out"
    audit("export", "--out", bundle)
    bundle.write_bytes(bundle.read_bytes().replace(b"diagnosis", b"diagnosys", 1))
    assert run(AUDIT, "convert", bundle, "--format", "csv", "--trust", site.trust, "--out", out) == 1
    assert "REFUSED" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(ConfigurationError):
        run(AUDIT, "convert", tmp_path / "missing", "--format", "csv", "--trust", site.trust)


def test_a_record_is_shown_as_a_cose_receipt_too(
    site: Any, audit: Audit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "receipt.cose"
    assert audit("show", "record-1", "--cose", out) == 0
    assert "proven" in capsys.readouterr().out
    leaf = (tmp_path / "receipt.cose.leaf").read_bytes()
    assert leaf == leaves_of(site)[1]
    keys = [site.service.log.signer.verifier]
    assert verify_cose_receipt(out.read_bytes(), leaf, keys).index == 1
    with pytest.raises(UsageError):
        audit("show", "--receipt", tmp_path / "token", "--cose", out)


# The form of what comes ----------------------------------------------------------------------------------------------


def test_more_or_less_than_was_asked_for_is_refused(site: Any, audit: Audit) -> None:
    del audit
    for name, form in FORMATS.items():
        whole = expected(site, name, 0, 2)
        lines = ExportLines(form, 3)
        taken = b"".join(lines.take(whole[at : at + 7]) for at in range(0, len(whole), 7))
        lines.finish()
        assert form.header + taken == whole
        for count, content in ((2, whole), (4, whole), (3, whole[:-1]), (3, whole + b"x")):
            with pytest.raises(DecodeError):
                _take_all(ExportLines(form, count), content)
    with pytest.raises(DecodeError):
        _take_all(ExportLines(FORMATS["csv"], 1), b"{}\n")
    with pytest.raises(DecodeError):
        _take_all(ExportLines(FORMATS["ndjson"], 1), b"x" * 1_000_000)


def _take_all(lines: ExportLines, content: bytes) -> None:
    lines.take(content)
    lines.finish()


def test_a_measured_part_is_whole_lines(site: Any, audit: Audit) -> None:
    del audit
    whole = expected(site, "syslog")
    assert measure(io.BytesIO(whole), FORMATS["syslog"]).records == len(leaves_of(site))


# The bar -------------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_is_for_terminals_only() -> None:
    times = iter(range(0, 10**12, 50_000_000))
    shown, piped = Terminal(), io.StringIO()
    for stream in (shown, piped):
        with ProgressBar(200, unit="records", stream=stream, clock=lambda: next(times)) as bar:
            for _ in range(200):
                bar.advance(1)
    assert piped.getvalue() == ""
    drawn = shown.getvalue().split("\r\x1b[K")
    assert drawn[-1] == ""
    assert 90 <= len(drawn) <= 102
    assert "50%  101 of 200 records, 20/s, 4 s left" in shown.getvalue()
