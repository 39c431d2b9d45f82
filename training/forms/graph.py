"""Whole graphs, padded to a public number of nodes: NPZ arrays of node features [n, nodes, features] and edges
[n, nodes, nodes]. `[columns]` gives each feature's public range.

Edges are symmetric, zero or one. A node is there if its diagonal edge is one; features of others count for nothing.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from sealgate.certificate.inputs import GraphEdgesContent, GraphNodesContent, InputTensor
from sealgate.errors import ConfigurationError
from training.arrays import finite_numbers, read_arrays
from training.columns import people_of, target_of
from training.configuration import Configuration
from training.examples import Examples
from training.forms.sections import number_cells, section, write_rows
from training.forms.table import declared_columns


class GraphSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[graph]`: the largest number of nodes, and the names of the arrays."""

    nodes: int
    node_array: str = "nodes"
    edge_array: str = "edges"


def _section(configuration: Configuration) -> GraphSection:
    found = section(GraphSection, configuration.graph, name="graph")
    if found.nodes <= 0:
        raise ConfigurationError("[graph] nodes must be above zero")
    return found


def declared_inputs(configuration: Configuration) -> tuple[InputTensor, ...]:
    found, columns = _section(configuration), declared_columns(configuration)
    nodes, features = found.nodes, len(columns)
    return (
        InputTensor(
            name="nodes", datatype="FP32", shape=(-1, nodes, features), content=GraphNodesContent(columns=columns)
        ),
        InputTensor(name="edges", datatype="FP32", shape=(-1, nodes, nodes), content=GraphEdgesContent()),
    )


def read_examples(configuration: Configuration, *, folder: Path) -> Examples:
    found, data = _section(configuration), configuration.data
    people = [data.person] if data.person else []
    arrays = read_arrays(data.source, folder, [found.node_array, found.edge_array, data.target, *people])
    shape = (found.nodes, len(configuration.columns))
    nodes = finite_numbers(found.node_array, arrays[found.node_array], shape=shape)
    edges = finite_numbers(found.edge_array, arrays[found.edge_array], shape=(found.nodes, found.nodes))
    _require_edges(found.edge_array, edges)
    return Examples((nodes, edges), target_of(configuration, arrays), people_of(configuration, arrays))


def _require_edges(name: str, edges: NDArray[np.float32]) -> None:
    there = np.diagonal(edges, axis1=1, axis2=2)  # [n, N]
    for wrong, what in (
        (((edges != 0) & (edges != 1)).any(axis=(1, 2)), "an edge is neither zero nor one"),
        ((edges != edges.transpose(0, 2, 1)).any(axis=(1, 2)), "an edge goes one way only"),
        ((edges > there[:, :, None]).any(axis=(1, 2)), "a node with edges is not there: set its diagonal edge"),
    ):
        found = np.flatnonzero(wrong)
        if len(found):
            raise ConfigurationError(f"array '{name}', example {found[0] + 1}: {what} ({len(found)} such graphs)")


def write_heldout(path: Path, examples: Examples, configuration: Configuration) -> None:
    """As CSV: every node's features, then every row of the edges."""
    nodes = range(examples.inputs[0].shape[1])
    header = [f"node_{node}_{name}" for node in nodes for name in configuration.columns]
    header += [f"edge_{one}_{other}" for one in nodes for other in nodes]
    cells = (
        [*node_cells, *edge_cells] for node_cells, edge_cells in zip(*map(number_cells, examples.inputs), strict=True)
    )
    write_rows(path, header, cells, examples, configuration)
