"""Pipelines under attack: composition, people, members that were exchanged, and wirings that do not fit."""

from __future__ import annotations

import shutil
from fractions import Fraction
from functools import cache
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.certificate.architectures import LogisticRegressionSpec
from sealgate.certificate.architectures.pipeline import PipelineSpec
from sealgate.certificate.bundle import sha256_hex, verify_bundle
from sealgate.certificate.composition import compose
from sealgate.certificate.dsse import open_envelope, sign_envelope
from sealgate.certificate.files import CARD, CERTIFICATE, MANIFEST, SIGNATURE
from sealgate.certificate.inputs import Column, InputTensor, TableContent
from sealgate.certificate.manifest import manifest_bytes, parse_manifest
from sealgate.certificate.pipeline import is_pipeline, member_signature, verify_pipeline, weights_digest
from sealgate.certificate.pipeline_making import make_pipeline
from sealgate.certificate.publishers import publishers_of
from sealgate.certificate.recompute import recompute
from sealgate.certificate.sealed_weights import no_data_key
from sealgate.certificate.statement import (
    BundleFiles,
    composition_statement,
    parse_composition_statement,
    pipeline_statement,
)
from sealgate.errors import CertificateError, ConfigurationError
from sealgate.protocol.canonical import canonical_json
from tests.sealgate.certificate.conftest import Forge, a_manifest, some_weights

_once = cache(recompute)


@pytest.fixture(autouse=True)
def remembered_figures(monkeypatch):
    """The same constants are recomputed once for all tests here: what is tested is what becomes of the figure."""
    monkeypatch.setattr("sealgate.certificate.recompute.recompute", _once)


TWO = """
name = "both"
version = "1.0"
description = "two that agree"
[[member]]
name = "left"
bundle = "toy"
people = "{left}"
reads.features = "row"
[[member]]
name = "right"
bundle = "other"
people = "{right}"
reads.features = "row"
[fusion]
how = "mean"
weights.left = "0.5"
weights.right = "0.5"
"""

JUDGE = """
name = "chain"
version = "1.0"
description = "one reads the other"
[[member]]
name = "first"
bundle = "toy"
reads.features = "row"
[[member]]
name = "judge"
bundle = "judge"
reads.features = ["more", "first"]
"""


def a_judge() -> object:
    """Takes one column of its own, and two scores."""
    column = Column(name="age", low="0", high="120", center="40", scale="20")
    scores = tuple(Column(name=n, low="0", high="1", center="0", scale="1") for n in ("no", "yes"))
    content = TableContent(columns=(column, *scores))
    return msgspec.structs.replace(
        a_manifest(),
        name="judge",
        architecture=LogisticRegressionSpec(inputs=3, classes=2),
        inputs=(InputTensor(name="features", datatype="FP32", shape=(-1, 3), content=content),),
        sensitivity="special-category",
        purposes=("research", "care"),
        units_per_row=4,
    )


class Bench:
    """A folder with three bundles of one publisher, and pipelines made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.forge = Forge()
        self.forge.write(folder / "toy")
        other = Forge(key=self.forge.key).claim(dataset__commitment="cd" * 32, issued="2026-01-03")
        other.weights = some_weights().replace(b"\x00\x00\x00\x3f", b"\x00\x00\x40\x3f")  # 0.5 becomes 0.75
        self.other = other
        other.write(folder / "other")
        judge = Forge(key=self.forge.key, manifest=a_judge(), bundle_name="judge").claim(
            model="judge", dataset__commitment="ef" * 32
        )
        judge.write(folder / "judge")

    @property
    def publishers(self):
        return self.forge.publishers

    def make(self, text: str, out: str = "out", **changes: object):
        (self.folder / "p.toml").write_text(text)
        return make_pipeline(
            self.folder / "p.toml",
            self.folder / out,
            **{"key": self.forge.key, "publishers": self.publishers, "data_key": no_data_key, **changes},
        )

    def refused(self, directory: Path | None = None, publishers=None) -> str:
        with pytest.raises(CertificateError) as caught:
            verify_pipeline(directory or self.folder / "out", publishers or self.publishers)
        return caught.value.code

    def resign(self, *, manifest=None, composition=None, bundle_key=None, out: str = "out") -> None:
        """Sign again what was changed, as a publisher would who lies, so that only the lie decides."""
        folder = self.folder / out
        key = self.forge.key
        written = (folder / MANIFEST).read_bytes() if manifest is None else manifest_bytes(manifest)
        (folder / MANIFEST).write_bytes(written)
        found = parse_manifest(written)
        said = composition or self.composition(out)
        names = [one.name for one in found.architecture.members]
        members = {name: verify_bundle(folder / "members" / name, self.publishers) for name in names}
        if composition is None:
            said = msgspec.structs.replace(
                said,
                manifest_digest=sha256_hex(written),
                weights_digest=weights_digest(written, {n: one.weights_digest for n, one in members.items()}),
            )
        certificate = sign_envelope(composition_statement(said, {MANIFEST: said.manifest_digest}), key)
        (folder / CERTIFICATE).write_bytes(certificate)
        digests = {name: sha256_hex((folder / name).read_bytes()) for name in (MANIFEST, CERTIFICATE, CARD)}
        digests |= {member_signature(name): one.signature_digest for name, one in members.items()}
        named = BundleFiles(name=found.name, version=found.version)
        (folder / SIGNATURE).write_bytes(sign_envelope(pipeline_statement(named, digests), bundle_key or key))

    def composition(self, out: str = "out"):
        data = (self.folder / out / CERTIFICATE).read_bytes()
        signed = open_envelope(data, self.publishers, limit=10**6, signature_code="certificate-signature")
        return parse_composition_statement(signed.payload)[0]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_epsilons_of_the_same_people_add_up(bench):
    made = bench.make(TWO.format(left="", right=""))
    one = bench.forge.certificate
    assert made.facts.epsilon_micro == 2 * one.epsilon_micro
    assert made.composition.epsilon_replace_one_micro == 2 * one.epsilon_replace_one_micro
    assert made.facts.delta == "0.0002"
    assert made.manifest.units_per_row == 2
    assert made.composition.issued >= "2026-01-03"
    assert [one.name for one in made.manifest.inputs] == ["row"]
    assert is_pipeline(bench.folder / "out")
    assert made.facts.model_digest != bench.forge.certificate.weights_digest


def test_the_same_word_is_the_same_people(bench):
    made = bench.make(TWO.format(left="a", right="a"))
    assert made.facts.epsilon_micro == 2 * bench.forge.certificate.epsilon_micro


def test_declared_to_be_different_people_the_larger_counts_and_a_unit_may_move(bench):
    made = bench.make(TWO.format(left="a", right="b"))
    one = bench.forge.certificate
    assert made.facts.epsilon_micro == one.epsilon_micro
    assert made.composition.epsilon_replace_one_micro == max(one.epsilon_replace_one_micro, 2 * one.epsilon_micro)
    assert made.facts.delta == "0.0002"  # never less than members state


def test_a_member_without_a_word_is_of_everybodys_data(bench):
    made = bench.make(TWO.format(left="a", right=""))
    assert made.facts.epsilon_micro == 2 * bench.forge.certificate.epsilon_micro


def test_nobody_declares_whom_another_publishers_data_is_about(bench):
    stranger = Forge(certificate=bench.other.certificate, weights=bench.other.weights)
    shutil.rmtree(bench.folder / "other")
    stranger.write(bench.folder / "other")
    both = publishers_of({"hospital": bench.forge.key.public_key(), "stranger": stranger.key.public_key()})
    made = bench.make(TWO.format(left="a", right="b"), publishers=both)
    assert made.facts.epsilon_micro == 2 * bench.forge.certificate.epsilon_micro
    assert [one.people for one in made.composition.members] == ["a", ""]
    assert bench.refused() == "publisher-unknown"  # where the stranger is none


def test_the_same_data_is_not_of_different_people(bench):
    same = Forge(key=bench.forge.key, weights=bench.other.weights)
    shutil.rmtree(bench.folder / "other")
    same.write(bench.folder / "other")
    with pytest.raises(CertificateError) as caught:
        bench.make(TWO.format(left="a", right="b"))
    assert caught.value.code == "composition"
    assert not (bench.folder / "out").exists()


def test_a_member_is_not_counted_twice_nor_used_twice(bench):
    with pytest.raises(CertificateError) as caught:
        bench.make(TWO.format(left="", right="").replace('"other"', '"toy"'))
    assert caught.value.code == "composition"


class Fake:
    """What `compose` looks at."""

    def __init__(self, at: int, publisher: str, epsilon: int, replaced: int) -> None:
        self.publisher, self.certificate_digest = publisher, f"{at:064x}"
        self.certificate = msgspec.structs.replace(
            Forge().certificate,
            epsilon_micro=epsilon,
            epsilon_replace_one_micro=replaced,
            dataset=msgspec.structs.replace(Forge().certificate.dataset, commitment=f"{at:064x}"),
        )


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "a", "b", "c"]), st.booleans(), st.integers(1, 10**6), st.integers(1, 10**6)),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=80, deadline=None)
def test_the_cost_covers_every_way_to_change_one_unit(members):
    """The oracle: who is in which group is gone through case by case, one unit added, removed, replaced or moved."""
    fakes = {f"m{at}": Fake(at, "p" if own else "q", e, max(e, r)) for at, (_, own, e, r) in enumerate(members)}
    people = {f"m{at}": word for at, (word, *_) in enumerate(members)}
    cost = compose(fakes, people, publisher="p")
    word = {name: people[name] if one.publisher == "p" else "" for name, one in fakes.items()}
    groups = ["a", "b", "c", "nobody"]

    def touched(group):  # the members whose data a unit of this group is in
        return {name for name in fakes if word[name] in ("", group)}

    worst_added = max(sum(fakes[n].certificate.epsilon_micro for n in touched(group)) for group in groups)
    worst_replaced = 0
    for one in groups:
        for two in groups:
            total = 0
            for name in touched(one) | touched(two):
                certificate = fakes[name].certificate
                both = name in touched(one) & touched(two)
                total += certificate.epsilon_replace_one_micro if both else certificate.epsilon_micro
            worst_replaced = max(worst_replaced, total)
    assert cost.epsilon_micro == worst_added
    assert cost.epsilon_replace_one_micro == worst_replaced
    assert Fraction(cost.delta) == len(fakes) * Fraction(1, 10_000)


def test_units_that_differ_do_not_add_up(bench):
    odd = Fake(2, "p", 5, 5)
    odd.certificate = msgspec.structs.replace(odd.certificate, unit="user")
    with pytest.raises(CertificateError) as caught:
        compose({"a": Fake(1, "p", 5, 5), "b": odd}, {"a": "", "b": ""}, publisher="p")
    assert caught.value.code == "composition"


def test_a_chain_reads_columns_and_scores(bench):
    made = bench.make(JUDGE)
    assert [(one.name, one.shape) for one in made.manifest.inputs] == [("row", (-1, 3)), ("more", (-1, 1))]
    assert made.manifest.sensitivity == "special-category"
    assert made.manifest.purposes == ("research",)
    assert made.manifest.units_per_row == 5


LIES = {
    "a smaller epsilon": ({"epsilon_micro": 3_452_987}, "epsilon-mismatch"),
    "a smaller epsilon replaced": ({"epsilon_replace_one_micro": 1}, "epsilon-mismatch"),
    "a smaller delta": ({"delta": "0.00019"}, "epsilon-mismatch"),
    "no delta": ({"delta": "nothing"}, "delta"),
    "another unit": ({"unit": "user"}, "epsilon-mismatch"),
    "another adjacency": ({"adjacency": "replace"}, "certificate-malformed"),
    "other weights": ({"weights_digest": "aa" * 32}, "weights-digest"),
    "no members": ({"members": ()}, "composition"),
    "another manifest": ({"manifest_digest": "aa" * 32}, "manifest-digest"),
    "another model": ({"model": "toy"}, "manifest-inconsistent"),
    "an earlier day": ({"issued": "2026-01-02"}, "composition"),
    "no day": ({"issued": "2026-13-01\x1b[2J"}, "certificate-malformed"),
    "a delta of one": ({"delta": "1"}, "delta"),
    "no warning": ({"not_protected": ()}, "certificate-malformed"),
}


@pytest.mark.parametrize(("changes", "code"), LIES.values(), ids=LIES)
def test_a_certificate_that_its_members_do_not_bear_out(bench, changes, code):
    bench.make(TWO.format(left="", right=""))
    bench.resign(composition=msgspec.structs.replace(bench.composition(), **changes))
    assert bench.refused() == code


def test_more_than_its_members_cost_may_be_stated(bench):
    bench.make(TWO.format(left="", right=""))
    bench.resign(composition=msgspec.structs.replace(bench.composition(), epsilon_micro=4_000_000))
    assert verify_pipeline(bench.folder / "out", bench.publishers).facts.epsilon_micro == 4_000_000


def with_spec(manifest, **changes):
    return msgspec.structs.replace(manifest, architecture=msgspec.structs.replace(manifest.architecture, **changes))


def test_people_cannot_be_declared_behind_the_certificates_back(bench):
    made = bench.make(TWO.format(left="", right=""))
    members = tuple(msgspec.structs.replace(one, people=one.name) for one in made.spec.members)
    bench.resign(manifest=with_spec(made.manifest, members=members))
    assert bench.refused() == "composition"


CARELESS = {
    "less sensitive": {"sensitivity": "public"},
    "another purpose": {"purposes": ("care",)},
    "fewer units": {"units_per_row": 4},
}


@pytest.mark.parametrize("changes", CARELESS.values(), ids=CARELESS)
def test_a_pipeline_is_as_careful_as_its_members(bench, changes):
    made = bench.make(JUDGE)
    bench.resign(manifest=msgspec.structs.replace(made.manifest, **changes))
    assert bench.refused() == "wiring"


def test_sizes_are_those_of_the_members(bench):
    made = bench.make(JUDGE)
    bench.resign(manifest=with_spec(made.manifest, work=1))
    assert bench.refused() == "wiring"


def test_no_member_is_read_beyond_what_all_may_hold(bench, monkeypatch):
    bench.make(TWO.format(left="", right=""))
    read = []

    def noted(directory, *given, **named):
        read.append(directory.name)
        return verify_bundle(directory, *given, **named)

    monkeypatch.setattr("sealgate.certificate.pipeline.verify_bundle", noted)
    monkeypatch.setattr("sealgate.certificate.pipeline.MAX_PIPELINE_WEIGHTS", len(bench.forge.weights) - 1)
    assert (bench.refused(), read) == ("file-too-large", ["left"])


def test_files_that_were_exchanged(bench):
    bench.make(TWO.format(left="", right=""))
    out = bench.folder / "out"

    def tried(name: str, change) -> str:
        copy = bench.folder / f"copy-{name}"
        shutil.copytree(out, copy)
        change(copy)
        return bench.refused(copy)

    def exchange_members(copy: Path) -> None:
        (copy / "members" / "left").rename(copy / "members" / "x")
        (copy / "members" / "right").rename(copy / "members" / "left")
        (copy / "members" / "x").rename(copy / "members" / "right")

    def flip(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-1] + b"x")

    assert tried("swap", exchange_members) == "file-digest"
    assert tried("gone", lambda copy: shutil.rmtree(copy / "members" / "left")) == "statement-subject"
    assert tried("more", lambda copy: shutil.copytree(copy / "members" / "left", copy / "members" / "z")) == (
        "statement-subject"
    )
    assert tried("file", lambda copy: (copy / "x").write_bytes(b"")) == "unexpected-file"
    assert tried("pickle", lambda copy: (copy / "members" / "left" / "x.pkl").write_bytes(b"")) == "pickle-in-bundle"
    assert tried("card", lambda copy: flip(copy / CARD)) == "file-digest"
    assert tried("weights", lambda copy: flip(copy / "members" / "left" / "model.safetensors")) == "weights-digest"
    assert tried("missing", lambda copy: (copy / CARD).unlink()) == "missing-file"
    assert tried("link", lambda copy: (shutil.move(copy / "members", copy.parent / "m"), (copy / "members").symlink_to(
        copy.parent / "m"))) == "not-a-plain-file"  # fmt: skip


def test_a_pipeline_of_a_stranger_and_one_that_two_signed(bench):
    bench.make(TWO.format(left="", right=""))
    other = Ed25519PrivateKey.generate()
    both = publishers_of({"hospital": bench.forge.key.public_key(), "other": other.public_key()})
    bench.resign(bundle_key=other)
    assert bench.refused() == "publisher-unknown"
    assert bench.refused(publishers=both) == "publisher-mismatch"


def test_a_pipelines_manifest_makes_no_bundle_and_a_bundles_no_pipeline(bench):
    made = bench.make(TWO.format(left="", right=""))
    lone = Forge(key=bench.forge.key, manifest=made.manifest, bundle_name="both").claim(model="both", version="1.0")
    with pytest.raises(CertificateError) as caught:
        verify_bundle(lone.write(bench.folder / "lone"), bench.publishers)
    assert caught.value.code == "manifest-inconsistent"
    with pytest.raises(CertificateError) as caught:
        verify_bundle(bench.folder / "out", bench.publishers)
    assert caught.value.code in ("unexpected-file", "not-a-plain-file")
    (bench.folder / "toy" / "members").mkdir()
    assert bench.refused(bench.folder / "toy") == "unexpected-file"


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('reads.features = "row"', 'reads.nothing = "row"', "has no input"),
        ('weights.right = "0.5"', 'weights.nobody = "0.5"', "not there"),
        ('name = "right"', 'name = "left"', "name of its own"),
        ("[[member]]", "[[members]]", "members"),
        ('bundle = "toy"', 'bundle = "nowhere"', "nowhere"),
        ('how = "mean"', 'how = "vote"', "not one of mean, log-mean"),
        ('reads.features = "row"\n[fusion]', 'reads.rows = "row"\n[fusion]', "no input 'rows'; it has: features"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(bench, old, new, what):
    with pytest.raises((ConfigurationError, CertificateError), match=what):
        bench.make(TWO.format(left="", right="").replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('weights.right = "0.5"', 'weights.right = "0.6"'),  # not convex
        ('weights.right = "0.5"', 'weights.right = "1.5"\nx = 1'),
        ('how = "mean"', 'how = "vote"'),
        ('people = ""\nreads', 'take = "features"\nreads'),
        ('people = ""\nreads', 'take = "value"\nreads'),
        ('name = "left"', 'name = "row"'),
        ('name = "both"', 'name = "Both"'),
        ("[fusion]", "[unknown]"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(bench, old, new):
    text = TWO.format(left="", right="")
    assert old in text
    with pytest.raises((CertificateError, ConfigurationError)):
        bench.make(text.replace(old, new, 1))
    assert not (bench.folder / "out").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('["more", "first"]', '["first", "more"]'),  # the column of the age would be a score
        ('["more", "first"]', '["more"]'),  # would be three columns of its own, and nobody would read the first
        ('["more", "first"]', '["more", "judge"]'),
        ('["more", "first"]', '["more", "first", "first"]'),
        ('["more", "first"]', '["row", "first"]'),
    ],
)
def test_chains_that_do_not_fit(bench, old, new):
    if new == '["first", "more"]':
        made = bench.make(JUDGE.replace(old, new))  # allowed: the last column is then an input by its own name
        assert [column.name for column in made.manifest.inputs[1].content.columns] == ["yes"]
        return
    with pytest.raises((CertificateError, ConfigurationError)):
        bench.make(JUDGE.replace(old, new))


def test_pipelines_are_not_nested(bench):
    bench.make(TWO.format(left="", right=""), out="inner")
    with pytest.raises(CertificateError):
        bench.make(JUDGE.replace('"toy"', '"inner"'))


def test_a_specification_that_reads_ahead_is_refused(bench):
    spec = bench.make(JUDGE).spec
    turned = msgspec.structs.replace(spec, members=spec.members[::-1])
    assert any("comes after" in reason for reason in turned.refusals())
    many = msgspec.structs.replace(spec, members=spec.members * 5)
    assert list(many.refusals())
    assert isinstance(spec, PipelineSpec)
    assert canonical_json(spec)
