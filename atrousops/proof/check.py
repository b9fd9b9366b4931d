"""One family on one device: every case against PyTorch in fp64 on the CPU, twice for equal bits, and a few timed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from atrousops.common.testing import clock_of, differs, disagreement, interleaved
from atrousops.dispatch import backends
from atrousops.dispatch.devices import is_emulated
from atrousops.dispatch.verdicts import Finding, Rate
from atrousops.proof.cases import Case, Family

# Rounds of a measurement, and seconds after which no more begin.
_ROUNDS, _BUDGET = 9, 0.15
# fp64 rounds by so much less than fp32.
_DOUBLE_OVER_FLOAT = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps


class _Wrong(Exception):
    """What a verdict says of a case."""


def check(
    family: Family, backend: str, device: str, say: Callable[[str], object], left: Callable[[], float]
) -> Finding:
    """What a family is found to be; the first case that is wrong ends it.

    An emulated GPU takes minutes for a call of many blocks, and has no speed: it computes the small calls alone.

    Args:
        family: from `registry.families`.
        backend: whose kernels run, "cuda", "triton" or "cpu".
        device: as str(torch.device).
        say: is told each case before it runs.
        left: seconds until the family's time is over; nothing is timed in the last second.
    """
    on_hardware = torch.device(device).type != "cpu" and not is_emulated(device)
    compared = (*family.cases, *(family.larger if on_hardware else ()))
    rates: list[Rate] = []
    try:
        for done, case in enumerate(compared):
            say(case.what)
            problem = wrong(case, backend, device)
            if problem:
                return Finding(False, f"{case.what}: {problem}", done)
        for case in family.timed if on_hardware else ():
            if left() > 1:
                say(case.what)
                rates.append(rate(case, backend, device))
    except _Wrong as error:
        return Finding(False, str(error), len(compared), tuple(rates))
    return Finding(True, "", len(compared), tuple(rates))


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Inside, uninitialised memory is NaN: an element that no kernel wrote shows."""
    before = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)
        memory.fill_uninitialized_memory = fill


@poisoned()
def wrong(case: Case, backend: str, device: str) -> str:
    """What is wrong with our result, or nothing: values against fp64 on the CPU, and bits against a second run's."""
    make = _maker(case, torch.device("cpu"))
    operands = [t.detach() for t in case.make(make)]
    exact = _list(case.theirs(*[_as(t, torch.float64) for t in operands]))
    known = _known(case, operands, exact)
    placed = [_placed(t, device, case.offset) for t in operands]
    with backends.backend(backend), _counting_as(case):
        once, again = [[t.to("cpu") for t in _list(case.ours(*placed))] for _ in range(2)]
    for i, (ours, true, theirs) in enumerate(zip(once, exact, known, strict=True)):
        where = f"output {i}: " if len(once) > 1 else ""
        problem = disagreement(ours, true, theirs)
        if problem:
            return where + problem
        if not torch.equal(_bits(ours), _bits(again[i])):
            return f"{where}other bits in a second run"
    pairs = enumerate(zip(placed, operands))
    changed = [i for i, (t, kept) in pairs if not torch.equal(_bits(t.to("cpu")), _bits(kept))]
    return f"argument {changed[0]} was changed" if changed else ""


def rate(case: Case, backend: str, device: str) -> Rate:
    """How long a call takes of ours and of PyTorch's operator, in turn, after both have given the same values.

    Their first outputs count: where there are ties, indices and gradients may be those of another element.
    """
    where = torch.device(device)
    operands = [t.detach() for t in case.make(_maker(case, where))]
    with _counting_as(case), backends.backend(backend):
        problem = differs(_list(case.ours(*operands))[0], _list(case.theirs(*operands))[0].double())
        if problem:
            raise _Wrong(f"{case.what}: {problem}")
        runs = (lambda: case.ours(*operands)), (lambda: case.theirs(*operands))
        ours, aten = interleaved(*runs, repeats=_ROUNDS, budget=_BUDGET, clock=clock_of(where), warm_up=False)
    return Rate(case.what, ours.median, aten.median, case.call)


@contextlib.contextmanager
def _counting_as(case: Case) -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=case.tf32):
        yield


def _maker(case: Case, device: torch.device) -> Callable[[tuple[int, ...]], Tensor]:
    generator = torch.Generator(device).manual_seed(0)

    def make(size: tuple[int, ...]) -> Tensor:
        t = torch.randn(size, generator=generator, device=device, dtype=torch.float32)
        # Sums of products of eighths are exact in fp64, in any order.
        t = (8 * t).round() / 8 if case.dtype == torch.float64 else t
        return _in_layout(t.to(case.dtype), case.channels_last)

    return make


def _in_layout(t: Tensor, channels_last: bool) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last and t.dim() > 2 else t


def _as(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype) if t.is_floating_point() else t


def _known(case: Case, operands: Sequence[Tensor], exact: Sequence[Tensor]) -> list[Tensor]:
    """PyTorch's results at the case's dtype, on the CPU: their error is the measure of ours."""
    if case.dtype == torch.float64:
        rough = _worst(case, [_as(t, torch.float32) for t in operands], exact)
        return [t + (r - t) * _DOUBLE_OVER_FLOAT if t.is_floating_point() else t for t, r in zip(exact, rough)]
    if case.tf32:
        # The CPU has no TF32: what rounding the operands does stands for its error.
        return _worst(case, [_tf32(t) for t in operands], exact)
    return _worst(case, operands, exact)


def _worst(case: Case, operands: Sequence[Tensor], exact: Sequence[Tensor]) -> list[Tensor]:
    # oneDNN's error depends on the CPU: where vectors are wide it is a third of that of a plain sum.
    found = [_list(case.theirs(*operands))]
    if operands[0].dtype == torch.float32:
        before = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)
        try:
            found.append(_list(case.theirs(*operands)))
        finally:
            torch._C._set_mkldnn_enabled(before)
    return [max(results, key=partial(_error, exact=true)) for true, *results in zip(exact, *found)]


def _error(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).abs().nan_to_num().max()) if result.is_floating_point() else 0.0


def _tf32(t: Tensor) -> Tensor:
    """Rounded to 10 bits of fraction."""
    if t.dtype != torch.float32:
        return t
    return ((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def _placed(t: Tensor, device: str, offset: int) -> Tensor:
    """A copy on the device with the same strides, so many elements into its memory."""
    memory = torch.empty(t.numel() + offset, dtype=t.dtype, device=device)
    return memory.as_strided(t.size(), t.stride(), offset).copy_(t)


def _bits(t: Tensor) -> Tensor:
    return t.contiguous().flatten().view(torch.uint8)


def _list(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)
