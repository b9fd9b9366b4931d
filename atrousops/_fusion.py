"""What `optimize` does to the graph of one module: what follows a convolution becomes a part of it."""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from atrousops.nn import conv as layers

_FUSED: dict[type, type] = {
    **dict.fromkeys((nn.Conv1d, layers.AtrousConv1d, layers.FusedConv1d), layers.FusedConv1d),
    **dict.fromkeys((nn.Conv2d, layers.AtrousConv2d, layers.FusedConv2d), layers.FusedConv2d),
    **dict.fromkeys((nn.Conv3d, layers.AtrousConv3d, layers.FusedConv3d), layers.FusedConv3d),
}
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_ADDITIONS = (operator.add, torch.add, operator.iadd)
_CHANGING_ADDITIONS = (operator.iadd, "add_")
_ACTIVATION_LAYERS = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Hardswish: "hardswish", nn.SiLU: "silu"}
_ACTIVATION_CALLS: dict[Any, str] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), "relu"),
    F.relu6: "relu6",
    F.hardswish: "hardswish",
    F.silu: "silu",
}


class Fusion:
    """The graph of a module, its layers, and what may be changed of them.

    Args:
        graph: of a module in evaluation mode.
        root: whose submodules the graph names.
        shared: ids of modules that other places use too; they are left as they are.
        memory_format: what inputs of fused convolutions are brought into.
    """

    def __init__(
        self, graph: fx.Graph, root: nn.Module, shared: set[int], memory_format: torch.memory_format | None
    ) -> None:
        self.graph, self.root, self.memory_format = graph, root, memory_format
        self.calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        self.shared = shared
        self.erased: list[str] = []

    def run(self) -> None:
        """Does everything there is to do; `erased` names the layers that have nothing left to do."""
        for node in list(self.graph.nodes):
            if isinstance(self.layer(node), _NOTHING) and len(node.args) == 1:
                self._erase(node, node.args[0])
        for node in list(self.graph.nodes):
            layer = self.own_layer(node)
            if isinstance(layer, _TRANSPOSED):
                self._fold_norms(node, layer)
            elif layer is not None and type(layer) in _FUSED and len(node.args) == 1 and not node.kwargs:
                self._fuse(node, layer)

    def layer(self, node: fx.Node) -> nn.Module | None:
        """The layer that a node calls."""
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def own_layer(self, node: fx.Node) -> nn.Module | None:
        """The layer that a node calls, if it may be changed: nobody else uses it or looks at what it does."""
        layer = self.layer(node)
        if layer is None or self.calls[node.target] > 1 or id(layer) in self.shared:
            return None
        return None if is_watched(layer) or parametrize.is_parametrized(layer) else layer

    def _fuse(self, node: fx.Node, layer: Any) -> None:
        layer.__class__ = _FUSED[type(layer)]
        formats = {2: torch.channels_last, 3: torch.channels_last_3d}
        if self.memory_format is torch.channels_last:
            layer.memory_format = formats.get(len(layer.kernel_size))
        self._fold_norms(node, layer)
        node = self._fuse_addition(node)
        user = _only_user(node)
        if user is not None and layer.activation is None and (name := self._activation(user)) is not None:
            layer.activation = name
            self._erase(user, node)

    def _fold_norms(self, node: fx.Node, layer: Any) -> None:
        while (user := _only_user(node)) is not None and fold(layer, self.layer(user)):
            self._erase(user, node)

    def _fuse_addition(self, node: fx.Node) -> fx.Node:
        add = _only_user(node)
        is_call = add is not None and (
            (add.op == "call_function" and add.target in _ADDITIONS)
            or (add.op == "call_method" and add.target in ("add", "add_"))
        )
        if not is_call or add is None or add.kwargs or len(add.args) != 2:
            return node
        other = add.args[1] if add.args[0] is node else add.args[0]
        # What changes the other operand in place has others who read it afterwards.
        if not isinstance(other, fx.Node) or other is node or self.changed_between(node, add):
            return node
        if add.target in _CHANGING_ADDITIONS and add.args[0] is not node:
            return node
        with self.graph.inserting_before(add):
            moved = self.graph.call_module(str(node.target), (node.args[0], other))
        add.replace_all_uses_with(moved)
        self.graph.erase_node(add)
        self.graph.erase_node(node)
        return moved

    def changed_between(self, first: fx.Node, last: fx.Node) -> bool:
        """Whether a call changes a tensor that others read: nothing may be moved past it."""
        node = first.next
        while node is not last:
            changed = node.args[0] if self._in_place(node) else None
            own = isinstance(changed, fx.Node) and changed.op == "call_module" and len(changed.users) == 1
            if changed is not None and not own:
                return True
            node = node.next
        return False

    def _in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.layer(node), "inplace", False))
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        changing = (name.endswith("_") and not name.endswith("__")) or name in (
            "iadd",
            "imul",
            "isub",
            "itruediv",
            "setitem",
        )
        return node.op.startswith("call") and (changing or bool(node.kwargs.get("inplace")))

    def _activation(self, node: fx.Node) -> str | None:
        if node.op == "call_module":
            layer = self.layer(node)
            return None if layer is None or is_watched(layer) else _ACTIVATION_LAYERS.get(type(layer))
        rest = {name: value for name, value in node.kwargs.items() if name != "inplace"}
        return _ACTIVATION_CALLS.get(node.target) if len(node.args) == 1 and not rest else None

    def _erase(self, node: fx.Node, instead: Any) -> None:
        if node.op == "call_module":
            self.erased.append(str(node.target))
        node.replace_all_uses_with(instead)
        self.graph.erase_node(node)


def is_watched(layer: nn.Module) -> bool:
    """Whether somebody's hook wants to see the layer called."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks) or "forward" in vars(layer)


def fold(layer: Any, norm: Any) -> bool:
    """Makes a normalisation in evaluation mode a part of the convolution before it, if it is one.

    w'[k] = w[k] g[k] / sqrt(v[k] + eps) and b'[k] = (b[k] - m[k]) g[k] / sqrt(v[k] + eps) + beta[k], summed in fp64 and
    rounded once.
    """
    transposed = isinstance(layer, _TRANSPOSED)
    frozen = type(norm).__name__ == "FrozenBatchNorm2d"
    if norm is None or not (type(norm) in _NORMS or frozen) or is_watched(norm) or norm.training:
        return False
    # Its scales run over all channels, where a transposed weight has those of a group.
    if norm.running_mean is None or norm.running_var is None or (transposed and layer.groups > 1):
        return False
    statistics: list[Any] = [norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias]
    if len(norm.running_mean) != layer.out_channels or getattr(layer, "activation", None) is not None:
        return False
    dtype = layer.weight.dtype
    wide = [t.double() if isinstance(t, Tensor) else t for t in (layer.weight, layer.bias, *statistics)]
    fuse: Any = fuse_conv_bn_weights
    weight, bias = fuse(*wide, transpose=transposed)
    layer.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
    return True


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
