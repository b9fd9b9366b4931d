"""The processes started by torchrun, or a single process."""

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

# Processes finish their share of a folder at different times, and the first waits for the last.
LONGEST_WAIT = timedelta(days=30)


class Processes(NamedTuple):
    """rank: of this process, from 0. world: the number of processes."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
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
        """The values of all processes, in the order of their ranks; values must be picklable."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Waits for all processes."""
        if self.world > 1:
            dist.barrier()


def pick_device(name: str, op: str = "config", argument: str = "device") -> torch.device:
    """The device of a name; "auto" is this process's GPU if there is one, else the CPU. `op`, `argument`: for messages.

    Raises:
        ArgumentError: not the name of a device, or a GPU that does not exist.
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
    """The processes of torchrun's environment, over NCCL between GPUs and Gloo between CPUs; without it a single one.

    An existing process group is used and kept.

    longest: timeout for waiting for other processes; by default PyTorch's, some minutes.
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
