"""Random calls of bilinear resizing."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fuzz.tensors import DTYPES, LAYOUTS, arranged, eighths
from oracle import run_on

from atrousops.ops import resize_bilinear

SIDES = (1, 2, 3, 5, 8, 17, 40)


@dataclass(frozen=True)
class Resize:
    """Against PyTorch in fp64: what a position's rounding, a few of float and one of the dtype explain."""

    shape: tuple[int, int, int, int]
    size: tuple[int, int]
    align_corners: bool
    dtype: str
    layout: str
    threads: int
    seed: int

    def is_valid(self) -> bool:
        return min(*self.shape, *self.size, self.threads) > 0

    def run(self) -> None:
        torch.manual_seed(self.seed)
        dtype = DTYPES[self.dtype]
        x = eighths(*self.shape).to(dtype)
        given = arranged(x, self.layout)
        with run_on(self.threads):
            ours = resize_bilinear(given, self.size, align_corners=self.align_corners)
        exact = F.interpolate(x.double(), self.size, mode="bilinear", align_corners=self.align_corners)
        wide = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        bound = (4 * max(self.shape[2:]) + 8) * wide + torch.finfo(dtype).eps / 2
        assert ours.dtype == dtype
        assert torch.allclose(ours.double(), exact, rtol=0, atol=bound)


def draw_resize(r: random.Random) -> Resize:
    return Resize(
        (r.randint(1, 3), r.choice((1, 2, 3, 7, 8, 15, 16, 21, 33, 70)), r.choice(SIDES), r.choice(SIDES)),
        (r.choice(SIDES), r.choice((*SIDES, 150))),
        r.random() < 0.5,
        r.choice(tuple(DTYPES)),
        r.choice(LAYOUTS),
        r.choice((1, 1, 2)),
        r.randrange(1 << 16),
    )
