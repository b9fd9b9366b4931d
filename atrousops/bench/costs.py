"""What an image costs by its shapes alone: multiply-adds, and the most that maps take at one time."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def count(network: nn.Module, side: int) -> tuple[int, int]:
    """Multiply-adds of one image of side x side pixels, and bytes of the maps that live at once, at most.

    Multiply-adds are those of convolutions and matrix products, as `torch.utils.flop_counter` counts them. A map lives
    from the operation that makes it until the last tensor of its storage is gone; parameters, and what a kernel needs
    inside, do not count.

    Args:
        network: in evaluation, on the device "meta", which computes shapes alone.
        side: of the image, in pixels.
    """
    image = torch.empty(1, getattr(network, "in_channels", 3), side, side, device="meta")
    own = {t.untyped_storage()._cdata for t in [*network.parameters(), *network.buffers()]}
    maps = _Maps(own)
    maps.made(image)
    operations = FlopCounterMode(display=False)
    with torch.no_grad(), maps, operations:
        network.eval()(image)
    return operations.get_total_flops() // 2, maps.most


class _Maps(TorchDispatchMode):
    """The bytes of the storages that tensors made by operations hold, now and at most."""

    def __init__(self, others: set[int]) -> None:
        super().__init__()
        self.most = 0
        self._now = 0
        self._others = others
        self._holders: Counter[int] = Counter()

    def made(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._others:
            return
        if not self._holders[key]:
            self._now += storage.nbytes()
            self.most = max(self.most, self._now)
        self._holders[key] += 1
        weakref.finalize(tensor, self._gone, key, storage.nbytes())

    def _gone(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            self._now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(leaf) for leaf in tree_leaves((args, kwargs))}
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and id(leaf) not in given:
                self.made(leaf)
        return output
