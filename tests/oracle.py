"""The tolerance rule: twice the error PyTorch itself makes at that dtype against fp64, which is computed on the CPU."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import host_cuda
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import atrousops as ao
from atrousops.dispatch.devices import is_emulated
from atrousops.testing import disagreement

T = TypeVar("T")


def is_interpreted(backend: str) -> bool:
    """Whether a CPU executes each thread of the backend's kernels, so that a test keeps its sizes small."""
    return backend in ("host_cuda", "triton") or (backend == "cuda" and is_emulated())


@contextlib.contextmanager
def run_on(threads: int) -> Iterator[None]:
    """Inside, calls may use that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def in_order(backend: str, number: int) -> Iterator[None]:
    """Inside, the same work in another order: so many threads, or a seed where a CPU executes the kernels."""
    if backend == "host_cuda":
        with host_cuda.order(number):
            yield
    elif backend == "cuda" and is_emulated():
        import kernels  # of tests/emulated_gpu

        with kernels.order(number):
            yield
    else:
        with run_on(number):
            yield


class References(TorchFunctionMode):
    """Inside, what PyTorch and torchvision compute of fp64 tensors on a GPU they compute on the CPU, gradients too.

    A result in fp64 is a reference, and must not come from another kernel of the GPU under test. Our operators, views,
    and what draws, makes or moves tensors stay where they are.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Calls of ours see no mode but while a function of PyTorch's runs: they take another way under one.
        if torch.compiler.is_compiling() or not _is_exact(args, kwargs):
            return func(*args, **kwargs)
        with _Moved():
            return func(*args, **kwargs)


class _Moved(TorchDispatchMode):
    """Operators, forward and backward, as `References` has them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not (_computes(func) and _is_exact(args, kwargs)):
            return func(*args, **kwargs)
        if not func._schema.is_mutable:
            return on_the_cpu(func, *args, **kwargs)
        target = args[0]
        return target.copy_(on_the_cpu(func, *args, **kwargs))


@functools.cache
def _computes(func: Any) -> bool:
    """Whether an operator makes new values of others, in tensors of its own or in its first argument."""
    if func.namespace not in ("aten", "torchvision"):
        return False
    schema = func._schema
    written = [bool(argument.alias_info) for argument in schema.arguments]
    alone = not any(written[1:]) and (not written[0] or (schema.is_mutable and torch.Tag.inplace_view not in func.tags))
    drawn = torch.Tag.nondeterministic_seeded in func.tags
    moves = any(argument.name == "device" for argument in schema.arguments) or "copy_" in func._opname
    return bool(schema.returns) and alone and not drawn and not moves


def _is_exact(args: Any, kwargs: Any) -> bool:
    """Whether the tensors are real, and some in fp64 and away."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    real = all(type(t) in (torch.Tensor, torch.nn.Parameter) for t in tensors)
    return real and any(t.dtype == torch.float64 and _is_away(t) for t in tensors)


def _is_away(t: torch.Tensor) -> bool:
    return t.device.type == "cuda"


def on_the_cpu(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A function, or a copy of a module, of the tensors' copies on the CPU; results are where the first tensor was."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    home = next((t.device for t in tensors if _is_away(t)), None)
    if home is None:
        return function(*args, **kwargs)
    if isinstance(function, torch.nn.Module):
        function = copy.deepcopy(function).to("cpu")
    args, kwargs = tree_map_only(torch.Tensor, lambda t: t.to("cpu"), (args, kwargs))
    with torch.device("cpu"):
        return tree_map_only(torch.Tensor, lambda t: t.to(home), function(*args, **kwargs))


def by_reference(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What our readable PyTorch makes of a call, on the CPU."""
    with ao.backend("reference"):
        return on_the_cpu(function, *args, **kwargs)


def assert_close(ours: torch.Tensor, exact: torch.Tensor, theirs: torch.Tensor) -> None:
    """|ours - exact| <= 2 max|theirs - exact| + one rounding of the largest exact value.

    Args:
        ours: our result at the dtype under test.
        exact: the oracle's result in fp64.
        theirs: PyTorch's result at the dtype under test.
    """
    wrong = disagreement(ours, exact, theirs)
    assert wrong is None, wrong


def assert_compiles(
    function: Callable[..., Any], *calls: tuple, dynamic: bool | None = None, **tolerance: float
) -> None:
    """As one graph it gives what it gives without, and the same gradients to what wants them, in each of the calls."""
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for args in calls:
        results = []
        for run in (compiled, function):
            leaves = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor) and t.requires_grad]
            outputs = run(*args)
            ends = [y for y in tree_leaves(outputs) if y.requires_grad]
            results.append((outputs, torch.autograd.grad([y.sin().sum() for y in ends], leaves) if leaves else ()))
        torch.testing.assert_close(*results, equal_nan=True, **tolerance)


def both_ways(compute: Callable[[], T]) -> list[T]:
    """What PyTorch computes in fp32: by oneDNN, and by its own kernels.

    oneDNN's error depends on the CPU: on a Zen 4 with AVX-512 it was a third of that of a plain sum.
    """
    found = [compute()]
    torch._C._set_mkldnn_enabled(False)
    try:
        return [*found, compute()]
    finally:
        torch._C._set_mkldnn_enabled(True)


def worst(exact: torch.Tensor, *theirs: torch.Tensor) -> torch.Tensor:
    """Of several results of PyTorch's the one that is furthest from the exact one."""
    error = lambda t: float((t.detach().double() - exact).abs().nan_to_num().max())  # noqa: E731
    return max(theirs, key=error) if exact.numel() else theirs[0]


def tf32(t: torch.Tensor) -> torch.Tensor:
    """Of fp32, rounded to 10 bits of fraction: what a TF32 product sees."""
    return ((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32) if t.dtype == torch.float32 else t
