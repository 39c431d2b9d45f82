"""One network: NPZ arrays of node features [nodes, F], of edges [m, 2], and of the target [nodes].

Nodes are counted from 1, in the edges and by whoever asks the model: 0 is nobody. Each undirected edge stands there
once. `[columns]` gives each feature's public range; without it nodes have no features, and each gets a public random
code. Nodes whose target is `unlabelled` belong to the network and are nobody's example.

A row is a labelled node: its number and its target. Whether it is held out depends on nothing else, so no edge moves a
row. Trusts: nothing in the data. Never: cuts edges to fit a bound, which would let one node move others'.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from sealgate.certificate.inputs import InputTensor, TableContent, TokensContent
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_GRAPH_DEGREE, MAX_GRAPH_HOPS, MAX_LAYER_WIDTH, MAX_VOCABULARY
from secure_runtime.models.preparation import PreparedInput
from training.arrays import finite_numbers, read_arrays, whole_numbers
from training.columns import target_of
from training.configuration import Configuration
from training.examples import Examples
from training.forms.sections import number_cells, section, write_rows
from training.forms.table import declared_columns
from training.network import Network
from training.randomness import Keystream

UNITS = ("edge", "node")


class NetworkSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[network]`: how many nodes there are room for, whose privacy it is, and what is aggregated how often.

    `width` is that of a node's vector: made by an encoder from its features (0: the features themselves), or the length
    of its code. `max_degree` is the greatest number of neighbours that a node has, known without looking. Sums over
    neighbours longer than `sum_norm` are scaled down to it; 0 leaves them.
    """

    nodes: int
    unit: str = "edge"
    hops: int = 2
    width: int = 16
    max_degree: int = 0
    sum_norm: Decimal = Decimal(0)
    feature_array: str = "features"
    edge_array: str = "edges"
    unlabelled: str = ""

    @property
    def degree(self) -> int:
        """The bound that holds for every node."""
        return self.max_degree or min(self.nodes - 1, MAX_GRAPH_DEGREE)


def network_section(configuration: Configuration) -> NetworkSection:
    """The section; raises ConfigurationError for one that is wrong."""
    found = section(NetworkSection, configuration.network, name="network")
    features = bool(configuration.columns)
    for holds, what in (
        (1 < found.nodes < MAX_VOCABULARY, f"nodes must lie between 2 and {MAX_VOCABULARY - 1}"),
        (found.unit in UNITS, f"unit must be one of: {', '.join(UNITS)}"),
        (0 < found.hops <= MAX_GRAPH_HOPS, f"hops must lie between 1 and {MAX_GRAPH_HOPS}"),
        (0 <= found.width <= MAX_LAYER_WIDTH, f"width must lie between 0 and {MAX_LAYER_WIDTH}"),
        (0 <= found.max_degree <= MAX_GRAPH_DEGREE, f"max_degree must be at most {MAX_GRAPH_DEGREE}"),
        (0 <= found.sum_norm <= found.degree, "sum_norm must lie between 0 and the most neighbours that a node has"),
        (features or found.width, "width is needed: without [columns] it is the length of a node's code"),
        (found.unit == "edge" or found.max_degree, 'unit = "node" needs max_degree, the most neighbours that one has'),
        (found.unit == "edge" or (features and found.width), 'unit = "node" needs [columns] and a width'),
    ):
        if not holds:
            raise ConfigurationError(f"[network] {what}")
    return found


def network_options(configuration: Configuration) -> dict[str, Any]:
    """`[architecture]`, and the width of what is served of a node; raises ConfigurationError.

    Aggregates alone; and before them its own vector, where features are public: at edge level.
    """
    found = network_section(configuration)
    if "width" in configuration.architecture:
        raise ConfigurationError("[architecture] 'width' follows from [network] and is not an option")
    own = found.unit == "edge" and bool(configuration.columns)
    vector = found.width or len(configuration.columns)
    return {**configuration.architecture, "width": vector * (found.hops + own)}


def declared_inputs(configuration: Configuration) -> tuple[InputTensor, ...]:
    content = TokensContent(size=network_section(configuration).nodes + 1)
    return (InputTensor(name="node", datatype="INT64", shape=(-1, 1), content=content),)


def read_examples(configuration: Configuration, *, folder: Path) -> Examples:
    found, data = network_section(configuration), configuration.data
    wanted = [data.target, *([found.feature_array] if configuration.columns else [])]
    arrays = read_arrays(data.source, folder, wanted)
    count = len(arrays[data.target])
    if count > found.nodes:
        raise ConfigurationError(f"the data has {count} nodes, [network] nodes says at most {found.nodes}")
    edges = read_arrays(data.source, folder, [found.edge_array])[found.edge_array]
    edges = whole_numbers(found.edge_array, edges, shape=(2,), below=count + 1)
    _require_edges(found.edge_array, edges)
    features = np.zeros((found.nodes, len(configuration.columns)), dtype=np.float32)
    if configuration.columns:
        given = arrays[found.feature_array]
        features[:count] = finite_numbers(found.feature_array, given, shape=(len(configuration.columns),))
    network = Network(features, np.sort(edges, axis=1))
    most = int(network.degrees().max())
    if most > found.degree:
        raise ConfigurationError(
            f"a node has {most} neighbours, more than the {found.degree} that [network] says: the guarantee is for "
            "networks within the bound"
        )
    labelled = np.flatnonzero([str(one) != found.unlabelled for one in arrays[data.target].tolist()])
    target = target_of(configuration, {data.target: arrays[data.target][labelled]})
    return Examples(((labelled + 1).astype(np.int64)[:, None],), target, network=network)


def _require_edges(name: str, edges: NDArray[np.int64]) -> None:
    ordered = np.sort(edges, axis=1)
    _, first = np.unique(ordered, axis=0, return_index=True)
    again = np.ones(len(edges), dtype=bool)
    again[first] = False
    for wrong, what in (
        ((edges == 0).any(axis=1), "node 0 is nobody: nodes are counted from 1"),
        (edges[:, 0] == edges[:, 1], "a node has an edge to itself"),
        (again, "stands there twice; each undirected edge is to be given once"),
    ):
        found = np.flatnonzero(wrong)
        if len(found):
            raise ConfigurationError(f"array '{name}', edge {found[0] + 1}: {what} ({len(found)} such)")


def node_vectors(configuration: Configuration, network: Network) -> torch.Tensor:
    """Every node's features, scaled by public constants, or its code: float64 [nodes, F]."""
    if not configuration.columns:
        width = network_section(configuration).width
        # Public and the same everywhere: independent signs keep the distances of rows of the adjacency (Achlioptas).
        signs = Keystream(lambda size: bytes([3]) * size).uniform(len(network.features) * width) < 0.5
        return torch.from_numpy(np.where(signs, 1.0, -1.0).reshape(-1, width))
    columns = declared_columns(configuration)
    content = TableContent(columns=columns)
    spec = InputTensor(name="features", datatype="FP32", shape=(-1, len(columns)), content=content)
    prepared = PreparedInput(spec, dtype=torch.float64, device=torch.device("cpu"))
    return prepared.scaled(torch.from_numpy(network.features))


def write_heldout(path: Path, examples: Examples, configuration: Configuration) -> None:
    """As CSV: the node's number."""
    write_rows(path, ["node"], number_cells(examples.inputs[0]), examples, configuration)
