"""The tolerance rule: twice the error PyTorch itself makes at that dtype against fp64, which is computed on the CPU."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves, tree_map_only

import atrousops as ao
from atrousops.testing import disagreement

T = TypeVar("T")

# What references are made of, by the beginnings of the names in torch.nn.functional and torchvision.ops.
_PEERS = ("conv", "max_pool", "max_unpool", "roi_", "linear", "softmax", "interpolate")


@contextlib.contextmanager
def references_on_the_cpu() -> Iterator[None]:
    """Inside, what PyTorch and torchvision compute of fp64 tensors on a GPU they compute on the CPU, gradients too.

    A result in fp64 is a reference, and must not come from another kernel of the GPU under test.
    """
    modules = [F]
    with contextlib.suppress(ImportError):  # another torch has no torchvision
        import torchvision

        modules.append(torchvision.ops)
    with contextlib.ExitStack() as stack:
        for module in modules:
            for name in filter(lambda name: name.startswith(_PEERS), dir(module)):
                if callable(function := getattr(module, name)) and not isinstance(function, type):
                    stack.enter_context(mock.patch.object(module, name, _moved(function)))
        yield


def _moved(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        exact = any(t.dtype == torch.float64 and _is_away(t) for t in tensors)
        return on_the_cpu(function, *args, **kwargs) if exact else function(*args, **kwargs)

    return call


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
