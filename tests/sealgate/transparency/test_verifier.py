"""The offline verifier, step by step: each step can fail, says so, and hides no other."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealgate.errors import ConfigurationError, LogError
from sealgate.transparency import bundle as bundle_module
from sealgate.transparency import verifier as verifier_module
from sealgate.transparency.bundle import BundleWriter
from sealgate.transparency.checks import Range, Reconcile
from sealgate.transparency.container import ContainerReader, ContainerWriter
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.notes import NoteSigner, open_checkpoint
from sealgate.transparency.record import Record, leaf_bytes, parse_leaf
from sealgate.transparency.verifier import LogTrust, Report, verify_bundle
from sealgate.transparency.witness_policy import parse_witness_policy


def check(log: Any, bundle: io.BytesIO, *, kept: bytes | None = None, **options: Any) -> Report:
    return verify_bundle(bundle, LogTrust(verifiers=(log.signer.verifier,), kept_checkpoint=kept), **options)


def statuses(report: Report) -> dict[int, str]:
    return {step.number: step.status for step in report.steps}


def only(report: Report, number: int) -> str:
    """The detail of the one failed step; fails unless it is this one."""
    assert [step.number for step in report.failures] == [number], report.lines()
    with pytest.raises(LogError):
        report.require()
    return report.steps[number - 1].detail


def test_an_honest_log_verifies_in_strict_mode(log) -> None:
    report = check(log, log.bundle(), kept=log.checkpoint(4), strict=True, receipts=[log.receipt(3), log.receipt(7)])
    assert report.ok, report.lines()
    assert set(statuses(report).values()) == {"ok"}
    assert len(report.steps) == 10
    assert report.require().size == len(log.leaves)
    assert "witness" in report.lines()[-1]  # what is not proven is said


def test_a_skipped_step_fails_only_in_strict_mode(log) -> None:
    assert check(log, log.bundle()).ok
    strict = check(log, log.bundle(), strict=True)
    assert "no checkpoint was kept" in only(strict, 5)


def test_from_a_file_and_without_one(log, tmp_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    path.write_bytes(log.bundle().getvalue())
    assert verify_bundle(path, LogTrust(verifiers=(log.signer.verifier,))).ok
    with pytest.raises(ConfigurationError):
        verify_bundle(tmp_path / "absent.zip", LogTrust(verifiers=(log.signer.verifier,)))
    with pytest.raises(ConfigurationError):
        verify_bundle(path, LogTrust(verifiers=()))


# 1: form


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, 10**9))
def test_any_flipped_bit_of_a_bundle_is_noticed(log, bit: int) -> None:
    data = bytearray(log.bundle(2, 6, consistent_with=4).getvalue())
    bit %= len(data) * 8
    data[bit // 8] ^= 1 << bit % 8
    assert not check(log, io.BytesIO(bytes(data))).ok


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_garbage_is_a_failed_step(log, data: bytes) -> None:
    report = check(log, io.BytesIO(data))
    assert statuses(report)[1] == "failed"
    assert {step.status for step in report.steps[1:]} == {"skipped"}


@pytest.mark.parametrize("name", ["checkpoint", "entries/00000001.ndjson", "range-proof", "consistency-proof"])
def test_a_repacked_member_does_not_have_its_digest(log, name: str) -> None:
    """A well-formed ZIP with one member exchanged, its checksum right, its digest in the manifest not."""
    honest = ContainerReader(log.bundle(0, 7, consistent_with=4))
    out = io.BytesIO()
    writer = ContainerWriter(out)
    for member in honest.names:
        content = honest.read(member)
        writer.add(member, content.replace(b"A", b"B") + b"\n" if member == name else content)
    writer.close()
    report = check(log, out)
    assert not report.ok
    assert any("digest in its manifest" in step.detail for step in report.failures), report.lines()


def test_checks_that_could_not_see_every_entry_do_not_call_anything_ok(log) -> None:
    honest = ContainerReader(log.bundle(0, 7))
    out = io.BytesIO()
    writer = ContainerWriter(out)
    for member in honest.names:
        writer.add(member, honest.read(member) + (b"\n" if member.startswith("entries/") else b""))
    writer.close()
    found = statuses(check(log, out))
    assert found[3] == "failed"
    assert "ok" not in {found[number] for number in (6, 7, 8, 9)}


# 2: signature


def test_a_checkpoint_by_a_stranger(log) -> None:
    stranger = NoteSigner.from_seed(log.origin, b"\x66" * 32)
    report = verify_bundle(log.bundle(), LogTrust(verifiers=(stranger.verifier,)))
    assert statuses(report)[2] == "failed"
    assert statuses(report)[4] == "skipped"  # no root to compare with, so nothing is called verified
    assert report.checkpoint is None


def test_a_checkpoint_of_another_size_or_log(log) -> None:
    only_note = check(log, log.bundle(note=log.checkpoint(5)))
    assert "manifest" in only_note.steps[1].detail
    assert statuses(check(log, log.bundle(origin="example.com/other")))[2] == "failed"


# 3 and 4: entries and root


@pytest.mark.parametrize("damage", ["changed", "removed", "swapped", "doubled"])
def test_entries_that_are_not_the_logged_ones(log, damage: str) -> None:
    leaves = list(log.leaves)
    if damage == "changed":
        leaves[3] = leaf_bytes(msgspec.structs.replace(log.records[3], units=999))
    elif damage == "removed":
        del leaves[-1]
    elif damage == "swapped":
        leaves[0], leaves[1] = leaves[1], leaves[0]
    else:
        leaves[1] = leaves[0]
    report = check(log, log.bundle(leaves=leaves))
    assert statuses(report)[4] == "failed", report.lines()
    assert not report.ok


def test_a_leaf_that_is_no_record_or_of_another_log(log) -> None:
    log.leaves.append(b'{"not":"a record"}')
    log.leaves.append(log.leaves[0].replace(b"example.com/log", b"example.com/old"))
    assert "2 more" not in only(check(log, log.bundle()), 3)
    assert "another log" in check(log, log.bundle()).steps[2].detail


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.integers(0, 8), length=st.integers(1, 9))
def test_every_range_proves_itself(log, first: int, length: int) -> None:
    last = min(first + length, len(log.leaves)) - 1
    report = check(log, log.bundle(first, last))
    assert report.ok, report.lines()
    assert statuses(report)[4] == "ok"


def test_a_range_said_to_stand_elsewhere(log) -> None:
    """Records 3 and 4, sold as 5 and 6, with the honest proof of either place."""
    report = check(log, log.bundle(5, 6, leaves=log.leaves[3:5]))
    assert statuses(report)[4] == "failed"


# 5: growth


def test_growth_from_a_kept_checkpoint(log) -> None:
    size = len(log.leaves)
    for kept in range(1, size + 1):
        assert statuses(check(log, log.bundle(), kept=log.checkpoint(kept)))[5] == "ok"  # recomputed from entries
        part = check(log, log.bundle(4, 5, consistent_with=kept), kept=log.checkpoint(kept))
        assert statuses(part)[5] == "ok"  # by consistency proof
    assert statuses(check(log, log.bundle(4, 5), kept=log.checkpoint(3)))[5] == "skipped"
    assert statuses(check(log, log.bundle(), kept=log.checkpoint(0)))[5] == "skipped"


def test_a_rewritten_past_is_noticed_by_who_kept_a_checkpoint(log) -> None:
    kept = log.checkpoint(5)
    log.leaves[2] = leaf_bytes(msgspec.structs.replace(log.records[2], salt="f" * 32))
    assert "first records" in only(check(log, log.bundle(), kept=kept), 5)
    part = check(log, log.bundle(8, 8, consistent_with=5), kept=kept)
    assert statuses(part)[5] == "failed"
    same_size = log.checkpoint()
    log.leaves[2] = leaf_bytes(log.records[2])
    assert statuses(check(log, log.bundle(), kept=same_size))[5] == "failed"


def test_a_kept_checkpoint_that_is_damaged_or_newer(log) -> None:
    assert statuses(check(log, log.bundle(), kept=b"nonsense"))[5] == "failed"
    bundle = log.bundle()
    log.request()
    assert statuses(check(log, bundle, kept=log.checkpoint()))[5] == "skipped"


# 6: reconcile


def test_an_authorization_without_an_end(log) -> None:
    log.authorize()
    report = check(log, log.bundle())
    assert statuses(report)[6] == "skipped"  # it may be under way
    assert "no end within the range" in report.steps[5].detail
    assert not check(log, log.bundle(), strict=True).ok
    log.append(kind="log.opened", outcome="opened")
    assert statuses(check(log, log.bundle()))[6] == "skipped"  # the ends may be in the next batch
    log.authorize()
    assert "no end although the log was reopened" in only(check(log, log.bundle()), 6)


def test_an_abort_after_reopening_is_an_end(log) -> None:
    at, begun = log.authorize()
    log.append(kind="log.opened", outcome="opened")
    same = {name: getattr(begun, name) for name in ("tenant", "actor", "purpose", "operation", "model")}
    log.append(kind="inference.aborted", outcome="aborted", grant=begun.id, intent_seq=at, **same)
    log.request()
    assert statuses(check(log, log.bundle()))[6] == "ok"


def test_two_ends_no_beginning_and_another_caller(log) -> None:
    at, begun = log.authorize()
    log.complete(at, begun)
    log.complete(at, begun)
    assert "second end" in only(check(log, log.bundle()), 6)


@pytest.mark.parametrize("change", [{"actor": "b" * 32}, {"purpose": "ads"}, {"intent_seq": 3}, {"tenant": "x"}])
def test_an_end_that_disagrees_with_its_authorization(log, change: dict[str, Any]) -> None:
    log.complete(*log.authorize(), **change)
    assert "differ" in only(check(log, log.bundle()), 6)


def test_an_answer_from_another_model(log) -> None:
    at, begun = log.authorize()
    log.complete(at, msgspec.structs.replace(begun, model="other"))
    assert "model" in only(check(log, log.bundle()), 6)


def test_a_range_cannot_tell_about_what_began_before_it(log) -> None:
    report = check(log, log.bundle(3, 8))
    assert statuses(report)[6] == "skipped"
    assert "before the range" in report.steps[5].detail
    assert report.ok


# 7 and 8: workers


def test_a_forged_or_missing_worker_signature(log) -> None:
    honest, log.worker = log.worker, Ed25519PrivateKey.generate()
    log.request()
    assert "does not hold" in only(check(log, log.bundle()), 7)
    log.worker = honest


def test_a_completion_without_a_signature(log) -> None:
    log.complete(*log.authorize(), runtime_sig="", runtime_seq=0)
    assert "no worker signed" in only(check(log, log.bundle()), 7)


def test_an_answer_that_the_host_calls_a_failure(log) -> None:
    log.complete(*log.authorize(), kind="inference.failed")
    assert "not what its worker signed" in only(check(log, log.bundle()), 7)


def test_signed_fields_that_were_changed(log) -> None:
    log.complete(*log.authorize(), units=100)
    assert statuses(check(log, log.bundle()))[7] == "failed"


def test_a_worker_that_never_started_or_twice(log) -> None:
    log.complete(*log.authorize(), instance="worker-9")
    report = check(log, log.bundle())
    assert "worker-9" in report.steps[6].detail
    assert statuses(report)[7] == "failed"
    log.worker_start()
    assert "started before" in check(log, log.bundle()).steps[6].detail


def test_a_range_names_the_workers_whose_keys_stand_before_it(log) -> None:
    report = check(log, log.bundle(2, 7))
    assert statuses(report)[7] == "skipped"
    assert "worker-1" in report.steps[6].detail
    assert report.ok
    assert not check(log, log.bundle(2, 7), strict=True).ok


def test_a_dropped_completion_leaves_a_gap(log) -> None:
    log.seq += 1  # the worker signed one that the host never wrote
    log.request()
    assert "misses 1 from counter 4" in only(check(log, log.bundle()), 8)


def test_a_gap_is_seen_within_a_range_too(log) -> None:
    log.seq += 2
    start = len(log.leaves)
    log.request()
    log.seq += 3
    log.request()
    report = check(log, log.bundle(start, len(log.leaves) - 1))
    assert "misses 3" in report.steps[7].detail


def test_a_counter_that_repeats(log) -> None:
    log.seq -= 1
    log.request()
    assert "repeats counter 3" in only(check(log, log.bundle()), 8)


# 10: receipts


def test_receipts_of_this_log_and_of_a_rewritten_one(log) -> None:
    receipt = log.receipt(3)
    part = check(log, log.bundle(4, 6), receipts=[receipt])
    assert statuses(part)[10] == "skipped"
    log.leaves[3] = leaf_bytes(msgspec.structs.replace(log.records[3], salt="e" * 32))
    log.records[3] = msgspec.structs.replace(log.records[3], salt="e" * 32)
    assert "another record" in only(check(log, log.bundle(), receipts=[receipt]), 10)
    assert "receipt 1" in only(check(log, log.bundle(), receipts=[b"garbage"]), 10)


def _shown_to_a_client(log: Any, size: int) -> bytes:
    """A receipt for record 3, signed by the log, of a tree of `size` records whose first record is another."""
    other = copy.deepcopy(log)
    del other.leaves[size:], other.records[size:]
    other.leaves[0] = leaf_bytes(msgspec.structs.replace(other.records[0], salt="e" * 32))
    return bytes(other.receipt(3))


@pytest.mark.parametrize(("first", "size"), [(0, 9), (0, 6), (2, 9)])
def test_a_receipt_from_another_tree_is_noticed_though_its_record_is_the_same(log, first: int, size: int) -> None:
    report = check(log, log.bundle(first), receipts=[log.receipt(3), _shown_to_a_client(log, size)])
    assert f"another tree of {size} records" in only(report, 10)


def test_a_kept_checkpoint_and_a_receipt_that_contradict_each_other(log) -> None:
    report = check(log, log.bundle(2), kept=log.checkpoint(6), receipts=[_shown_to_a_client(log, 6)])
    assert "another tree of 6 records" in only(report, 10)


def test_two_receipts_of_different_trees_contradict_each_other_wherever_they_stand(log) -> None:
    smaller = copy.deepcopy(log)
    del smaller.leaves[6:], smaller.records[6:]
    report = check(log, log.bundle(2), receipts=[smaller.receipt(3), _shown_to_a_client(log, 6)])
    assert "receipts 1 and 2" in only(report, 10)
    alone = check(log, log.bundle(2), receipts=[_shown_to_a_client(log, 6)])
    assert "cannot tell" in alone.steps[9].detail


def test_a_receipt_of_another_log_is_not_held_against_this_one(log) -> None:
    other = copy.deepcopy(log)
    other.origin, other.signer = "example.com/other", NoteSigner.from_seed("example.com/other", b"\x05" * 32)
    other.leaves, other.records, other.seq = [], [], 0
    other.worker_start()
    other.request()
    trust = LogTrust(verifiers=(log.signer.verifier, other.signer.verifier))
    report = verify_bundle(log.bundle(), trust, receipts=[log.receipt(3), other.receipt(2)])
    assert report.ok
    assert (report.steps[9].status, report.steps[9].detail) == (
        "skipped",
        "1 match; 0 are outside the range, 1 of another log",
    )


# The verifier itself


def test_more_entries_than_announced_are_not_even_looked_at(log, monkeypatch: Any) -> None:
    seen = 0

    def counted(leaf: bytes) -> Record:
        nonlocal seen
        seen += 1
        return parse_leaf(leaf)

    monkeypatch.setattr(verifier_module, "parse_leaf", counted)
    out = io.BytesIO()
    writer = BundleWriter(out, origin=log.origin, first=0, last=8, size=9, note=log.checkpoint())
    writer.entries(log.leaves)
    writer.entries([b"x"] * 100_000)
    writer._written = 9
    writer.finish([])
    report = check(log, out)
    assert "more entries than it announces" in report.steps[2].detail
    assert [step.number for step in report.failures] == [3]
    assert seen == 9


def test_opening_a_log_again_and_again_costs_no_look_at_everything_that_is_open(log) -> None:
    class Open(dict):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            raise AssertionError(
                "each opening looks through all open requests: time grows with the square of the range"
            )

    reconcile = Reconcile(Range(0, 6, 7))
    reconcile._open = Open()
    for index in range(0, 6, 2):
        reconcile.see(index, log.authorize()[1], b"")
        reconcile.see(index + 1, log.append(kind="log.opened", outcome="opened"), b"")
    verdict = reconcile.verdict(Range(0, 6, 7))
    assert verdict.status == "failed"
    assert verdict.detail.count("although the log was reopened") == 2  # each is said once; the third may yet end


@pytest.mark.slow
def test_every_byte_of_a_bundle_counts(log) -> None:
    data = log.bundle(2, 6, consistent_with=4).getvalue()
    for at in range(len(data)):
        for bit in range(8):
            changed = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            assert not check(log, io.BytesIO(changed)).ok, (at, bit)


def test_it_needs_nothing_of_what_wrote_the_log() -> None:
    script = "import sys, sealgate.transparency.verifier\nprint(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True).stdout
    others = {"audit", "sqlalchemy", "httpx", "litestar", "torch", "numpy", "policy", "gateway", "secure_runtime"}
    assert not others & set(loaded.split())
    assert {"sealgate", "cryptography", "msgspec"} <= set(loaded.split())


def test_a_manifest_cannot_announce_endless_work(log, monkeypatch: Any) -> None:
    monkeypatch.setattr(bundle_module, "MAX_BUNDLE_RECORDS", 3)
    assert "more records" in check(log, log.bundle()).steps[0].detail


# Witnesses ----------------------------------------------------------------------------------------------------------

WITNESS = Cosigner("witness.example/w", Ed25519PrivateKey.from_private_bytes(b"\x0a" * 32))


def witnessed(log: Any, bundle: io.BytesIO, cosigned: bytes | None, quorum: str = "W") -> Report:
    policy = parse_witness_policy(f"witness W {WITNESS.public.vkey}\nquorum {quorum}\n".encode())
    trust = LogTrust(verifiers=(log.signer.verifier,), witnesses=policy, cosigned_checkpoint=cosigned)
    return verify_bundle(bundle, trust)


def cosigned_at(log: Any, size: int) -> bytes:
    note: bytes = log.checkpoint(size)
    return note + WITNESS.cosign(open_checkpoint(note, [log.signer.verifier]).checkpoint, timestamp_s=1)


@pytest.mark.parametrize("size", [1, 4, 9])
def test_a_quorum_that_saw_an_earlier_state_of_this_very_log(log, size: int) -> None:
    report = witnessed(log, log.bundle(), cosigned_at(log, size))
    assert report.steps[-1].status == "ok", report.lines()
    assert f"witness.example/w, at {size} records" in report.steps[-1].detail
    assert report.limits == ()


def test_witnesses_that_saw_another_history_refuse_the_bundle(log) -> None:
    shown = cosigned_at(log, 4)
    changed = msgspec.structs.replace(parse_leaf(log.leaves[2]), purpose="ads")
    log.leaves[2] = leaf_bytes(changed)
    report = witnessed(log, log.bundle(), shown)
    assert "another history" in report.steps[-1].detail
    assert not report.ok


def test_a_bundle_without_a_quorum(log) -> None:
    report = witnessed(log, log.bundle(), None)
    assert "no cosignature of: W" in report.steps[-1].detail
    assert not report.ok


def test_a_policy_that_asks_for_nobody_is_a_skipped_step(log) -> None:
    report = witnessed(log, log.bundle(), cosigned_at(log, 4), quorum="none")
    assert report.steps[-1].status == "skipped"


def test_a_range_that_cannot_show_what_the_witnesses_saw(log) -> None:
    report = witnessed(log, log.bundle(3, 8), cosigned_at(log, 2))
    assert report.steps[-1].status == "skipped"
    assert "all records up to 2" in report.steps[-1].detail
