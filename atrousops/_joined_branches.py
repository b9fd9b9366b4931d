"""The branches of ASPP: convolutions of one map whose results a concatenation puts side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from atrousops._fusion import Fusion
from atrousops.nn.branches import FusedBranches, padding_of
from atrousops.nn.conv import FusedConv2d


def join_branches(fusion: Fusion) -> list[FusedBranches]:
    """concat(f_1(x), ..., f_n(x), others) as one layer, FusedBranches: the convolutions have to come first, two or more
    of them, with one activation, and equally many channels, and nobody else may see what they return.

    Returns:
        The layers made.
    """
    graph, made = fusion.graph, list[FusedBranches]()
    for node in list(graph.nodes):
        if (
            node.op != "call_function"
            or node.target not in (torch.cat, torch.concat)
            or not set(node.kwargs) <= {"dim"}
        ):
            continue
        members = node.args[0] if node.args and isinstance(node.args[0], list | tuple) else ()
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        first = _leading(fusion, members) if axis == 1 else []
        if len(first) < 2 or any(fusion.changed_between(n, node) for n in first):
            continue
        layers: list[Any] = [fusion.layer(n) for n in first]
        made.append(FusedBranches(layers))
        name = f"{node.name}_branches"
        while hasattr(fusion.root, name):
            name += "_"
        fusion.root.add_module(name, made[-1])
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.call_module(name, (first[0].args[0], *members[len(first) :])))
        for unused in (node, *first):
            graph.erase_node(unused)
    return made


def _leading(fusion: Fusion, members: Any) -> list[fx.Node]:
    """The convolutions that a concatenation begins with and that can be joined."""
    found: list[fx.Node] = []
    for node in members:
        if not isinstance(node, fx.Node) or node in found or not _fits(fusion, node):
            break
        if found and _kind(fusion, node) != _kind(fusion, found[0]):
            break
        found.append(node)
    return found


def _fits(fusion: Fusion, node: fx.Node) -> bool:
    layer: Any = fusion.own_layer(node)
    return (
        type(layer) is FusedConv2d
        and len(node.users) == len(node.args) == 1
        and not node.kwargs
        and layer.stride == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and layer.activation in (None, "relu")
        and padding_of(layer) is not None
    )


def _kind(fusion: Fusion, node: fx.Node) -> tuple[Any, ...]:
    layer: Any = fusion.layer(node)
    return node.args[0], layer.activation, layer.bias is None, layer.out_channels, layer.memory_format
