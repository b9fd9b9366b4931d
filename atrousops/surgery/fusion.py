"""Which layers of a model `optimize` may change, and the changes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from atrousops.nn import conv as layers
from atrousops.nn.sequence import ACTIVATIONS, FUSED, Folded, InOrder, Variant, flat, runs_in_order, variant, watched
from atrousops.surgery.convert import Left
from atrousops.surgery.known_blocks import gain_of, outputs_of, variant_of
from atrousops.surgery.report import Fused, Optimization
from atrousops.surgery.source import calls_of
from atrousops.surgery.watch import IN_ORDER, Watch, tensors_of

_CONVS: dict[type, type] = {
    **dict.fromkeys((nn.Conv1d, layers.AtrousConv1d, layers.FusedConv1d), layers.FusedConv1d),
    **dict.fromkeys((nn.Conv2d, layers.AtrousConv2d, layers.FusedConv2d), layers.FusedConv2d),
    **dict.fromkeys((nn.Conv3d, layers.AtrousConv3d, layers.FusedConv3d), layers.FusedConv3d),
}
_TRANSPOSED: dict[type, type] = {
    **dict.fromkeys((nn.ConvTranspose1d, layers.AtrousConvTranspose1d), layers.AtrousConvTranspose1d),
    **dict.fromkeys((nn.ConvTranspose2d, layers.AtrousConvTranspose2d), layers.AtrousConvTranspose2d),
    **dict.fromkeys((nn.ConvTranspose3d, layers.AtrousConvTranspose3d), layers.AtrousConvTranspose3d),
}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CONTAINERS = (nn.ModuleList, nn.ModuleDict)
_NO_FORWARD = nn.Module.forward


class Fusion:
    """A model, and what is known of the ways its layers are called.

    Args:
        model: in evaluation mode; it is changed.
        watch: of runs of a copy of it; None where it was not run, and what its source proves is enough.
    """

    def __init__(self, model: nn.Module, watch: Watch | None) -> None:
        self.model, self.watch = model, watch
        self.names = {module: name for name, module in model.named_modules()}
        self.parents: dict[nn.Module, list[tuple[nn.Module, str]]] = {module: [] for module in self.names}
        for module in self.names:
            for name, child in module._modules.items():
                if child is not None:
                    self.parents[child].append((module, name))
        storages = Counter(t.untyped_storage()._cdata for t in self._all_tensors() if t.layout == torch.strided)
        self.shared = {key for key, count in storages.items() if count > 1}
        self.elsewhere = set[str]().union(*(calls_of(kind).elsewhere for kind in {type(m) for m in self.names}))

    def _all_tensors(self) -> Iterator[Tensor]:
        for module in self.names:
            yield from tensors_of(module)

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Layers of which the second gets all results of the first and nothing else, and the first is called alone."""
        found = []
        for module in self.names:
            for first, second in self._neighbours(module):
                one, two = self._end(module._modules[first], -1), self._end(module._modules[second], 0)
                if one is not None and two is not None:
                    found.append((one, two))
        # An identity between two layers passes on the very tensor.
        following = dict(found)
        return [(one, self._past_identities(two, following)) for one, two in found]

    def _past_identities(self, layer: nn.Module, following: dict[nn.Module, nn.Module]) -> nn.Module:
        while type(layer) is nn.Identity and not watched(layer) and layer in following:
            layer = following[layer]
        return layer

    def _neighbours(self, module: nn.Module) -> list[tuple[str, str]]:
        """Names of children such that the second gets what the first returns, and nothing else does."""
        children = {name: child for name, child in module._modules.items() if child is not None}
        outputs = set[str]() if runs_in_order(module) else outputs_of(module)
        if outputs is not None and "forward" not in module.__dict__:
            if self._is_reached_into(module):
                return []
            return [(a, b) for a, b in pairwise(children) if a not in outputs]
        calls = calls_of(type(module))
        if not calls.readable or calls.reflects or _has_code(module):
            return []
        return [
            (a, b)
            for a in children
            for b in children
            if calls.follows(a, b) and not {a, b} & self.elsewhere and not hasattr(type(module), a)
        ]

    def _end(self, layer: Any, side: int) -> nn.Module | None:
        """The first or last layer of a container that runs in order; the layer itself if it is none."""
        while layer is not None and runs_in_order(layer):
            if watched(layer) or len(layer) == 0 or len(self.parents[layer]) != 1 or self._is_reached_into(layer):
                return None
            layer = layer[side]
        return None if layer is None or len(self.parents[layer]) != 1 else layer

    def _is_reached_into(self, container: nn.Module) -> bool:
        """Whether the model's own code may call the layers of a container one by one."""
        while self.parents[container]:
            if len(self.parents[container]) > 1 or self._reaches_in_itself(container):
                return True
            owner, name = self.parents[container][0]
            bare = isinstance(owner, _CONTAINERS) and type(owner).forward is _NO_FORWARD
            if bare or runs_in_order(owner) or outputs_of(owner) is not None:
                container = owner
                continue
            calls = calls_of(type(owner))
            one_by_one = name in calls.touched | self.elsewhere and isinstance(container, nn.Sequential)
            return not calls.readable or calls.digs or one_by_one
        return False

    def _reaches_in_itself(self, container: nn.Module) -> bool:
        calls = calls_of(type(container))
        own = calls.reflects or calls.digs or not calls.readable or calls.touched & container._modules.keys()
        return bool(own) and outputs_of(container) is None

    def why_untouchable(self, layer: nn.Module) -> str:
        """Why a layer may not be changed; empty if it may."""
        name = self.names[layer]
        if watched(layer):
            return "hooks, or a forward of its own"
        if parametrize.is_parametrized(layer):
            return "parametrized"
        if layer.training:
            return "in training mode"
        if len(self.parents[layer]) > 1:
            return "used in several places"
        tensors = tensors_of(layer)
        if any(type(t) not in (Tensor, nn.Parameter) or t.layout != torch.strided for t in tensors):
            return "its weights are no plain tensors"
        if any(t.untyped_storage()._cdata in self.shared for t in tensors):
            return "other layers share its weights"
        if self.watch is not None and name not in self.watch.callers:
            return "it was not called"
        if self.watch is not None and name in self.watch.read_elsewhere:
            return "other code reads its weights"
        return ""

    def why_apart(self, conv: nn.Module, norm: nn.Module) -> str:
        """Why a normalisation cannot become a part of the convolution whose results it gets; empty if it can."""
        if self.watch is None:
            return ""
        first, second = self.names[conv], self.names[norm]
        if self.watch.fed_by[second] != {first}:
            return "it gets other inputs too"
        for name, layer in ((first, conv), (second, norm)):
            above = self.names[self.parents[layer][0][0]]
            if any(
                owner != above and not (code in IN_ORDER and owner is None) for code, owner in self.watch.callers[name]
            ):
                return f"{name} is not called by {above or 'the model'} alone"
        return ""

    def fold_norms(self, report: Optimization) -> None:
        """Makes normalisations a part of the convolutions before them."""
        reasons = dict[nn.Module, str]()
        for conv, norm in self.pairs():
            if type(conv) not in _CONVS | _TRANSPOSED or not _is_norm(norm):
                continue
            reason = self.why_untouchable(conv) or self.why_untouchable(norm) or self.why_apart(conv, norm)
            reasons[norm] = reason or fold(conv, norm)
            if not reasons[norm]:
                conv.__class__ = (_CONVS | _TRANSPOSED)[type(conv)]
                report.fused.append(Fused(self.names[conv], f"does {self.names[norm]} too, which returns its input"))
                norm.__class__ = variant(type(norm), Folded)
        for layer, name in self.names.items():
            if _is_norm(layer):
                reason = reasons.get(layer) or "no code shows that it gets all that one convolution returns"
                report.left.append(Left(name, type(layer).__name__, reason))

    def prepare_convs(
        self, report: Optimization, memory_format: torch.memory_format | None, freeze: bool = False
    ) -> None:
        """Makes convolutions FusedConv, which work in a memory format of their own and do what follows them."""
        ready: dict[str, Any] = {}
        for layer, name in self.names.items():
            if type(layer) in _CONVS:
                reason = self.why_untouchable(layer)
                if reason:
                    report.left.append(Left(name, type(layer).__name__, reason))
                else:
                    ready[name] = layer
                    layer.__class__ = _CONVS[type(layer)]
                    if freeze:
                        layer.frozen = True
        if memory_format is torch.channels_last and self.watch is not None:
            formats = {2: torch.channels_last, 3: torch.channels_last_3d}
            kept = self.watch.keeps_format(set(ready)) & self.watch.in_nchw
            for name, layer in ready.items():
                format = formats.get(len(layer.kernel_size))
                layer.contiguous_output = name in kept
                if format is not None and name not in kept:
                    layer.channels_last = True
                    layer.weight.data = layer.weight.data.contiguous(memory_format=format)
            if kept:
                report.notes.append(
                    f"{len(kept)} convolutions answer in NCHW, as what is behind them may read the layout"
                )

    def mix_in(self, report: Optimization) -> None:
        """Gives containers and known blocks a forward in which convolutions do what follows them."""
        for layer, name in self.names.items():
            known = variant_of(layer)
            if known is None and runs_in_order(layer) and _has_fusible(layer):
                known = InOrder
            if known is not None and not issubclass(type(layer), Variant) and "forward" not in vars(layer):
                report.fused.append(Fused(name, f"{type(layer).__name__}: {gain_of(known)}"))
                layer.__class__ = variant(type(layer), known)


def fold(layer: Any, norm: Any) -> str:
    """Makes a normalisation in evaluation mode a part of the convolution before it; why not, if it cannot.

    w'[k] = w[k] g[k] / sqrt(v[k] + eps) and b'[k] = (b[k] - m[k]) g[k] / sqrt(v[k] + eps) + beta[k], summed in fp64 and
    rounded once.
    """
    transposed = type(layer) in _TRANSPOSED
    if norm.running_mean is None or norm.running_var is None:
        return "it normalises by the statistics of its input"
    if transposed and layer.groups > 1:
        return "a transposed convolution in groups"
    statistics: list[Any] = [norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias]
    old = [layer.weight, *[t for t in (layer.bias, *statistics) if isinstance(t, Tensor)]]
    if len(norm.running_mean) != layer.out_channels or len({(t.dtype, t.device) for t in old}) > 1:
        return "other channels, dtype or device than the convolution's"
    if not layer.weight.is_floating_point():
        return "no floating dtype"
    wide = [t.double() if isinstance(t, Tensor) else t for t in (layer.weight, layer.bias, *statistics)]
    fuse: Any = fuse_conv_bn_weights
    new = [t.detach().to(layer.weight.dtype) for t in fuse(*wide, transpose=transposed)]
    if not all(bool(t.isfinite().all()) for t in new):
        return "folded weights would not be finite"
    layer.weight, layer.bias = [nn.Parameter(t, requires_grad=False) for t in new]
    return ""


def _is_norm(layer: nn.Module) -> bool:
    misc = sys.modules.get("torchvision.ops.misc")
    return type(layer) in _NORMS or (misc is not None and type(layer) is misc.FrozenBatchNorm2d)


def _has_fusible(container: nn.Module) -> bool:
    found = [layer for layer in flat([container]) if not isinstance(layer, Folded) and type(layer) is not nn.Identity]
    return any(type(a) in FUSED and type(b) in ACTIVATIONS for a, b in pairwise(found))


def _has_code(module: nn.Module) -> bool:
    """Whether a module holds functions of its own, which may call its children."""
    return any(
        isinstance(value, MethodType) or (isinstance(value, FunctionType) and not value.__module__.startswith("torch."))
        for value in vars(module).values()
    )
