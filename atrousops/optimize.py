"""optimize: a trained model made fast for inference."""

from __future__ import annotations

import copy
import logging
import operator
from collections import Counter
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from atrousops._checks import bad_type, bad_value
from atrousops._fusion import Fusion, is_watched
from atrousops._graphs import WHOLE
from atrousops._joined_branches import join_branches
from atrousops._pooled_branch import take_out_of_concat
from atrousops.convert import convert, lay_out_weights

log = logging.getLogger("atrousops")


def optimize(
    model: nn.Module, *example: Tensor, memory_format: torch.memory_format | None = torch.channels_last
) -> nn.Module:
    """A copy of a trained model that does the same in fewer and faster steps, for inference.

    - batch normalisation becomes a part of the convolution before it: w' = w g / sqrt(v + eps), in fp64, rounded once;
    - bias, residual and ReLU (ReLU6, Hardswish, SiLU) become a part of the convolution's call (`FusedConv2d`);
    - layers become this package's (`convert`), and convolutions work in channels_last;
    - the image-level branch of ASPP is no longer repeated for every pixel: a convolution's weights for it are applied
      to one pixel, and added;
    - ASPP's other branches become one layer (`FusedBranches`), which on a GPU of compute capability 9.0 is one launch;
    - weights below the smallest normal number become zero: a CPU multiplies them a hundred times slower;
    - dropout and identities are gone.

    The results are equal up to the order of roundings (which may move a maximum between two that are as good as equal,
    and with it what max-unpooling puts there). Modules are traced with torch.fx where they can be; where a
    `forward` decides by shapes or values, its submodules are treated one by one. Layers with hooks, parametrizations
    or several users stay as they are. The copy's weights want no gradients; the model itself is not changed.

    Args:
        model: any module in evaluation mode.
        example: inputs to hold the copy to the model with; without them nothing is run.
        memory_format: of all convolutions with two or three spatial axes; None leaves it as it comes.

    Returns:
        The copy. `explain(copy, input)` shows what is left of it.

    Raises:
        ArgumentTypeError: `model` is not a torch.nn.Module.
        ArgumentError: a part of it is in training mode, or the copy disagrees with it on `example`.
    """
    if not isinstance(model, nn.Module):
        bad_type("optimize", "model", "be a torch.nn.Module", type(model).__name__)
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        bad_value("optimize", "model", "be in evaluation mode", f"{training[0]} in training mode", "Call model.eval().")
    result = copy.deepcopy(model)
    convert(result)
    result = _Rewriter(result, memory_format).rewrite(result, top=True)
    result.requires_grad_(False).eval()
    _clear_subnormals(result)
    if memory_format is torch.channels_last:
        lay_out_weights(result)
    if example:
        _hold(model, result, example)
    return result


class _Proxy(fx.Proxy):
    """torch.fx takes x += y for x = x + y, and who else holds x would not see it change."""

    def _in_place(self, function: Any, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other: Any) -> Any:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._in_place(operator.itruediv, other)


class _Tracer(fx.Tracer):
    def __init__(self, leaves: set[int]) -> None:
        super().__init__(autowrap_functions=tuple(WHOLE))
        self.leaves = leaves

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self.leaves


class _FusedSequential(nn.Sequential):
    """Layers that are only right when they run one after the other, and say so to whoever takes one out."""

    def forward(self, input: Any) -> Any:
        for module in self._modules.values():
            input = module(input)
        return input

    def __iter__(self) -> NoReturn:
        self._refuse()

    def __getitem__(self, index: Any) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        rule = "not take single layers out of an nn.Sequential in a forward that torch.fx cannot trace"
        remedy = "Make such a Sequential an nn.ModuleList, or optimise the parts of the model apart."
        bad_value("optimize", "model", rule, f"one that indexes or iterates over {len(self)} layers", remedy)


class _Rewriter:
    """Goes through a model from above; what can be traced becomes a graph, of the rest each part is looked at."""

    def __init__(self, model: nn.Module, memory_format: torch.memory_format | None) -> None:
        self.memory_format = memory_format
        self.leaves: set[int] = set()
        self.done: dict[int, nn.Module] = {}
        paths = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
        self.shared = {key for key, count in paths.items() if count > 1}
        self._find_leaves(model)

    def _find_leaves(self, module: nn.Module) -> None:
        # From below, so that a part that cannot be traced is a single call in what can.
        if id(module) in self.leaves:
            return
        for child in module.children():
            self._find_leaves(child)
        if isinstance(module, nn.ModuleList | nn.ModuleDict) and type(module).forward is nn.Module.forward:
            return
        if not self._is_composite(module) or self._graph(module) is None:
            self.leaves.add(id(module))

    def _is_composite(self, module: nn.Module) -> bool:
        stock = type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Sequential)
        watched = is_watched(module) or parametrize.is_parametrized(module)
        return bool(next(module.children(), None)) and not (stock or watched)

    def _graph(self, module: nn.Module, leaves: set[int] | None = None) -> fx.Graph | None:
        try:
            return _Tracer(self.leaves if leaves is None else leaves).trace(module)
        # Whatever a forward does with what is no tensor, it may raise anything.
        except Exception as error:
            log.debug("optimize: %s is not traced: %s", type(module).__name__, error)
            return None

    def rewrite(self, module: nn.Module, top: bool = False) -> nn.Module:
        """The module, or what stands in its place."""
        if id(module) not in self.done:
            self.done[id(module)] = module
            self.done[id(module)] = self._rewritten(module, top)
        return self.done[id(module)]

    def _rewritten(self, module: nn.Module, top: bool) -> nn.Module:
        graph = self._graph(module) if id(module) not in self.leaves and self._is_composite(module) else None
        if graph is None:
            self._rewrite_children(module)
            return module
        if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) and not top:
            # Its owner may index it, or go through it.
            if type(module).forward is nn.Sequential.forward:
                self._fuse_in_place(module)
            else:
                self._rewrite_children(module)
            return module
        fusion = Fusion(graph, module, self.shared, self.memory_format)
        fusion.run()
        take_out_of_concat(graph, module, self.shared)
        self.leaves |= {id(layer) for layer in join_branches(fusion)}
        result = fx.GraphModule(module, graph, type(module).__name__)
        result.delete_all_unused_submodules()
        for name in {str(node.target) for node in graph.nodes if node.op == "call_module"}:
            result.set_submodule(name, self.rewrite(result.get_submodule(name)))
        return result

    def _fuse_in_place(self, module: nn.Module) -> None:
        graph = self._graph(module, {id(m) for m in module.modules() if type(m).forward is not nn.Sequential.forward})
        if graph is not None:
            fusion = Fusion(graph, module, self.shared, self.memory_format)
            fusion.run()
            for name in fusion.erased:
                module.set_submodule(name, nn.Identity())
            if fusion.erased:
                module.__class__ = _FusedSequential
        self._rewrite_children(module)

    def _rewrite_children(self, module: nn.Module) -> None:
        for name, child in list(module.named_children()):
            new = self.rewrite(child)
            if new is not child:
                setattr(module, name, new)


def _clear_subnormals(model: nn.Module) -> None:
    for weight in model.parameters():
        if weight.dtype in (torch.float32, torch.bfloat16):
            tiny = weight.data.abs() < torch.finfo(weight.dtype).tiny
            weight.data = weight.data.masked_fill(tiny, 0)


def _hold(model: nn.Module, result: nn.Module, example: tuple[Tensor, ...]) -> None:
    leaves = torch.utils._pytree.tree_leaves
    with torch.no_grad():
        pairs = list(zip(leaves(model(*example)), leaves(result(*example)), strict=True))
    for index, (expected, got) in enumerate(pairs):
        if isinstance(expected, Tensor) and expected.is_floating_point():
            bound = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().amax().item()
            error = (got - expected).abs().amax().item()
            if not error <= bound:
                rule = f"be one that its optimised copy agrees with to {bound:.1e} on the example"
                bad_value("optimize", "model", rule, f"a difference of {error:.1e} in output {index}")
