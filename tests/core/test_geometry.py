"""Phases, tap lists and live regions against brute force over (output, input, tap) triples, in Python and in C++."""

import itertools
import math
import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from atrousops.dispatch import geometry, libraries
from atrousops.dispatch.geometry import KINDS, Axis, Problem

native = libraries.planner
needs_native = pytest.mark.skipif(native is None, reason="the compiled planner is missing")

# Every 1-D geometry of input 1..9, kernel 1..4, stride 1..3, dilation 1..5 and paddings 0..4 on each side.
GRID_1D = list(itertools.product(range(1, 10), range(1, 5), range(1, 4), range(1, 6), range(5), range(5)))


def axes_1d():
    for size, kernel, stride, dilation, lo, hi in GRID_1D:
        span = size + lo + hi - dilation * (kernel - 1) - 1
        if span >= 0:
            yield Axis(size, span // stride + 1, kernel, stride, dilation, lo, hi)


def live_triples(axis):
    """(output, input, tap) of every product that does not multiply padding."""
    at = [
        (o, o * axis.stride + r * axis.dilation - axis.pad_lo, r)
        for o in range(axis.output)
        for r in range(axis.kernel)
    ]
    return {(o, i, r) for o, i, r in at if 0 <= i < axis.input}


@pytest.mark.parametrize("kind", KINDS)
def test_phases_cover_each_live_pair_once_1d(kind):
    for axis in axes_1d():
        triples, written = [], []
        for phase in geometry.axis_phases(kind, axis):
            at = 0
            for segment in phase.segments:
                assert segment.begin == at < segment.end, axis
                at = segment.end
                for o in range(segment.begin, segment.end):
                    p, q = phase.p0 + phase.p * o, phase.q0 + phase.q * o
                    written.append(p)
                    for tap in phase.taps[segment.tap_begin : segment.tap_end]:
                        pair = (q + tap.delta, p) if kind == "input_grad" else (p, q + tap.delta)
                        triples.append((*pair, tap.r))
            assert at == phase.count, axis
        # Equal as sets and in number: once each, none left out, none that multiplies padding. For the input gradient
        # this is also the statement that the transposed convolution is the adjoint of the convolution.
        assert len(triples) == len(set(triples)), axis
        assert set(triples) == live_triples(axis), axis
        size = axis.input if kind == "input_grad" else axis.output
        assert sorted(written) == list(range(size)), axis


@pytest.mark.parametrize("kind", KINDS)
def test_segments_are_maximal_and_taps_know_their_live_range_1d(kind):
    for axis in axes_1d():
        for phase in geometry.axis_phases(kind, axis):
            live = [[t.begin <= o < t.end for t in phase.taps] for o in range(phase.count)]
            inside = [
                [0 <= phase.q0 + phase.q * o + t.delta < phase.bound for t in phase.taps] for o in range(phase.count)
            ]
            assert live == inside, axis
            for a, b in zip(phase.segments, phase.segments[1:]):
                assert live[a.begin] != live[b.begin], axis
            assert len(phase.segments) <= 2 * max(len(phase.taps), 1) + 1


@needs_native
@pytest.mark.parametrize("kind", KINDS)
def test_native_phases_are_equal_1d(kind):
    for axis in axes_1d():
        assert native.axis_phases(kind, axis) == geometry.axis_phases(kind, axis), axis


def sampled_problems(rank, count):
    """Random small problems of a rank; asymmetric padding, any groups, outputs cut short now and then."""
    rng = random.Random(rank)
    while count:
        one = lambda low, high: [rng.randint(low, high) for _ in range(rank)]  # noqa: E731
        size, kernel, stride, dilation = one(1, 7), one(1, 3), one(1, 3), one(1, 4)
        lo, hi, groups = one(0, 4), one(0, 4), rng.choice((1, 1, 2, 3))
        if any(s + a + b < d * (k - 1) + 1 for s, a, b, d, k in zip(size, lo, hi, dilation, kernel)):
            continue
        c, k = groups * rng.randint(1, 3), groups * rng.randint(1, 3)
        yield geometry.convolution(rng.randint(1, 2), c, k, size, kernel, stride, dilation, lo, hi, groups)
        count -= 1


def region_lists(problem):
    """Per region: written positions, and for each live tap its kernel index and the positions it reads."""
    phases = geometry.phases(problem)
    for region in geometry.regions(problem):
        axes = []
        for i, phase in enumerate(phases[region.phase]):
            o = np.arange(region.begin[i], region.end[i])
            taps = phase.taps[region.tap_begin[i] : region.tap_end[i]]
            axes.append((phase.p0 + phase.p * o, [(t.r, phase.q0 + phase.q * o + t.delta) for t in taps]))
        writes = tuple(a[0] for a in axes)
        yield region, writes, [tuple(zip(*taps)) for taps in itertools.product(*(a[1] for a in axes))]


@pytest.mark.parametrize(("rank", "count"), [(2, 60), (3, 25)])
@pytest.mark.parametrize("kind", KINDS)
def test_regions_cover_each_live_pair_once(kind, rank, count):
    for problem in sampled_problems(rank, count):
        p = problem.as_kind(kind)
        sizes = [[getattr(a, name) for a in p.axes] for name in ("output", "input", "kernel")]
        seen = np.zeros([n for group in sizes for n in group], int)
        written = np.zeros(sizes[1] if kind == "input_grad" else sizes[0], int)
        for region, writes, taps in region_lists(p):
            assert region.positions == math.prod(len(w) for w in writes)
            assert region.taps == len(taps)
            written[np.ix_(*writes)] += 1
            for r, reads in taps:
                for w, q in zip(itertools.product(*writes), itertools.product(*reads)):
                    seen[(*q, *w, *r) if kind == "input_grad" else (*w, *q, *r)] += 1
        assert (written == 1).all()
        expected = np.zeros_like(seen)
        for triples in itertools.product(*(live_triples(a) for a in p.axes)):
            o, i, r = zip(*triples)
            expected[(*o, *i, *r)] = 1
        np.testing.assert_array_equal(seen, expected)


@needs_native
@pytest.mark.parametrize(("rank", "count"), [(1, 100), (2, 60), (3, 25)])
@pytest.mark.parametrize("kind", KINDS)
def test_native_regions_are_equal(kind, rank, count):
    for problem in sampled_problems(rank, count):
        p = problem.as_kind(kind)
        regions = geometry.regions(p)
        assert native.regions(kind, p.axes) == regions
        assert native.live_share(kind, p.axes) == pytest.approx(geometry.live_share(p), rel=1e-14)
        last = len(regions) - 1
        *_, (_, _, taps) = region_lists(p)
        _, k1, k2 = (a.kernel for a in p.axes)
        expected = [(r[0] * k1 + r[1]) * k2 + r[2] for r, _ in taps]
        assert [index for index, *_ in native.region_taps(kind, p.axes, last)] == expected


def run_forward_form(p: Problem, source, weight):
    """y[n, P(o), k] = sum_t sum_c x[n, Q(o) + delta_t, c] w[t, k, c], region by region."""
    back = p.kind == "input_grad"
    channels = p.c if back else p.k
    out = torch.full(
        (p.n, channels, *(a.input if back else a.output for a in p.axes)), float("nan"), dtype=torch.double
    )
    w = weight.reshape(p.groups, p.k // p.groups, p.c // p.groups, *(a.kernel for a in p.axes))
    x = source.reshape(p.n, p.groups, -1, *source.shape[2:])
    for _, writes, taps in region_lists(p):
        total = torch.zeros(p.n, channels, *(len(i) for i in writes), dtype=torch.double)
        for r, reads in taps:
            d, h, v = (torch.as_tensor(q) for q in reads)
            rows = x[:, :, :, d][:, :, :, :, h][:, :, :, :, :, v]
            one = w[..., r[0], r[1], r[2]]
            total += torch.einsum("gkc,ngkdhw->ngcdhw" if back else "gkc,ngcdhw->ngkdhw", one, rows).reshape(
                total.shape
            )
        d, h, v = (torch.as_tensor(q) for q in writes)
        out[:, :, d[:, None, None], h[None, :, None], v[None, None, :]] = total
    return out


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_tap_sums_equal_pytorch(rank):
    """The sums over regions are PyTorch's convolution, its input gradient and its weight gradient."""
    for p in sampled_problems(rank, 12):
        x = torch.randn(p.n, p.c, *(a.input for a in p.axes), dtype=torch.double, requires_grad=True)
        w = torch.randn(p.k, p.c // p.groups, *(a.kernel for a in p.axes), dtype=torch.double, requires_grad=True)
        pads = [n for a in reversed(p.axes) for n in (a.pad_lo, a.pad_hi)]
        stride, dilation = [a.stride for a in p.axes], [a.dilation for a in p.axes]
        y = F.conv3d(F.pad(x, pads), w, None, stride, 0, dilation, p.groups)
        torch.testing.assert_close(run_forward_form(p, x.detach(), w.detach()), y)
        dy = torch.randn_like(y)
        dx, dw = torch.autograd.grad(y, (x, w), dy)
        torch.testing.assert_close(run_forward_form(p.as_kind("input_grad"), dy, w.detach()), dx)
        got = torch.zeros_like(dw)
        by_group = (p.n, p.groups, -1)
        for _, (a, b, c), taps in region_lists(p.as_kind("weight_grad")):
            for r, (d, h, v) in taps:
                grad = dy.reshape(*by_group, *dy.shape[2:])[
                    :, :, :, a[0] : a[-1] + 1, b[0] : b[-1] + 1, c[0] : c[-1] + 1
                ]
                rows = x.detach().reshape(*by_group, *x.shape[2:])[:, :, :, d][:, :, :, :, h][:, :, :, :, :, v]
                got[:, :, r[0], r[1], r[2]] += torch.einsum("ngkdhw,ngcdhw->gkc", grad, rows).reshape(dw.shape[:2])
        torch.testing.assert_close(got, dw)


@pytest.mark.parametrize("case", [(5, 3, 2, 1, 1, 1), (4, 1, 1, 3, 0, 2), (3, 2, 3, 2, 1, 0), (1, 16, 8, 1, 4, 0)])
def test_transposed_equals_pytorch(case):
    """Output padding up to max(stride, dilation) - 1: the second case has more of it than its stride."""
    size, kernel, stride, dilation, pad, extra = case
    args = [[v] for v in (size, kernel, stride, dilation, pad, pad, extra)]
    p = geometry.transposed(2, 3, 4, *args)
    x, w = torch.randn(2, 3, size, dtype=torch.double), torch.randn(3, 4, kernel, dtype=torch.double)
    y = F.conv_transpose1d(x, w, None, stride, pad, extra, 1, dilation)
    got = run_forward_form(p, x[:, :, None, None], w[:, :, None, None])
    torch.testing.assert_close(got.reshape(y.shape), y)
    if native is not None:
        assert native.transposed(2, 3, 4, 1, *args) == [list(a) for a in p.axes]


# Map size, dilation, live share of a 3x3 kernel with "same" padding: the figures that the cost model is built on.
SHARES = [
    (65, 12, 0.77), (65, 24, 0.57), (65, 36, 0.40), (33, 6, 0.77), (33, 12, 0.57), (33, 18, 0.40), (33, 24, 0.27),
    (41, 6, 0.81), (41, 12, 0.65), (41, 18, 0.50), (41, 24, 0.37),
]  # fmt: skip


@pytest.mark.parametrize(("size", "dilation", "share"), SHARES)
def test_live_share_of_same_padding(size, dilation, share):
    two = [dilation] * 2
    p = geometry.convolution(1, 1, 1, [size] * 2, [3, 3], [1, 1], two, two, two)
    assert geometry.live_share(p) == pytest.approx(share, abs=0.0051)
    for kind in KINDS:
        assert geometry.live_share(p.as_kind(kind)) == geometry.live_share(p)
        assert len(geometry.regions(p.as_kind(kind))) == 9
    if native is not None:
        assert native.live_share("forward", p.axes) == pytest.approx(geometry.live_share(p), rel=1e-14)


GOOD = dict(n=2, c=4, k=6, input=[9], kernel=[3], stride=[1], dilation=[1], pad_lo=[1], pad_hi=[1])
# What is changed, and words of the message: the argument, and what came.
REFUSED = [
    ({"n": -1}, "batch size must not be negative; got -1"),
    ({"groups": 0}, "groups must be positive; got 0"),
    ({"groups": 4}, "channels must be multiples of groups = 4; got 6"),
    ({"c": -4}, "channels must be multiples of groups = 1; got -4"),
    ({"stride": [0]}, r"stride must be positive; got \(0,\)"),
    ({"stride": [-2]}, r"stride must be positive; got \(-2,\)"),
    ({"dilation": [0]}, r"dilation must be positive; got \(0,\)"),
    ({"kernel": [0]}, r"kernel_size must be positive; got \(0,\)"),
    ({"pad_lo": [-1]}, r"padding must not be negative; got \(-1,\)"),
    ({"pad_hi": [-1]}, r"padding must not be negative; got \(-1,\)"),
    ({"input": [-1]}, r"input size must not be negative; got \(-1,\)"),
    ({"input": [9, 9]}, r"kernel_size must have 2 entries, one per spatial axis; got \(3,\)"),
    ({"input": []}, "input must have 1 to 3 spatial axes; got 0"),
    ({"dilation": [6]}, "kernel_size must fit, dilated, into the padded input, 11; got 13. Lower the dilation"),
    ({"input": [0], "pad_hi": [0]}, "kernel_size must fit, dilated, into the padded input, 1; got 3"),
    ({"dilation": [2**62]}, "dilation must keep the dilated kernel below 2\\^63 positions"),
    ({"input": [2**62]}, "sizes must keep every tensor below 2\\^63 elements"),
    ({"n": 2**61}, "sizes must keep every tensor below 2\\^63 elements"),
    ({"output": [10]}, "output size must be at most 9 on spatial axis 0; got 10"),
    ({"output": [0]}, r"output size must be positive; got \(0,\)"),
]


ORDER = ("groups", "input", "kernel", "stride", "dilation", "pad_lo", "pad_hi")


def refused(named, ordered, order, arguments, message):
    """In Python and in C++, with the same words."""
    with pytest.raises(ValueError, match=message) as python:
        named(**arguments)
    if native is not None:
        with pytest.raises(ValueError, match=message) as compiled:
            ordered(*(arguments[name] for name in order))
        assert str(python.value) == str(compiled.value)


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refusals_name_argument_rule_and_value(change, message):
    arguments = {**GOOD, "groups": 1, "output": [], **change}
    ordered = native and partial(native.convolution, "forward")
    refused(geometry.convolution, ordered, ("n", "c", "k", *ORDER, "output"), arguments, "convolution: " + message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_padding": [2]}, r"output_padding must be smaller than stride or dilation; got \(2,\)"),
        ({"output_padding": [-1]}, r"output_padding must not be negative; got \(-1,\)"),
        ({"input": [1], "pad_lo": [3], "pad_hi": [3]}, "padding must leave an output of at least 1 .*; got -3. Lower"),
        ({"input": [0]}, r"input size must be positive; got \(0,\)"),
        ({"stride": [2**61]}, "sizes must keep every tensor below"),
    ],
)
def test_transposed_refusals(change, message):
    arguments = {**GOOD, "stride": [2], "output_padding": [0], "groups": 1, **change}
    order = ("n", "k", "c", *ORDER, "output_padding")
    refused(geometry.transposed, native and native.transposed, order, arguments, "transposed convolution: " + message)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be one of forward, input_grad, weight_grad; got 'adjoint'"):
        geometry.convolution(**GOOD, kind="adjoint")
    if native is not None:
        with pytest.raises(ValueError, match="kind must be forward, input_grad or weight_grad; got adjoint"):
            native.axis_phases("adjoint", Axis())


def test_a_stride_beyond_the_input_leaves_no_empty_phase():
    # Stride 5 on an input of 3: residues 3 and 4 write nothing.
    phases = geometry.axis_phases("input_grad", Axis(3, 1, 2, 5, 1))
    assert [(p.p0, p.count, [t.r for t in p.taps]) for p in phases] == [(0, 1, [0]), (1, 1, [1]), (2, 1, [])]
