"""Row: what `explain` says of one operator call."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from atrousops.dispatch import planner


@dataclass
class Row:
    """One operator call.

    Attributes:
        module: name of the layer in the model; empty for a function.
        operator: the public function, such as "conv2d".
        shape, dtype, channels_last: of the input.
        backend: which of `atrousops.dispatch.backends.NAMES` ran it.
        kernel: for a convolution one of the planner's.
        reason: why that one.
        bytes: every tensor touched once.
        plan: the planner's whole answer, for convolutions.
        device: for which plans were made, "cpu" or "cuda".
        own: the backend of ours that could run it there, or "".
    """

    module: str
    operator: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool
    backend: str
    kernel: str
    reason: str
    bytes: float = 0.0
    plan: planner.Plan | None = None
    device: str = "cpu"
    own: str = ""

    @property
    def flops(self) -> float:
        """Dense floating-point operations, dead taps counted as done; 0 where there are no taps."""
        return self.plan.dense_flops if self.plan else 0.0

    @property
    def live_share(self) -> float:
        """The part of the taps that does not read padding."""
        return self.plan.live_share if self.plan else 1.0
