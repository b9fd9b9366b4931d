"""What explain reports of functions that are one operator, or several convolutions."""

from __future__ import annotations

from typing import Any

from atrousops.dispatch import backends
from atrousops.dispatch.choice import plan_branches, plan_context
from atrousops.ops.conv_branches import why_apart
from atrousops.surgery.explain_row import Row


def settle_context(row: Row, ours: str, arguments: dict[str, Any]) -> None:
    """context_module runs as one operator, or its layers do."""
    row.kernel = "context_module" if ours == "context_module" else "layers"
    if row.device != "cuda":
        row.reason = "layer by layer: one launch is a GPU's"
        return
    input, weights = arguments["input"], arguments["weights"]
    kernels = tuple([w.shape[-1] for w in weights])
    plan = plan_context(_size(input), tuple(arguments["dilation"]), kernels, input.dtype, not input.is_contiguous())
    asked = ours != "context_module" and backends.forced() is None
    unproved = backends.unproved("context_module", input.device, input.dtype) if asked else ""
    row.reason = f"layer by layer: {unproved}" if unproved else plan.reason


def settle_branches(row: Row, ours: str, arguments: dict[str, Any]) -> None:
    """conv_branches does, or its convolutions; they are counted as one call."""
    input, weights, relu = arguments["input"], arguments["weights"], arguments["relu"]
    (padding, dilation), others = arguments["around"], arguments["others"]
    beside = sum([t.shape[-3] for t in others])
    layout = not input.is_contiguous()
    shapes = [tuple(w.shape) for w in weights]
    row.plan = plan_branches(_size(input), shapes, padding, dilation, row.dtype, layout, relu, beside, row.device)
    row.bytes = row.plan.bytes_floor
    row.kernel = "conv_branches" if ours == "conv_branches" else "branches"
    if row.kernel == "branches":
        row.reason = f"branch by branch: {why_apart(input, weights, padding, dilation, relu, others)}"
    else:
        forced = f"one operator: forced by backend({backends.forced()!r})"
        row.reason = row.plan.reason if row.plan.kernel == "conv_branches" else forced


def _size(input: Any) -> tuple[int, int, int, int]:
    n, c, h, w = input.shape if input.dim() == 4 else (1, *input.shape)
    return n, c, h, w
