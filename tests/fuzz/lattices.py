"""Random calls of the permutohedral filter and of mean-field inference, against the reference in fp64."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from fuzz.convolutions import WIDTHS
from fuzz.tensors import DTYPES, arranged
from oracle import run_on
from torch import Tensor

import atrousops as ao
import atrousops.functional as A


@dataclass(frozen=True)
class Lattice:
    """A filter with its gradient, or inference where there are iterations."""

    n: int
    channels: int
    features: int
    size: tuple[int, ...]
    spread: float
    normalize: str
    iterations: int
    full: bool
    dtype: str
    layout: str
    threads: int
    seed: int

    def is_valid(self) -> bool:
        least = (self.n, self.channels, self.features, *self.size, self.threads)
        # A softmax over one label is 1.
        labels = self.iterations == 0 or self.channels > 1
        return min(least) > 0 and self.features <= 7 and self.iterations >= 0 and labels

    def run(self) -> None:
        torch.manual_seed(self.seed)
        dtype = DTYPES[self.dtype]
        x = torch.randn(self.n, self.channels, *self.size, dtype=torch.float64).to(dtype)
        features = (torch.randn(self.n, self.features, *self.size) * self.spread).double()
        dy = torch.randn(x.shape, dtype=torch.float64).to(dtype)
        with run_on(self.threads), ao.backend("cpu"):
            ours = self._with_gradient(arranged(x, self.layout), features, dy)
        with ao.backend("reference"):
            exact = self._with_gradient(x.double(), features, dy.double())
        # The lattice is the same, placed in fp64; what is left are some hundred sums in the compute type.
        eps = torch.finfo(dtype).eps + 64 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        for name, mine, right in zip(("y", "dx"), ours, exact):
            assert mine.dtype == dtype
            bound = eps * 4 * (1 + float(right.abs().amax()))
            error = float((mine.double() - right).abs().amax())
            assert error <= bound, f"{name}: error {error:.3e}, bound {bound:.3e}"

    def _with_gradient(self, x: Tensor, features: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        if self.iterations:
            lattice = A.permutohedral_lattice(features)
            mu = -torch.ones(self.channels, dtype=torch.float64)
            mu = torch.diag(mu) if self.full else mu
            mu = mu.to(torch.promote_types(x.dtype, torch.float32))
            y = A.mean_field(leaf, [lattice], [mu], self.iterations, self.normalize)
        else:
            y = A.permutohedral_filter(leaf, features, self.normalize)
        return y.detach(), torch.autograd.grad(y, leaf, dy)[0]


def draw_lattice(r: random.Random) -> Lattice:
    channels = r.choice(WIDTHS)
    return Lattice(
        r.randint(1, 2),
        channels,
        r.randint(1, 6),
        (r.choice(WIDTHS),) if r.random() < 0.3 else (r.randint(1, 9), r.choice(WIDTHS[:12])),
        r.choice((0.1, 1.0, 10.0)),
        r.choice(("none", "symmetric", "before", "after")),
        r.choice((0, 0, 1, 2)) if channels > 1 else 0,
        r.random() < 0.3,
        r.choice(tuple(DTYPES)),
        r.choice(("contiguous", "channels_last", "strided", "offset")),
        r.choice((1, 1, 2)),
        r.randrange(1 << 16),
    )
