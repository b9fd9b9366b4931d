"""This process among those that torchrun started, or by itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist


class Processes(NamedTuple):
    """rank: of this process, from 0. world: how many there are."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the value is true in any process."""
        return bool(self.sum(torch.tensor(float(flag), device=device)) > 0) if self.world > 1 else flag

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()


def pick_device(name: str) -> torch.device:
    """ "auto": this process's GPU where there is one, else the CPU."""
    if name != "auto":
        return torch.device(name)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextlib.contextmanager
def join(device: torch.device) -> Iterator[Processes]:
    """The processes of torchrun's environment, over NCCL between GPUs and Gloo between CPUs; one alone without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
