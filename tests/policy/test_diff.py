"""What would change: every change of a file is told, and every answer that the grid or a scenario meets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from policy import diff
from policy.diff import Change, Difference, compare, load_side
from sealgate.protocol.frames import ModelFacts

TENANTS = """
[[tenant]]
name = "clinic"
[[tenant.purpose]]
name = "treatment"
max_epsilon = "8"

[[tenant]]
name = "oversight"
audits_every_tenant = true
"""
BUDGET = '[[budget]]\nname = "b"\ntenant = "clinic"\nwindow = "day"\nrequests = 5\n'


@pytest.fixture
def policy_dir(policy_dir: Path) -> Path:
    """With few tenants: the grid asks about each."""
    (policy_dir / "tenants.toml").write_text(TENANTS)
    return policy_dir


@pytest.fixture
def other(policy_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(policy_dir, tmp_path / "other"))


def difference(before: Path, after: Path, *models: ModelFacts) -> Difference:
    return compare(load_side(before), load_side(after), models=models)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_same_policy_differs_in_nothing(policy_dir: Path, other: Path) -> None:
    found = difference(policy_dir, other)
    assert found.nothing
    assert (found.asked, found.left_out) == (0, 0), "what decides is the same: there is nothing to ask"


@pytest.mark.parametrize("part", ["schema.cedarschema", "tenants.toml", "10-callers.cedar"])
def test_whatever_decides_has_the_questions_asked(policy_dir: Path, other: Path, part: str) -> None:
    more = {"schema.cedarschema": "entity Unused;\n", "tenants.toml": '[[tenant]]\nname = "new"\n'}
    text = more.get(part, '@id("own") forbid (principal is Operator, action, resource);\n')
    (other / part).write_text((other / part).read_text() + text)
    assert difference(policy_dir, other).asked > 200


def test_what_changed_in_the_files_is_named(policy_dir: Path, other: Path) -> None:
    replace(other / "tenants.toml", 'name = "treatment"\nmax_epsilon = "8"', 'name = "treatment"\nmax_epsilon = "2"')
    replace(other / "tenants.toml", 'name = "oversight"', 'name = "renamed"')
    (other / "budgets.toml").write_text(BUDGET)
    replace(other / "10-callers.cedar", '@round_digits("6")', '@round_digits("3")')
    (other / "own.cedar").write_text('@id("own") forbid (principal is Operator, action, resource);')
    (other / "40-circumstances.cedar").rename(other / "41-circumstances.cedar")
    client = '[[client]]\ncertificate = "DNS:h"\ntenant = "clinic"\nsubject = "s"\nroles = ["client"]\n'
    (other / "tenants.toml").write_text((other / "tenants.toml").read_text() + client)
    changes = set(difference(policy_dir, other).changes)
    assert {
        Change(what="file", name="own.cedar", how="added"),
        Change(what="file", name="40-circumstances.cedar", how="removed"),
        Change(what="policy", name="own", how="added"),
        Change(what="policy", name="clients-infer", how="changed"),
        Change(what="tenant", name="clinic", how="changed"),
        Change(what="tenant", name="renamed", how="added"),
        Change(what="tenant", name="oversight", how="removed"),
        Change(what="client", name="DNS:h below ca", how="added"),
        Change(what="budget", name="b", how="added"),
    } <= changes
    assert not [change for change in changes if change.what == "policy" and change.name == "sealed-always"]


def test_a_comment_changes_a_file_and_no_answer(policy_dir: Path, other: Path) -> None:
    path = other / "10-callers.cedar"
    path.write_text("// more words\n" + path.read_text())
    found = difference(policy_dir, other)
    assert found.changes == (Change(what="file", name="10-callers.cedar", how="changed"),)
    assert found.answers == ()


def test_a_limit_that_moves_between_the_known_models_is_found(policy_dir: Path, other: Path) -> None:
    """No model has an epsilon between 7.5 and 8, but a model at the limit itself is asked about."""
    replace(other / "tenants.toml", 'max_epsilon = "8"', 'max_epsilon = "7.5"')
    found = difference(policy_dir, other)
    infer = [one for one in found.answers if one.action == "infer" and one.who == "client of clinic"]
    assert len(infer) == 1
    assert (infer[0].before, infer[0].after, infer[0].by) == (
        "permit: round_digits=6",
        "deny",
        ("epsilon-within-purpose",),
    )
    assert infer[0].which["model"] == ("any-model (epsilon 7.500001)", "any-model (epsilon 8)")
    assert infer[0].which["purpose"] == ("treatment",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '@id("own") forbid (principal is Client, action == Action::"infer", resource) when { context.hour < 6 };',
            ("client of clinic", "infer", "permit: round_digits=6", "deny", {"when": ("on a Sunday night",)}),
        ),
        (
            '@id("own") forbid (principal is Client, action == Action::"infer", resource) unless { context.mtls };',
            (
                "client of clinic",
                "infer",
                "permit: round_digits=6",
                "deny",
                {"shown": ("a token", "a token and a key")},
            ),
        ),
        (
            '@id("own") permit (principal is Auditor, action == Action::"query-audit", resource is Log) '
            "when { resource.every_tenant };",
            ("auditor of clinic", "query-audit", "permit: records of clinic", "permit", {}),
        ),
        (
            '@id("own") @top_k("1") permit (principal is Client, action == Action::"infer", resource);',
            ("client of clinic", "infer", "permit: round_digits=6", "permit: round_digits=6 top_k=1", {}),
        ),
    ],
)
def test_answers_that_change_are_told_with_where(
    policy_dir: Path,
    other: Path,
    model: Callable[..., ModelFacts],
    text: str,
    expected: tuple[str, str, str, str, dict[str, tuple[str, ...]]],
) -> None:
    (other / "own.cedar").write_text(text)
    found = difference(policy_dir, other, model())
    who, action, before, after, which = expected
    (one,) = [one for one in found.answers if (one.who, one.action) == (who, action)]
    assert (one.before, one.after) == (before, after)
    assert {axis: values for axis, values in one.which.items() if axis in ("when", "shown")} == which
    assert 0 < one.cases <= one.of


def test_scenarios_of_either_side_are_asked(policy_dir: Path, other: Path) -> None:
    head = '[model.odd]\nepsilon = "4"\nsensitivity = "public"\npurposes = ["treatment"]\n'
    ask = '[[scenario]]\nname = "%s"\nmodel = "odd"\npurpose = "treatment"\nexpect = "permit"\n'
    caller = '[scenario.caller]\ntenant = "clinic"\n'
    for folder, name in ((policy_dir, "old"), (other, "new")):
        (folder / "scenarios").mkdir()
        (folder / "scenarios" / "s.toml").write_text(head + ask % name + caller)
    (other / "own.cedar").write_text(
        '@id("own") forbid (principal, action == Action::"infer", resource) when { resource.sensitivity == "public" };'
    )
    found = difference(policy_dir, other)
    assert {one.who for one in found.answers} >= {"scenario: old", "scenario: new", "client of clinic"}


def test_a_grid_that_is_too_large_says_what_it_left_out(
    policy_dir: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (other / "own.cedar").write_text('@id("own") forbid (principal is Operator, action, resource);')
    whole = difference(policy_dir, other).asked
    monkeypatch.setattr(diff, "MAX_GRID", 100)
    found = difference(policy_dir, other)
    assert (found.asked, found.left_out) == (100, whole - 100)
