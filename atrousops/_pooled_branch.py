"""The image-level branch of ASPP: one pixel, repeated for every pixel only to be convolved with a 1x1 kernel."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from atrousops.nn import aspp
from atrousops.nn.conv import FusedConv2d


def take_out_of_concat(graph: fx.Graph, root: nn.Module, shared: set[int]) -> None:
    """conv_1x1(concat(a, repeat(p)); w) = conv_1x1(a; w_a) + conv_1x1(p; w_p), the last one on a single pixel.

    Only where it is all one knows of p that it is a global average, or made of one by 1x1 convolutions; and not for
    16-bit weights, where one more rounding would show.
    """
    for node in list(graph.nodes):
        concat = node.args[0] if _is_pointwise(node, root, shared) else None
        if not isinstance(concat, fx.Node) or concat.target is not torch.cat or len(concat.users) > 1:
            continue
        branches = list(concat.args[0]) if isinstance(concat.args[0], list | tuple) else []
        axis = concat.args[1] if len(concat.args) > 1 else concat.kwargs.get("dim", 0)
        pooled = _repeated(branches[-1], root) if len(branches) > 1 and axis == 1 else None
        if pooled is not None and len(branches[-1].users) == 1:
            _split(graph, root, node, concat, pooled)


def _is_pointwise(node: fx.Node, root: nn.Module, shared: set[int]) -> bool:
    layer: Any = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    return (
        type(layer) is FusedConv2d
        and id(layer) not in shared
        and len(node.args) == 1
        and layer.kernel_size == layer.stride == (1, 1)
        and layer.padding in ((0, 0), "same", "valid")
        and layer.groups == 1
        and layer.weight.itemsize >= 4
    )


def _repeated(node: Any, root: nn.Module) -> fx.Node | None:
    """The map of one pixel that a node repeats, if it does, and its channels are known."""
    if not isinstance(node, fx.Node) or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if node.target is not aspp.spread and not (node.target is F.interpolate and node.kwargs.get("mode") == "bilinear"):
        return None
    source = node.args[0]
    return source if _channels(source, root) and _is_one_pixel(source, root) else None


def _channels(node: fx.Node, root: nn.Module) -> int:
    layer = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    return layer.out_channels if isinstance(layer, FusedConv2d) else 0


def _is_one_pixel(node: fx.Node, root: nn.Module) -> bool:
    while node.op == "call_module" and isinstance(node.args[0], fx.Node):
        layer: Any = root.get_submodule(str(node.target))
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            return layer.output_size in (1, (1, 1))
        if not isinstance(layer, FusedConv2d) or layer.kernel_size != (1, 1) or len(node.args) > 1:
            return False
        if layer.padding not in ((0, 0), "same", "valid"):
            return False
        node = node.args[0]
    return False


def _split(graph: fx.Graph, root: nn.Module, node: fx.Node, concat: Any, pooled: fx.Node) -> None:
    name = str(node.target)
    layer: Any = root.get_submodule(name)
    channels = _channels(pooled, root)
    rest, image = layer.weight.data[:, :-channels], layer.weight.data[:, -channels:]
    of_image = copy.copy(layer)
    of_image._parameters = {"weight": nn.Parameter(image.clone(), requires_grad=False), "bias": None}
    of_image.activation, of_image.in_channels = None, channels
    layer.weight = nn.Parameter(rest.clone(), requires_grad=False)
    layer.in_channels -= channels
    root.set_submodule(f"{name}_of_image", of_image)
    *others, _ = concat.args[0]
    with graph.inserting_before(node):
        joined = graph.call_function(torch.cat, (others, 1)) if len(others) > 1 else others[0]
        added = graph.call_module(f"{name}_of_image", (pooled,))
        new = graph.call_module(name, (joined, added))
    node.replace_all_uses_with(new)
    repeated = concat.args[0][-1]
    for unused in (node, concat, repeated):
        graph.erase_node(unused)
