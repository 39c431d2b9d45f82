"""Graph networks over whole graphs: convolution (Kipf & Welling 2017) or attention (Velickovic et al. 2018), then a
reading of all nodes, then a linear layer.

Graphs are padded to a public number of nodes. Node i is there if edges[i, i] is one: the diagonal says which nodes
exist, and is the self-loop that both kinds of layer want anyway. Edges of nodes that are not there count for nothing.
One example is one graph, so clipping and noise protect a whole graph with all its nodes and edges.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from sealgate.certificate.architectures.graph import GraphSpec
from secure_runtime.models.families.layers import ACTIVATIONS, linear, split_heads

_FAR_BELOW = -1e9  # of scores of nodes that are no neighbours: finite, so that a node without any stays a number


class Convolution(nn.Module):
    """D^-1/2 A D^-1/2 X W + b, where A holds the self-loops and D the degrees."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear = linear(width_in, width)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:  # [n, N, in], [n, N, N]
        scale = edges.sum(dim=2).clamp_min(1.0).rsqrt()  # [n, N]
        spread = edges * scale.unsqueeze(1) * scale.unsqueeze(2)
        mixed: torch.Tensor = spread @ self.linear(nodes)  # [n, N, width]
        return mixed


class GraphAttention(nn.Module):
    """Each head weighs neighbours by softmax(leaky_relu(a . x_i + b . x_j)); heads stand side by side."""

    def __init__(self, width_in: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear = linear(width_in, width)
        self.target, self.source = linear(width_in, heads), linear(width_in, heads)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:  # [n, N, in], [n, N, N]
        values = split_heads(self.linear(nodes), self.heads)  # [n, heads, N, d]
        target, source = self.target(nodes).transpose(1, 2), self.source(nodes).transpose(1, 2)  # [n, heads, N]
        scores = nn.functional.leaky_relu(target.unsqueeze(3) + source.unsqueeze(2), negative_slope=0.2)
        scores = scores.masked_fill(edges.unsqueeze(1) == 0, _FAR_BELOW)  # [n, heads, N, N]
        mixed: torch.Tensor = torch.softmax(scores, dim=-1) @ values  # [n, heads, N, d]
        return mixed.transpose(1, 2).flatten(2)  # [n, N, width]


def read_out(nodes: torch.Tensor, there: torch.Tensor, reading: str) -> torch.Tensor:
    """All nodes of a graph as one vector: [n, N, width], [n, N] zeros and ones -> [n, width]. Zero for no nodes."""
    there = there.unsqueeze(2)  # [n, N, 1]
    if reading == "max":
        highest = nodes.masked_fill(there == 0, _FAR_BELOW).amax(dim=1)
        return torch.where(there.amax(dim=1) > 0, highest, torch.zeros_like(highest))
    total = (nodes * there).sum(dim=1)
    return total if reading == "sum" else total / there.sum(dim=1).clamp_min(1.0)


class Graph(nn.Module):
    """Layers over nodes and their neighbours, then one vector per graph, then logits."""

    def __init__(self, spec: GraphSpec) -> None:
        super().__init__()
        widths = (spec.features, *spec.hidden)
        self.layers = nn.ModuleList(
            Convolution(*pair) if spec.layer == "convolution" else GraphAttention(*pair, spec.heads)
            for pair in itertools.pairwise(widths)
        )
        self.activation = ACTIVATIONS[spec.activation]()
        self.reading = spec.reading
        self.head = linear(widths[-1], spec.logit_count)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:  # [n, N, F], [n, N, N] -> [n, logits]
        there = torch.diagonal(edges, dim1=1, dim2=2)  # [n, N]
        edges = edges * there.unsqueeze(1) * there.unsqueeze(2)
        for layer in self.layers:
            nodes = self.activation(layer(nodes, edges)) * there.unsqueeze(2)
        logits: torch.Tensor = self.head(read_out(nodes, there, self.reading))
        return logits
