"""Weights in formats of oneDNN's, made once and kept while the tensors that they were made from stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")


class _Made(NamedTuple):
    """What was made, and a key of what it was made from; another key means making it again."""

    of: tuple[Any, ...]
    value: Any


_made = WeakTensorKeyDictionary()


def prepacked(weight: Tensor, others: tuple[Tensor, ...], settings: Hashable, make: Callable[[], T]) -> T:
    """make(), or what it returned before if nothing has changed since.

    Changes are seen by PyTorch's counter of in-place operations and by the storage: those through `.data`, numpy or
    another process are not. Tensors made in inference mode count none, and for them nothing is kept.

    Args:
        weight: keeps what was made for as long as it lives.
        others: other tensors that `make` reads.
        settings: whatever else it depends on.
        make: from these alone.
    """
    tensors = (weight, *others)
    if any([t.is_inference() for t in tensors]):
        return make()
    # A weak reference, so that no later storage is taken for this one.
    states = tuple([(StorageWeakRef(t.untyped_storage()), t.data_ptr(), t._version, t.dtype) for t in tensors])
    of = (states, settings)
    made: _Made | None = _made.get(weight)
    if made is None or made.of != of:
        made = _Made(of, make())
        _made[weight] = made
    value: T = made.value
    return value
