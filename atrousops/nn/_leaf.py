"""Layers as torch.fx sees them."""

from __future__ import annotations

from typing import Any

from torch import nn


def as_leaf(layer: nn.Module, proxy: Any, *args: Any) -> Any:
    """The call of a layer as one node of the graph that torch.fx is tracing: as of torch.nn's layers."""
    return proxy.tracer.create_proxy("call_module", proxy.tracer.path_of_module(layer), (proxy, *args), {})
