"""Networks become examples and what they belong to; what is wrong is said; no edge moves a row."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sealgate.errors import ConfigurationError
from tests.training.networks.conftest import configured, made_up
from training.forms import form_of
from training.forms.network import node_vectors
from training.manifests import manifest_of
from training.split import commit, hold_out


def read(folder: Path, unit: str = "edge", *changes: tuple[str, str], **arrays: Any):
    np.savez(folder / "network.npz", **{name: one for name, one in (made_up() | arrays).items() if one is not None})
    configuration = configured(folder, unit, *changes)
    return configuration, form_of(configuration).read_examples(configuration, folder=folder)


def test_a_row_is_a_node_and_the_network_is_beside_it(tmp_path: Path) -> None:
    configuration, examples = read(tmp_path)
    given = made_up()
    assert examples.inputs[0].ravel().tolist() == list(range(1, 111))
    assert examples.target.tolist() == given["group"].tolist()
    assert examples.network is not None
    np.testing.assert_array_equal(examples.network.edges, given["edges"])
    counted = [int((given["edges"] == node).sum()) for node in range(1, 121)]
    assert examples.network.degrees().tolist() == counted  # ten of the nodes are nobody yet
    vectors = node_vectors(configuration, examples.network)
    np.testing.assert_allclose(vectors[:110].numpy(), np.clip(given["features"], -4, 4).astype(np.float32) / 4)
    form_of(configuration).write_heldout(tmp_path / "held.csv", examples, configuration)
    assert (tmp_path / "held.csv").read_text().splitlines()[:2] == ["node,group", "1,left"]


@pytest.mark.parametrize(("unit", "width"), [("edge", 9), ("node", 2), ("codes", 6)])
def test_what_is_served_of_a_node(tmp_path: Path, unit: str, width: int) -> None:
    """Its own vector and two aggregates; at node level one aggregate; without features two."""
    architecture = manifest_of(configured(tmp_path, unit)).architecture
    assert architecture.tensors()["embedding.weight"] == (121, width)
    assert architecture.input_shapes() == ((1,),)


def test_nodes_without_a_target_belong_to_the_network_all_the_same(tmp_path: Path) -> None:
    groups = made_up()["group"].copy()
    groups[5:] = np.where(np.arange(105) % 3 == 0, -1, groups[5:])
    _, examples = read(tmp_path, "edge", ("[privacy]", 'unlabelled = "-1"\n[privacy]'), group=groups)
    assert examples.inputs[0].ravel().tolist() == (np.flatnonzero(groups >= 0) + 1).tolist()
    assert len(examples.network.edges) == len(made_up()["edges"])


def test_no_edge_moves_a_row_to_the_other_side_and_all_are_committed_to(tmp_path: Path) -> None:
    edges = made_up()["edges"]
    _, before = read(tmp_path)
    _, after = read(tmp_path, edges=edges[1:])
    sides = [hold_out(one, fraction=Fraction(1, 2), word="1") for one in (before, after)]
    for side in range(2):
        assert sides[0][side].inputs[0].tolist() == sides[1][side].inputs[0].tolist()
        assert sides[0][side].network is before.network
    key = bytes(32)
    roots = {commit(one, key=key) for one, _ in sides}
    assert len(roots) == 2
    features = made_up()["features"]
    _, other = read(tmp_path, features=features + np.eye(110, 2))
    assert commit(hold_out(other, fraction=Fraction(1, 2), word="1")[0], key=key) not in roots


def test_codes_are_public_and_the_same_everywhere(tmp_path: Path) -> None:
    configuration, examples = read(tmp_path, "codes", features=None)
    first, again = (node_vectors(configuration, examples.network) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (120, 3)
    assert set(first.unique().tolist()) == {-1.0, 1.0}
    assert len(first.unique(dim=0)) == 8


EDGES = made_up()["edges"]


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"edges": EDGES - 1}, "node 0 is nobody"),
        ({"edges": EDGES + 40}, "holds a number outside 0 to 110"),
        ({"edges": np.concatenate((EDGES, [[4, 4]]))}, r"edge \d+: a node has an edge to itself"),
        ({"edges": np.concatenate((EDGES, EDGES[3:4, ::-1]))}, "stands there twice"),
        ({"edges": EDGES.astype(float)}, "needs whole numbers"),
        ({"edges": None}, "no array 'edges'"),
        ({"features": np.zeros((110, 3))}, "the configuration says"),
        ({"features": np.full((110, 2), np.nan)}, "not a finite number"),
        ({"features": np.zeros((109, 2))}, "different numbers"),
        ({name: np.concatenate((one, one)) for name, one in made_up().items() if name != "edges"}, "220 nodes"),
        ({"group": np.full(110, 7)}, "is no class"),
    ],
)
def test_a_bad_network_is_refused(tmp_path: Path, arrays: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        read(tmp_path, **arrays)


def test_a_network_beyond_the_bound_is_refused_and_never_cut(tmp_path: Path) -> None:
    star = np.array([(1, node) for node in range(2, 43)])
    with pytest.raises(ConfigurationError, match="a node has 41 neighbours, more than the 40"):
        read(tmp_path, "node", edges=star)
    assert len(read(tmp_path, "node", edges=star[1:])[1].network.edges) == 40


@pytest.mark.parametrize(
    ("unit", "change", "why"),
    [
        ("edge", ("nodes = 120", "nodes = 1"), "nodes must lie"),
        ("edge", ("nodes = 120", "nodes = 120\nhops = 0"), "hops must lie"),
        ("edge", ("nodes = 120", 'nodes = 120\nunit = "graph"'), "unit must be one of"),
        ("edge", ("nodes = 120", "nodes = 120\nsum_norm = 200"), "sum_norm must lie"),
        ("edge", ("hidden = [8]", "width = 8"), "follows from"),
        ("codes", ("width = 3", "width = 0"), "length of a node's code"),
        ("node", ("max_degree = 40", "max_degree = 0\n"), "needs max_degree"),
        ("node", ("width = 2", "width = 0"), r"needs \[columns\] and a width"),
        ("edge", ("nodes = 120", "nodes = 120\nhop = 1"), r"\[network\] has no setting 'hop'"),
        ("edge", ('kind = "network"', 'kind = "tokens"'), "go together"),
        ("edge", ('"gap-aggregation"', '"dp-sgd"'), "go together"),
        ("edge", ('"embedding-bag"', '"transformer"'), "go together"),
        ("edge", ("epsilon = 8", "sigma = 8"), "needs epsilon"),
        ("edge", ("epsilon = 8", "epsilon = 8\nsteps = 3"), "are not gap-aggregation's"),
        ("edge", ("[selection]", "[engine]\ncheckpoint_every = 2\n[selection]"), "are not gap-aggregation's"),
        ("node", ("steps = 10", "steps = 0"), "steps must lie"),
        ("node", ("clip_norm = 1", 'clip_norm = 1\nnoise = "discrete-gaussian"'), "gaussian noise only"),
        ("edge", ("held_out = 0.5", 'held_out = 0.5\nperson = "who"'), "an edge or a node"),
    ],
)
def test_a_configuration_that_is_wrong_is_refused(tmp_path: Path, unit: str, change: tuple[str, str], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        manifest_of(configured(tmp_path, unit, change))
