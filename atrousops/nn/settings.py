"""Settings that are tensors: buffers that are not in the state dict, because the constructor gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Settings(nn.Module):
    """A module whose settings keep their values through `to_empty`, and through construction on the meta device.

    Parameters lose their values there and get them back from a state dict; settings are not in it.
    """

    def _set(self, name: str, values: Tensor) -> None:
        """Registers a setting; `values` is not on the meta device."""
        self._kept = {**self._numbers(), name: values}
        self.register_buffer(name, values.clone(), persistent=False)

    def _numbers(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.__dict__.get("_kept", {})
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = {name: self._buffers[name] for name in self._numbers()}
        super()._apply(fn, recurse)
        with torch.no_grad():
            for name, old in before.items():
                new = self._buffers[name]
                if new is not None and old is not None and new is not old and not new.is_meta:
                    new.copy_(self._numbers()[name] if old.is_meta else old)
        return self
