"""What is to be served: renewed only when asked, and a canary that the log can be held to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.certificate.repository import places_of, version_order
from sealgate.deployment import Canary, ModelSection
from secure_runtime.errors import SwitchRefused
from secure_runtime.host.choice import (
    ModelRules,
    first_choice,
    is_canary,
    matching,
)
from secure_runtime.limits import MAX_BUNDLES


def deployment(folder: Path, *, placement: str = "together") -> Any:
    settings = SimpleNamespace(named_models={}, runtime=SimpleNamespace(placement=placement))
    return SimpleNamespace(models=folder / "models", settings=settings)


def lay(folder: Path, *places: str) -> None:
    for place in places:
        (folder / "models" / place).mkdir(parents=True)
        (folder / "models" / place / "manifest.json").write_text("{}")


def test_a_folder_of_models_holds_bundles_and_folders_of_versions(tmp_path: Path) -> None:
    lay(tmp_path, "flat", "wine/2", "wine/10", "wine/1.5", ".hidden")
    (tmp_path / "models" / "empty").mkdir()
    (tmp_path / "models" / "flat" / "more").mkdir()
    (tmp_path / "models" / "wine" / "3").symlink_to(tmp_path / "models" / "flat")
    found = places_of(tmp_path / "models")
    assert [place.called for place in found] == ["empty", "flat", "wine/1.5", "wine/2", "wine/10"]
    assert [(place.model, place.version) for place in found[1:3]] == [("flat", ""), ("wine", "1.5")]
    assert len(places_of(tmp_path / "models", most=3)) == 3
    (tmp_path / "secret" / "of-another-user").mkdir(parents=True)
    (tmp_path / "models" / "zlink").symlink_to(tmp_path / "secret")
    assert [place.called for place in places_of(tmp_path / "models")][5:] == ["zlink"]


@pytest.mark.parametrize(
    "older_first",
    [("1", "2", "10"), ("1.0rc1", "1.0", "1.0.1", "1.1"), ("2025-12-31", "2026-01-02"), ("a", "1"), ("v1", "v2")],
)
def test_versions_are_ordered_number_by_number(older_first: tuple[str, ...]) -> None:
    newest_first = list(older_first[::-1])
    assert sorted(newest_first, key=version_order) == list(older_first)


def test_a_bundle_that_was_moved_among_versions_is_not_said_to_be_served_beside_them(tmp_path: Path) -> None:
    """As the documentation says to: both versions moved below models/NAME/, and loaded with one command."""
    lay(tmp_path, "a", "b")
    place = deployment(tmp_path)
    first = first_choice(place, frozenset(), tell=lambda _text: None)
    (tmp_path / "models" / "b" / "manifest.json").rename(tmp_path / "manifest.json")
    lay(tmp_path, "b/1", "b/2")
    there = [one.called for one in places_of(place.models)]
    assert first.with_loaded(["b/2", "b/1"], there).places == ("a", "b/1", "b/2")
    assert first.with_loaded(["b/2", "b/1"], there) == first_choice(place, frozenset(), tell=lambda _text: None)


def test_what_was_unloaded_is_not_served_at_the_next_start(tmp_path: Path) -> None:
    lay(tmp_path, "a", "b/1", "b/2")
    told: list[str] = []
    place = deployment(tmp_path)
    first = first_choice(place, frozenset(), tell=told.append)
    assert first.places == ("a", "b/1", "b/2")
    there = first.places
    less = first.without(["b"], there)
    assert (less.places, less.withheld) == (("a",), {"b/1", "b/2"})
    again = first_choice(place, less.withheld, tell=told.append)
    assert again.places == ("a",)
    assert len([line for line in told if "stays unloaded" in line]) == 2
    assert again.with_loaded(["b/2"], there).places == ("a", "b/2")
    assert again.with_loaded(["b/2"], there).withheld == {"b/1"}


def test_a_bundle_that_nobody_asked_for_is_served_by_reload_or_restart_alone(tmp_path: Path) -> None:
    lay(tmp_path, "a")
    choice = first_choice(deployment(tmp_path), frozenset(), tell=lambda _text: None)
    lay(tmp_path, "new")
    there = ("a", "new")
    assert choice.places == ("a",)
    assert choice.with_loaded(["a"], there).places == ("a",)
    assert choice.renewed(there).places == there
    with pytest.raises(SwitchRefused, match="there is no bundle 'b'; there are: a, new"):
        matching(["b"], there)


def test_bundles_that_a_worker_has_no_room_for_are_told_of(tmp_path: Path) -> None:
    lay(tmp_path, *(f"{name}/{number}" for name in ("a", "b") for number in range(MAX_BUNDLES)))
    withheld = {"together": frozenset(f"b/{number}" for number in range(MAX_BUNDLES)), "per-model": frozenset[str]()}
    for placement, told in (("together", 1), ("per-model", 0)):
        lines: list[str] = []
        first_choice(deployment(tmp_path, placement=placement), frozenset(), tell=lines.append)
        assert len(lines) == told
        first_choice(deployment(tmp_path, placement=placement), withheld[placement], tell=lines.append)
        assert len([line for line in lines if "serves only" in line]) == told, "what is unloaded takes no room"
    lay(tmp_path, "b/more")
    first_choice(deployment(tmp_path, placement="per-model"), frozenset(), tell=lines.append)
    assert lines == [f"models/b holds {MAX_BUNDLES + 1} bundles to serve: a worker serves only {MAX_BUNDLES}"]


@settings(max_examples=20, deadline=None)
@given(percent=st.integers(0, 100), seed=st.integers(0, 2**32))
def test_a_canary_answers_its_share_and_the_same_grants_always(percent: int, seed: int) -> None:
    grants = [f"{seed:08x}-{number:08x}" for number in range(1000)]
    chosen = [is_canary(grant, percent) for grant in grants]
    assert abs(sum(chosen) - 10 * percent) <= 80  # five standard deviations
    assert all(not canary or is_canary(grant, 100) for grant, canary in zip(grants, chosen, strict=True))
    if percent < 100:
        assert all(not canary or is_canary(grant, percent + 1) for grant, canary in zip(grants, chosen, strict=True))


def test_the_default_answers_and_a_worker_that_lacks_it_says_so_unless_it_is_being_replaced() -> None:
    rules = ModelRules({"m": ModelSection(default="1", canary=Canary(version="2", percent=100))})
    assert rules.version_for("m", {"1", "2"}, "grant", retired=False) == "2"
    assert rules.version_for("m", {"1"}, "grant", retired=False) == "1"
    assert rules.version_for("m", {"3"}, "grant", retired=False) == "1"
    assert rules.version_for("m", {"3"}, "grant", retired=True) == ""
    assert rules.version_for("other", {"3"}, "grant", retired=False) == ""


ONE, OTHER = ("t", "one"), ("t", "other")


def test_so_many_requests_for_a_model_are_in_flight_and_no_more() -> None:
    rules = ModelRules({"m": ModelSection(max_concurrent=2)})
    places = []
    for _ in range(2):
        assert not rules.full("m", ONE)
        places.append(rules.enter("m", ONE))
    assert rules.full("m", ONE)
    assert rules.full("m", OTHER)
    assert not rules.full("other", ONE)
    rules.leave("m", ONE, places.pop())
    assert not rules.full("m", ONE)
    rules.put_in_force({})
    assert rules.enter("m", ONE) is None
    rules.leave("m", ONE, None)
    rules.leave("m", ONE, places.pop())
    assert not rules.full("m", ONE)


def test_one_caller_leaves_places_of_a_model_for_the_others() -> None:
    rules = ModelRules({"m": ModelSection(max_concurrent=8), "alone": ModelSection(max_concurrent=1)})
    places = [rules.enter("m", ONE) for _ in range(6)]
    assert rules.full("m", ONE)
    assert not rules.full("m", OTHER)
    places += [rules.enter("m", OTHER) for _ in range(2)]
    assert rules.full("m", ("t", "third"))
    assert not rules.full("alone", ONE), "the only place is not a quarter of anything"
    rules.leave("m", ONE, places[0])
    assert not rules.full("m", ONE)
    assert not rules.full("m", OTHER)


def test_a_limit_that_comes_into_force_counts_those_that_are_in_flight() -> None:
    rules = ModelRules({"n": ModelSection(default="1")})
    places = [rules.enter("m", ONE) for _ in range(5)]
    assert not rules.full("m", ONE)
    rules.put_in_force({"m": ModelSection(max_concurrent=4)})
    assert rules.full("m", OTHER)
    for place in places[:2]:
        rules.leave("m", ONE, place)
    assert rules.full("m", ONE)
    assert not rules.full("m", OTHER)
    for place in places[2:]:
        rules.leave("m", ONE, place)
    assert not rules.full("m", ONE)


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("ask"), st.sampled_from(["m", "n"]), st.sampled_from([ONE, OTHER])),
            st.tuples(st.just("end"), st.integers(0, 9)),
            st.tuples(st.just("route"), st.dictionaries(st.sampled_from(["m", "n", "o"]), st.integers(0, 5))),
        ),
        max_size=40,
    )
)
@settings(max_examples=100, deadline=None)
def test_places_are_those_of_a_plain_count(steps: list[tuple[Any, ...]]) -> None:
    """Counted beside a list of what is in flight and was counted when it began."""
    rules, limits = ModelRules(), dict[str, int]()
    flying: list[tuple[str, tuple[str, str], Any]] = []
    for step in steps:
        if step[0] == "route":
            limits = step[1]
            rules.put_in_force({name: ModelSection(max_concurrent=most) for name, most in limits.items()})
        elif step[0] == "end":
            if step[1] < len(flying):
                rules.leave(*flying.pop(step[1]))
        else:
            _, model, owner = step
            counted = [who for which, who, place in flying if which == model and place is not None]
            most = limits.get(model, 0)
            full = most > 0 and (len(counted) >= most or counted.count(owner) >= most - most // 4)
            assert rules.full(model, owner) == full
            if not full:
                flying.append((model, owner, rules.enter(model, owner)))
                assert (flying[-1][2] is None) == (not limits)
