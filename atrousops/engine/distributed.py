"""This process among those that torchrun started, or by itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from atrousops.common.checks import ArgumentError, bad_value

# Shares of a folder end at different times, and the first to end waits for the last.
LONGEST_WAIT = timedelta(days=30)


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

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks; each must be one that pickle takes."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()


def pick_device(name: str, op: str = "config", argument: str = "device") -> torch.device:
    """ "auto": this process's GPU where there is one, else the CPU; `op` and `argument` stand in messages.

    Raises:
        ArgumentError: no device's name, or a GPU that is not there.
    """
    if name != "auto":
        try:
            device = torch.device(name)
        except RuntimeError as error:
            rule = "be auto, or a device that PyTorch knows, such as cpu, cuda or cuda:1"
            raise ArgumentError(f"{op}: {argument} must {rule}; got {name!r}.") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            bad_value(op, argument, "be cpu or auto, as PyTorch sees no GPU here", name)
        if device.type == "cuda" and (device.index or 0) >= (there := torch.cuda.device_count()):
            bad_value(op, argument, f"be one of the {there} GPUs here, from cuda:0 on", name)
        return device
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextlib.contextmanager
def join(device: torch.device, longest: timedelta | None = None) -> Iterator[Processes]:
    """The processes of torchrun's environment, over NCCL between GPUs and Gloo between CPUs; one alone without it.

    Where they have been joined already, they stay so afterwards.

    longest: how long one waits for the others before that is an error; by default PyTorch's, some minutes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    if dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size())
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=longest)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
