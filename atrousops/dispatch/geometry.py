"""Problem geometry, phases, tap lists and live regions: the data that csrc/core computes, seen from Python.

Every dense operator is the same sum over taps, y[n, P(o), k] = sum_t sum_c x[n, Q(o) + delta_t, c] w[t, k, c], with
P(o) = p0 + p * o and Q(o) = q0 + q * o on each of three spatial axes (D, H, W; unused ones have size 1).
The functions here give the same results as the C++ ones (tests check this). The reference and Triton's launchers use
them, because they also run without compiled code and under torch.compile.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, NoReturn

from atrousops.common.checks import bad_value

KINDS = ("forward", "input_grad", "weight_grad")
_MOST = 2**63 - 1
_FEW = 64
_OPS = {"forward": "convolution", "input_grad": "input gradient", "weight_grad": "weight gradient"}


class Axis(NamedTuple):
    """One spatial axis of a convolution, which maps `input` positions to `output` positions."""

    input: int = 1
    output: int = 1
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    pad_lo: int = 0
    pad_hi: int = 0


class AxisTap(NamedTuple):
    """One kernel coordinate `r`; it reads inside the tensor exactly for begin <= o < end, otherwise padding."""

    r: int
    delta: int
    begin: int
    end: int


class AxisSegment(NamedTuple):
    """A maximal run of positions in which the live taps are the same: taps[tap_begin:tap_end]."""

    begin: int
    end: int
    tap_begin: int
    tap_end: int


class AxisPhase(NamedTuple):
    """Lattice on one axis: o in [0, count) writes p0 + p o and reads q0 + q o + delta, inside if in [0, bound)."""

    p0: int
    p: int
    q0: int
    q: int
    count: int  # type: ignore[assignment]  # shadows tuple.count, which a phase has no use for
    bound: int
    taps: tuple[AxisTap, ...]
    segments: tuple[AxisSegment, ...]


class Region(NamedTuple):
    """A box of positions of one phase with constant live taps, given as a range of each axis' tap list."""

    phase: int
    begin: tuple[int, int, int]
    end: tuple[int, int, int]
    tap_begin: tuple[int, int, int]
    tap_end: tuple[int, int, int]

    @property
    def positions(self) -> int:
        return product(e - b for b, e in zip(self.begin, self.end))

    @property
    def taps(self) -> int:
        return product(e - b for b, e in zip(self.tap_begin, self.tap_end))


Phase = tuple[AxisPhase, AxisPhase, AxisPhase]


@dataclass(frozen=True)
class Problem:
    """A convolution, one of its gradients, or a transposed convolution; build it with `convolution` or `transposed`.

    forward reads x (N, C, input) and writes y (N, K, output); input_grad, which is also the transposed convolution,
    reads (N, K, output) and writes (N, C, input); weight_grad reads both and writes (K, C / groups, kernel).
    """

    kind: str
    n: int
    c: int
    k: int
    groups: int
    axes: tuple[Axis, Axis, Axis]

    @property
    def input_elements(self) -> int:
        return self.n * self.c * product(a.input for a in self.axes)

    @property
    def output_elements(self) -> int:
        return self.n * self.k * product(a.output for a in self.axes)

    @property
    def weight_elements(self) -> int:
        return self.k * (self.c // self.groups) * product(a.kernel for a in self.axes)

    @property
    def dense_flops(self) -> float:
        """Two per multiply-add, including dead taps; the same for all three kinds."""
        flops = 2.0 * self.n * self.k * (self.c // self.groups)
        for a in self.axes:
            flops *= float(a.output) * a.kernel
        return flops

    def as_kind(self, kind: str) -> Problem:
        """The same geometry as another of KINDS."""
        return replace(self, kind=kind)


def convolution(
    n: int,
    c: int,
    k: int,
    input: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    pad_lo: Sequence[int],
    pad_hi: Sequence[int],
    groups: int = 1,
    kind: str = "forward",
    output: Sequence[int] = (),
) -> Problem:
    """A checked Problem from a convolution's arguments, one entry per spatial axis (1 to 3 of them).

    output = floor((input + pad_lo + pad_hi - dilation (kernel - 1) - 1) / stride) + 1, unless a smaller one is given.

    Raises:
        ArgumentError: an invalid argument; the message names it and a remedy.
    """
    if kind not in KINDS:
        bad_value("convolution", "kind", f"be one of {', '.join(KINDS)}", repr(kind))
    op = _OPS[kind]
    _check_channels(op, n, c, k, groups)
    _check_spatial(op, input, kernel, stride, dilation, pad_lo, pad_hi)
    if len(output):
        _check_all(op, "output size", output, len(input), 1)
    axes = []
    for i, (size, r, s, d, lo, hi) in enumerate(zip(input, kernel, stride, dilation, pad_lo, pad_hi)):
        extent = d * (r - 1) + 1
        if extent > _MOST or size + lo + hi > _MOST:
            bad_value(op, "dilation", "keep the dilated kernel below 2^63 positions", _text(dilation))
        if extent > size + lo + hi:
            remedy = "Lower the dilation or add padding."
            bad_value(op, "kernel_size", f"fit, dilated, into the padded input, {size + lo + hi}", extent, remedy)
        natural = (size + lo + hi - extent) // s + 1
        if len(output) and output[i] > natural:
            bad_value(op, "output size", f"be at most {natural} on spatial axis {i}", output[i])
        axes.append(Axis(size, output[i] if len(output) else natural, r, s, d, lo, hi))
    return _checked_counts(op, kind, n, c, k, groups, axes)


def transposed(
    n: int,
    k: int,
    c: int,
    input: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    pad_lo: Sequence[int],
    pad_hi: Sequence[int],
    output_padding: Sequence[int],
    groups: int = 1,
) -> Problem:
    """A checked input_grad Problem from a transposed convolution's arguments: (N, K, input) -> (N, C, ...).

    size = (input - 1) stride + dilation (kernel - 1) + 1 - pad_lo - pad_hi + output_padding

    Raises:
        ArgumentError: an invalid argument; the message names it and a remedy.
    """
    op = "transposed convolution"
    _check_channels(op, n, c, k, groups)
    _check_spatial(op, input, kernel, stride, dilation, pad_lo, pad_hi)
    _check_all(op, "input size", input, len(input), 1)
    _check_all(op, "output_padding", output_padding, len(input), 0)
    axes = []
    for size, r, s, d, lo, hi, extra in zip(input, kernel, stride, dilation, pad_lo, pad_hi, output_padding):
        if extra >= max(s, d):
            bad_value(op, "output_padding", "be smaller than stride or dilation", _text(output_padding))
        out = (size - 1) * s + d * (r - 1) + 1 + extra - lo - hi
        if out > _MOST:
            _too_large(op)
        if out < 1:
            bad_value(op, "padding", "leave an output of at least 1 on every axis", out, "Lower the padding.")
        axes.append(Axis(out, size, r, s, d, lo, hi))
    return _checked_counts(op, "input_grad", n, c, k, groups, axes)


def axis_phases(kind: str, axis: Axis) -> tuple[AxisPhase, ...]:
    """The phases of one axis: one, except for input_grad, which has one per residue of the position mod stride."""
    shifts = [axis.dilation * r - axis.pad_lo for r in range(axis.kernel)]
    if kind != "input_grad":
        lattice = (0, 1, 0, axis.stride, axis.output, axis.input)
        return (_axis_phase(lattice, list(enumerate(shifts))),)
    s = axis.stride
    all = []
    for residue in range(min(s, axis.input)):
        lattice = (residue, s, 0, 1, -((residue - axis.input) // s), axis.output)
        on_it = [(r, (residue - shift) // s) for r, shift in enumerate(shifts) if (shift - residue) % s == 0]
        all.append(_axis_phase(lattice, on_it))
    return tuple(all)


def phases(problem: Problem) -> list[Phase]:
    """All phases of a problem, the last axis running fastest."""
    d, h, w = (axis_phases(problem.kind, a) for a in problem.axes)
    return list(itertools.product(d, h, w))


def regions(problem: Problem) -> list[Region]:
    """All live regions, phase by phase in row-major order, including regions without taps (their result is zero)."""
    all = []
    for index, (d, h, w) in enumerate(phases(problem)):
        for segments in itertools.product(d.segments, h.segments, w.segments):
            all.append(Region(index, *zip(*segments)))
    return all


def live_share(problem: Problem) -> float:
    """Live (output, tap) pairs divided by all pairs."""
    share = 1.0
    for axis in problem.axes:
        taps = [tap for phase in axis_phases(problem.kind, axis) for tap in phase.taps]
        share *= sum([tap.end - tap.begin for tap in taps]) / (float(axis.output) * axis.kernel)
    return share


def few_channels(problem: Problem) -> bool:
    """Whether groups have too few channels for a GEMM, so that Triton's loop runs; as in csrc/core/plan_triton.cpp."""
    p = problem
    return p.groups > 1 and (p.c // p.groups) * (p.k // p.groups) <= _FEW


def _axis_phase(lattice: tuple[int, int, int, int, int, int], taps: list[tuple[int, int]]) -> AxisPhase:
    _, _, q0, q, count, bound = lattice
    live = []
    for r, delta in sorted(taps, key=_delta_of):
        begin = min(max(-((q0 + delta) // q), 0), count)
        end = min(max(-((q0 + delta - bound) // q), begin), count)
        live.append(AxisTap(r, delta, begin, end))
    return AxisPhase(*lattice, tuple(live), _segments(live, count))


def _delta_of(tap: tuple[int, int]) -> int:
    return tap[1]


def _segments(taps: list[AxisTap], count: int) -> tuple[AxisSegment, ...]:
    # Deltas ascend, so `begin` and `end` of the taps never increase: live taps are a range that slides along the list.
    cuts = sorted({0, count, *(x for tap in taps if tap.begin < tap.end for x in (tap.begin, tap.end))})
    first = last = len(taps)
    segments = []
    for begin, end in itertools.pairwise(cuts):
        while first > 0 and taps[first - 1].begin <= begin:
            first -= 1
        while last > 0 and taps[last - 1].end <= begin:
            last -= 1
        live = (first, last) if first < last else (0, 0)
        segments.append(AxisSegment(begin, end, *live))
    return tuple(segments)


def _check_channels(op: str, n: int, c: int, k: int, groups: int) -> None:
    if n < 0:
        bad_value(op, "batch size", "not be negative", n)
    if groups < 1:
        bad_value(op, "groups", "be positive", groups)
    for channels in (c, k):
        if channels < 0 or channels % groups:
            remedy = "Use groups = 1 for any number."
            bad_value(op, "channels", f"be multiples of groups = {groups}", channels, remedy)


def _check_spatial(op, input, kernel, stride, dilation, pad_lo, pad_hi) -> None:
    rank = len(input)
    if not 1 <= rank <= 3:
        bad_value(op, "input", "have 1 to 3 spatial axes", rank)
    for name, values, least in (
        ("input size", input, 0),
        ("kernel_size", kernel, 1),
        ("stride", stride, 1),
        ("dilation", dilation, 1),
        ("padding", pad_lo, 0),
        ("padding", pad_hi, 0),
    ):
        _check_all(op, name, values, rank, least)


def _check_all(op: str, argument: str, values: Sequence[int], rank: int, least: int) -> None:
    if len(values) != rank:
        bad_value(op, argument, f"have {rank} entries, one per spatial axis", _text(values))
    if any(v < least for v in values):
        bad_value(op, argument, "be positive" if least else "not be negative", _text(values))


def _checked_counts(op: str, kind: str, n: int, c: int, k: int, groups: int, axes: list[Axis]) -> Problem:
    d, h, w = [Axis()] * (3 - len(axes)) + axes
    problem = Problem(kind, n, c, k, groups, (d, h, w))
    reach = max(a.stride * a.output + a.dilation * a.kernel + a.pad_lo for a in axes)
    if max(problem.input_elements, problem.output_elements, problem.weight_elements, reach) > _MOST:
        _too_large(op)
    return problem


def _too_large(op: str) -> NoReturn:
    remedy = "Use a smaller batch, stride or dilation."
    bad_value(op, "sizes", "keep every tensor below 2^63 elements", "a larger one", remedy)


def _text(values: Sequence[int]) -> str:
    return str(tuple(values))


def product(values: Iterable[int]) -> int:
    """math.prod, in a form that torch.compile can trace with symbolic sizes."""
    result = 1
    for value in values:
        result *= value
    return result
