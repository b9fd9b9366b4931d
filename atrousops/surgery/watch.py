"""What happens while a model runs: which code calls its layers, reads its weights, or asks for a map's strides."""

from __future__ import annotations

import itertools
import random
import sys
from collections import defaultdict
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from atrousops.common.formats import prefers_channels_last
from atrousops.nn.sequence import run_layers

# Functions that give the same numbers for either memory format, in a result whose format follows the inputs'.
_FOLLOW = frozenset(
    """
    relu relu_ relu6 hardswish silu gelu sigmoid sigmoid_ tanh leaky_relu elu prelu hardsigmoid hardtanh softplus mish
    selu celu logsigmoid softmax log_softmax add add_ sub mul mul_ div div_ pow exp sqrt rsqrt abs neg clamp clamp_
    maximum minimum where __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __mul__ __rmul__ __imul__ __truediv__
    __neg__ __pow__ cat concat concatenate stack chunk split __getitem__ narrow unsqueeze squeeze unbind roll flip
    permute transpose flatten reshape expand expand_as clone detach to float half double type_as interpolate upsample
    pad max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d mean sum amax amin max min argmax var std norm
    normalize batch_norm group_norm instance_norm layer_norm conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d pixel_shuffle max_unpool2d max_unpool3d conv conv_transpose max_pool max_unpool conv_epilogue
    addcmul lerp index_select floor_divide __floordiv__ __mod__ remainder __eq__ __ne__ __lt__ __le__ __gt__ __ge__ eq
    ne lt le gt ge isnan grid_sample
    """.split()  # noqa: SIM905
)
# Functions whose result lies in one way whatever the inputs' format.
_ABSORB = {"linear", "matmul", "__matmul__", "bmm", "contiguous", "roi_align"}
# What a tensor returns whatever its memory format.
_ASKS = frozenset(
    """
    shape size dim ndim numel dtype device layout is_cuda requires_grad is_floating_point is_complex __len__ grad_fn
    is_leaf names is_quantized is_sparse is_mkldnn is_meta itemsize element_size __hash__ __class__ grad nelement
    is_nested has_names is_cpu is_xla is_mps is_vulkan type _version
    """.split()  # noqa: SIM905
)
_GLOBAL: tuple[Any, ...] = (_module.register_module_forward_pre_hook, _module.register_module_forward_hook)


class Watch(TorchFunctionMode):
    """Watches a model run, as a context.

    Attributes:
        callers: layer -> the code that calls it, and the module on whose behalf.
        fed_by: layer -> the layers whose results, unchanged, are its inputs; None for anything else.
        read_elsewhere: layers whose weights are read otherwise than in their own call.
        in_nchw: layers that returned a tensor in another format than channels_last.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {module: name for name, module in model.named_modules()}
        self.callers: dict[str, set[tuple[CodeType, str | None]]] = defaultdict(set)
        self.fed_by: dict[str, set[str | None]] = defaultdict(set)
        self.read_elsewhere: set[str] = set()
        self.in_nchw: set[str] = set()
        self._owners = {id(tensor): name for module, name in self.names.items() for tensor in tensors_of(module)}
        self._made_by = WeakTensorKeyDictionary()
        self._numbers = WeakTensorKeyDictionary()
        self._counter = itertools.count()
        self._stack: list[str | None] = []
        # Of each function called: what it does with formats, numbers of its inputs, of its results, and the layer.
        self._events: list[tuple[str, tuple[int, ...], tuple[int, ...], str | None]] = []
        self._returned: list[int] = []
        self._results_of: dict[str, set[int]] = defaultdict(set)

    def run(self, model: nn.Module, inputs: tuple[Any, ...]) -> Any:
        """What the model returns, watched."""
        handles = [register(hook) for register, hook in zip(_GLOBAL, (self._before, self._after), strict=True)]
        try:
            with self:
                outputs = model(*inputs)
        finally:
            for handle in handles:
                handle.remove()
        self._returned += [self._number(leaf) for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
        return outputs

    def keeps_format(self, layers: set[str]) -> set[str]:
        """Those of the layers whose results are returned, or have their strides read by later code.

        Args:
            layers: names of convolutions that take either format.
        """
        sensitive = set(self._returned)
        before = -1
        while before != len(sensitive):
            before = len(sensitive)
            for effect, inputs, results, layer in reversed(self._events):
                if layer not in layers and (effect == "reads" or (effect == "follows" and sensitive & {*results})):
                    sensitive |= {*inputs}
        return {layer for layer in layers if self._results_of[layer] & sensitive}

    def ends(self, layers: set[str]) -> tuple[set[str], set[str]]:
        """Those of the layers behind none of the others, and those whose results reach an output past no other."""
        behind, first, last, wanted = set[int](), set[str](), set[str](), set(self._returned)
        for _, inputs, results, layer in self._events:
            if layer in layers and not behind & {*inputs}:
                first.add(layer)
            if layer in layers or behind & {*inputs}:
                behind |= {*results}
        for _, inputs, results, layer in reversed(self._events):
            if wanted & {*results} and layer in layers:
                last.add(layer)
            elif wanted & {*results}:
                wanted |= {*inputs}
        return first, last

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        name = self.names.get(module)
        self._stack.append(name)
        if name is None:
            return
        first = args[0] if args else None
        self.fed_by[name].add(self._made_by.get(first) if isinstance(first, Tensor) else None)
        self.callers[name].add(self._caller(sys._getframe(1)))

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        name = self._stack.pop()
        if name is not None and isinstance(output, Tensor):
            self._results_of[name].add(self._number(output))
            # This look at the strides is not the model's.
            with torch._C.DisableTorchFunction():
                if output.layout is torch.strided and not prefers_channels_last(output):
                    self.in_nchw.add(name)
            # What a container or an identity passes on was made by another layer.
            passes_on = type(module) is nn.Identity or next(module.children(), None) is not None
            if not (passes_on and output in self._made_by):
                self._made_by[output] = name

    def _caller(self, frame: FrameType | None) -> tuple[CodeType, str | None]:
        while frame is not None and (_is_passed(frame)):
            frame = frame.f_back
        assert frame is not None
        owner = frame.f_locals.get("self")
        return frame.f_code, self.names.get(owner) if isinstance(owner, nn.Module) else None

    def _number(self, tensor: Tensor) -> int:
        if tensor not in self._numbers:
            self._numbers[tensor] = next(self._counter)
        return self._numbers[tensor]

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = _name_of(func)
        if name in _ASKS:
            return result
        inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = self._stack[-1] if self._stack else None
        for tensor in inputs:
            owner = self._owners.get(id(tensor))
            if owner is not None and owner != here:
                self.read_elsewhere.add(owner)
        outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        # A vector, a matrix and what is contiguous in any case lie in one way only.
        absorbs = name in _ABSORB or all(leaf.dim() <= 2 for leaf in outputs)
        # Our own code asks how a map lies, and answers in the same way.
        ours = str(sys._getframe(1).f_globals.get("__name__")).startswith(_OURS)
        known = ours or name in _FOLLOW or name in _ABSORB or ("dropout" in name and _is_off(args, kwargs))
        effect = "reads" if not known else "absorbs" if absorbs else "follows"
        self._events.append((effect, tuple(map(self._number, inputs)), tuple(map(self._number, outputs)), here))
        return result


_OURS = ("atrousops.ops", "atrousops.nn", "atrousops.reference")
_PASSED = {"torch.nn.modules.module", "torch._compile", __name__}
# Code that calls the children of whatever container in order.
IN_ORDER = {nn.Sequential.forward.__code__, run_layers.__code__}


def _is_passed(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") in _PASSED or frame.f_code.co_name == "<listcomp>"


def _name_of(func: Any) -> str:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        # A property such as Tensor.shape.
        return str(getattr(getattr(func, "__self__", None), "__name__", ""))
    return str(name).split(".")[0]


def _is_off(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    training = kwargs.get("training", args[2] if len(args) > 2 else True)
    return training is False


def tensors_of(module: nn.Module) -> list[Tensor]:
    own = [*module._parameters.values(), *module._buffers.values()]
    return [tensor for tensor in own if isinstance(tensor, Tensor)]


def run_seeded(model: nn.Module, inputs: tuple[Any, ...], watch: Watch | None = None) -> Any:
    """What the model returns without gradients, with generators that begin as always and are put back."""
    state = random.getstate()
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(0)
            random.seed(0)
            return model(*inputs) if watch is None else watch.run(model, inputs)
    finally:
        random.setstate(state)
