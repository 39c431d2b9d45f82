"""The witness's decisions, by every answer of the protocol, by random histories, by threads, and by SIGKILL."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealgate.transparency.cosignatures import verify_cosignatures
from sealgate.transparency.notes import NoteSigner
from sealgate.witness.folder import WitnessFolder, add_log, make_folder, open_folder
from sealgate.witness.witness import MEDIA_SIZE, Submission, WitnessRefusal, encode_submission, parse_submission
from tests.sealgate.witness.trees import LOG, ORIGIN, TREE, Tree


@pytest.fixture
def folder(tmp_path: Path) -> WitnessFolder:
    make_folder(tmp_path / "w", name="witness.example/w")
    add_log(tmp_path / "w", LOG.vkey)
    return open_folder(tmp_path / "w")


def refused(folder: WitnessFolder, body: bytes) -> WitnessRefusal:
    with pytest.raises(WitnessRefusal) as raised:
        folder.witness().add_checkpoint(body)
    return raised.value


def size_of(folder: WitnessFolder) -> int:
    seen = folder.store.newest(ORIGIN)
    return seen.checkpoint.size if seen else 0


def test_what_grows_is_cosigned_with_both_keys_at_the_time_of_now(folder: WitnessFolder) -> None:
    witness = folder.witness(clock=lambda: 1_700_000_000_000_000)
    old = 0
    for new in (1, 2, 7, 8, 8, 33, 40):
        lines = witness.add_checkpoint(TREE.body(old, new))
        found = verify_cosignatures(TREE.note(new) + lines, [one.public for one in folder.cosigners])
        assert [one.timestamp_s for one in found] == [1_700_000_000] * 2
        old = new
    assert size_of(folder) == 40


def test_the_empty_tree_may_be_cosigned(folder: WitnessFolder) -> None:
    assert folder.witness().add_checkpoint(TREE.body(0, 0))
    assert folder.witness().add_checkpoint(TREE.body(0, 5))


def test_each_refusal_of_the_protocol(folder: WitnessFolder) -> None:
    folder.witness().add_checkpoint(TREE.body(0, 10))
    stranger = NoteSigner.from_seed("example.com/other", b"\x01" * 32)
    imposter = NoteSigner.from_seed(ORIGIN, b"\x02" * 32)
    assert refused(folder, b"").status == 400
    assert refused(folder, encode_submission(Submission(10, (), TREE.note(20, stranger)))).status == 404
    assert refused(folder, encode_submission(Submission(10, (), TREE.note(20, imposter)))).status == 403
    assert refused(folder, encode_submission(Submission(21, (), TREE.note(20)))).status == 400
    wrong = refused(folder, TREE.body(5, 20))
    assert (wrong.status, wrong.body, wrong.media_type) == (409, "10\n", MEDIA_SIZE)
    assert refused(folder, TREE.body(9, 9)).status == 409  # an older tree, truly the log's
    assert refused(folder, encode_submission(Submission(10, (), TREE.note(20)))).status == 422
    assert refused(folder, Tree(40, salt=b"x", from_=3).body(10, 20)).status == 422
    assert refused(folder, encode_submission(Submission(10, (b"\x00" * 32,), TREE.note(10)))).status == 422
    assert size_of(folder) == 10


def test_two_trees_of_one_size_are_kept_as_proof(folder: WitnessFolder, tmp_path: Path) -> None:
    said: list[str] = []
    witness = folder.witness(tell=said.append)
    witness.add_checkpoint(TREE.body(0, 10))
    other = Tree(10, salt=b"x")
    with pytest.raises(WitnessRefusal) as raised:
        witness.add_checkpoint(other.body(10, 10))
    assert raised.value.status == 409
    (kept,) = (tmp_path / "w" / "conflicts").iterdir()
    assert (kept / "kept.note").read_bytes() == TREE.note(10)
    assert (kept / "newer.note").read_bytes() == other.note(10)
    assert "CONFLICT" in said[0]


@given(st.binary(max_size=300))
def test_garbage_is_a_bad_request(data: bytes) -> None:
    try:
        submission = parse_submission(data)
    except WitnessRefusal as refusal:
        assert refusal.status == 400  # noqa: PT017
    else:
        assert encode_submission(submission) == data


@pytest.mark.parametrize("change", ["old -1", "old 01", "old 1 ", "OLD 1", "old", "old \u0661", "old 1\n" * 70])
def test_other_forms_of_the_first_line_are_refused(change: str) -> None:
    with pytest.raises(WitnessRefusal):
        parse_submission(change.encode() + b"\n\n" + TREE.note(3))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_whatever_is_asked_the_memory_only_grows_along_one_history(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    root = tmp_path / str(seed)
    if not root.exists():
        make_folder(root, name="w.example")
        add_log(root, LOG.vkey)
    folder = open_folder(root)
    forks = [TREE, Tree(40, salt=b"a", from_=chance.randrange(40)), Tree(40, salt=b"b", from_=chance.randrange(40))]
    cosigned: list[tuple[int, bytes]] = []
    for _ in range(12):
        tree, old, new = chance.choice(forks), chance.choice([0, size_of(folder)]), chance.randrange(1, 41)
        if old <= new:
            try:
                folder.witness().add_checkpoint(tree.body(old, new))
            except WitnessRefusal:
                continue
            cosigned.append((new, tree.roots[new]))
    assert [size for size, _ in cosigned] == sorted(size for size, _ in cosigned)
    assert any(all(fork.roots[size] == root for size, root in cosigned) for fork in forks)


def test_threads_that_race_never_take_it_back(folder: WitnessFolder) -> None:
    witness = folder.witness()
    witness.add_checkpoint(TREE.body(0, 5))
    done: list[int] = []

    def ask(new: int) -> None:
        try:
            witness.add_checkpoint(TREE.body(5, new))
        except WitnessRefusal as refusal:
            assert refusal.media_type == MEDIA_SIZE  # noqa: PT017
        else:
            done.append(new)

    threads = [threading.Thread(target=ask, args=(new,)) for new in range(6, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 1
    assert size_of(folder) == done[0]


def test_what_was_cosigned_survives_sigkill(folder: WitnessFolder) -> None:
    """The process prints a size once its cosignature is out; after the kill the memory has at least that size."""
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from sealgate.witness.folder import open_folder\n"
        "from tests.sealgate.witness.trees import TREE\n"
        "w = open_folder(Path(sys.argv[1])).witness()\n"
        "for n in range(1, 40):\n"
        "    w.add_checkpoint(TREE.body(n - 1, n)); print(n, flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(folder.root), str(Path(__file__).parents[3])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stdout is not None
        said = [int(next(process.stdout)) for _ in range(random.randrange(3, 20))]
        process.send_signal(signal.SIGKILL)
        said += [int(line) for line in process.stdout if line.strip()]
    size = size_of(folder)
    assert said[-1] <= size <= said[-1] + 1
    assert folder.witness().add_checkpoint(TREE.body(size, 40))
