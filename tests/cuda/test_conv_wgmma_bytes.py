"""The convolutions of bytes by TMA and wgmma: int8, whose sums are exact, and float8 e4m3, on small problems."""

import host_cuda
import pytest
import torch
from oracle import assert_close
from shapes import channels_last
from test_conv_mma import Case, ops, stock
from test_conv_wgmma import MIDDLE, MULTICAST, NARROW, WIDE, run

pytestmark = pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))

INT8, E4M3 = torch.int8, torch.float8_e4m3fn
BYTES = (INT8, E4M3)
OUT = (torch.float16, torch.bfloat16)
KERNEL = "conv_wgmma_kernel"

# What is computed, and the box of a tile: positions along each of three axes, and images.
CASES = (
    (Case("one tile, one tap", 1, 128, 64, (8, 8), kernel=1, padding=0), (1, 8, 8, 1)),
    (Case("channels, columns, images and both axes end within a tile", 3, 80, 72, (7, 9)), (1, 4, 7, 2)),
    (Case("all but the centre tap dead", 1, 144, 40, (5, 6), padding=9, dilation=9), (1, 5, 6, 1)),
    (Case("live regions of every kind", 2, 64, 40, (13, 11), padding=4, dilation=4), (1, 5, 4, 2)),
    (Case("a tap between others that is dead everywhere", 2, 64, 40, (2, 9), 5, 3, 3), (1, 2, 3, 2)),
    (Case("stride with dilation", 2, 80, 40, (11, 12), stride=2, padding=3, dilation=3), (1, 3, 6, 2)),
    (Case("one axis", 2, 64, 40, (37,), padding=2, dilation=2), (1, 1, 16, 2)),
    (Case("three axes", 2, 64, 40, (4, 5, 3), padding=2, dilation=2), (2, 3, 3, 2)),
    (Case("a width of one store and a half", 1, 64, 36, (9, 8)), (1, 9, 8, 1)),
)


def numbers(size, dtype: torch.dtype) -> torch.Tensor:
    if dtype == INT8:
        return channels_last(torch.randint(-128, 128, size, dtype=torch.int8))
    return channels_last(torch.randn(size)).to(dtype)


class Call:
    """Operands of a convolution, what may follow its sums, and what is right."""

    def __init__(self, case: Case, dtype: torch.dtype, out: torch.dtype, *, more: bool = True):
        self.case, self.dtype = case, dtype
        self.x = numbers((case.n, case.c, *case.size), dtype)
        self.w = numbers((case.k, case.c, *(case.kernel,) * len(case.size)), dtype)
        self.sums = stock(case, False, self.x.double(), self.w.double(), None)
        # Results of some units.
        self.scale = (0.5 + torch.rand(case.k)) / self.sums.std().float()
        self.bias = torch.randn(case.k) if more else None
        self.residual = channels_last(torch.randn(self.sums.shape).to(out)) if more else None
        self.relu = more
        self.out = channels_last(torch.full(self.sums.shape, torch.nan, dtype=out))

    def right(self, sums: torch.Tensor) -> torch.Tensor:
        """In the type of these sums, step by step."""
        shape = (1, -1, *(1,) * len(self.case.size))
        y = sums * self.scale.to(sums.dtype).view(shape)
        if self.bias is not None:
            y = y + self.bias.to(sums.dtype).view(shape)
        if self.residual is not None:
            y = y + self.residual.to(sums.dtype)
        return y.relu() if self.relu else y

    def check(self):
        if self.dtype == INT8:
            assert torch.equal(self.out, self.right(self.sums.float()).to(self.out.dtype))
            return
        theirs = stock(self.case, False, self.x.float(), self.w.float(), None)
        assert_close(self.out, self.right(self.sums), self.right(theirs).to(self.out.dtype))

    def by_box(self, box=(), tile=NARROW, **forced) -> torch.Tensor:
        run(self.x, [self.w], self.out, self.case, bias=self.bias, scale=self.scale, residual=self.residual,
            relu=self.relu, box=box, tile=tile, **forced)  # fmt: skip
        self.check()
        return self.out

    def as_planned(self, *, transposed: bool = False) -> torch.Tensor:
        case = self.case
        ops().test_conv_wgmma_call(
            self.x, self.w, self.bias, self.scale, self.residual, self.out, case.stride, case.padding, case.dilation,
            transposed, case.groups, self.relu,
        )  # fmt: skip
        self.check()
        return self.out


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize(("case", "box"), CASES, ids=str)
def test_forward(case, box, dtype):
    Call(case, dtype, torch.float16).by_box(box)


@pytest.mark.parametrize("out", OUT)
@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("tile", [WIDE, MIDDLE, NARROW])
def test_every_tile_and_type(tile, dtype, out):
    # Columns beyond one block of them, and a last channel of src beyond a whole box.
    case = Case("", 1, 144, {WIDE: 264, MIDDLE: 136, NARROW: 72}[tile], (6, 5), padding=2, dilation=2)
    for more in (False, True):
        call = Call(case, dtype, out, more=more)
        if (tile, dtype) == (WIDE, E4M3):
            with pytest.raises(RuntimeError, match="no wgmma tile of 256 columns for e4m3"):
                call.by_box((1, 4, 5, 1), tile)
        else:
            call.by_box((1, 4, 5, 1), tile)


@pytest.mark.parametrize("dtype", BYTES)
def test_as_planned(dtype):
    """The tile too: of 264 columns, for which one of 256 would be the best."""
    before = host_cuda.runs(KERNEL)
    for case in (Case("", 2, 80, 264, (9, 10), padding=2, dilation=2), Case("", 2, 64, 40, (33, 5), stride=2)):
        Call(case, dtype, torch.bfloat16).as_planned()
    assert host_cuda.runs(KERNEL) == before + 2


@pytest.mark.parametrize("dtype", BYTES)
def test_tensors_that_lie_otherwise(dtype):
    """Input, weights and result in NCHW; weights that begin at no multiple of 16 bytes."""
    for last in (False, True):
        call = Call(Case("", 2, 64, 40, (9, 10)), dtype, torch.float16)
        if last:
            raw = torch.empty(call.w.numel() + 1, dtype=torch.uint8)[1:]
            moved = raw.view(call.w.movedim(1, -1).shape).movedim(-1, 1)
            moved.copy_(call.w.view(torch.uint8))
            call.w = moved.view(dtype)
            assert call.w.data_ptr() % 16 == 1
        else:
            call.x, call.w, call.out = call.x.contiguous(), call.w.contiguous(), call.out.contiguous()
        call.as_planned()


@pytest.mark.parametrize("dtype", BYTES)
def test_split_sums_and_any_order_of_threads_give_the_same_bits(dtype):
    """Tiles of one to nine taps; what parts of int8's sums are, fp32 holds exactly."""
    case, results = Case("", 2, 144, 72, (9, 10), padding=4, dilation=4), []
    for splits, blocks, seed in ((1, 132, 0), (1, 3, 1), (3, 132, 0), (3, 4, 2)):
        torch.manual_seed(3)
        with host_cuda.order(seed):
            results.append(Call(case, dtype, torch.float16).by_box((1, 5, 6, 2), splits=splits, blocks=blocks))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[2], results[3])
    assert dtype != INT8 or torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", BYTES)
def test_pairs_of_blocks_bring_boxes_for_each_other(dtype):
    case, results = Case("", 2, 144, 72, (9, 10), padding=4, dilation=4), []
    for cluster in (2, 1):
        torch.manual_seed(3)
        before = host_cuda.runs(MULTICAST)
        with host_cuda.largest_cluster(cluster):
            results.append(Call(case, dtype, torch.float16).by_box((1, 5, 6, 2), blocks=4))
        assert (host_cuda.runs(MULTICAST) > before) == (cluster == 2)
    assert torch.equal(*results)


def test_the_largest_sums():
    """Nine taps of 512 times (-128)^2 are 2^26 + 2^23: beyond what fp32 counts one by one, so rounded once."""
    call = Call(Case("", 1, 512, 40, (9, 8)), INT8, torch.bfloat16, more=False)
    call.x.fill_(-128)
    call.w.fill_(-128)
    call.w[0, 0, 0, 0] = -127
    call.sums = stock(call.case, False, call.x.double(), call.w.double(), None)
    assert call.sums.max() == 9 * 512 * 128**2
    call.scale.fill_(2.0**-20)
    call.by_box((1, 8, 8, 1))


def test_long_sums_of_e4m3():
    """Positive ones: of 4608 products tensor cores alone, which keep 14 bits, would lose nearly one in a hundred."""
    call = Call(Case("", 1, 512, 40, (9, 8)), E4M3, torch.float16, more=False)
    call.x, call.w = (channels_last(1 + torch.rand(t.shape)).to(E4M3) for t in (call.x, call.w))
    call.sums = stock(call.case, False, call.x.double(), call.w.double(), None)
    call.scale.fill_(2.0**-8)
    run(call.x, [call.w], call.out, call.case, scale=call.scale, tile=NARROW, box=(1, 9, 7, 1))
    exact = call.right(call.sums)
    # Four products of 14 bits and one rounding.
    assert ((call.out - exact) / exact).abs().max() < 4 * 2.0**-13 + 2.0**-11


# The case, what is changed of a call, and the reason given.
REFUSED = {
    "rows": (Case("", 1, 72, 40, (9, 8)), {}, "TMA takes rows of whole 16 bytes: .* 16 of bytes"),
    "few channels": (Case("", 1, 48, 40, (9, 8)), {}, "too few channels to fill a tile"),
    "transposed": (Case("", 1, 64, 64, (9, 8)), {"transposed": True}, "bytes along the reduction only"),
    "result": (Case("", 1, 64, 40, (9, 8)), {"out": torch.float32}, "summed to 16 bits only"),
    "groups": (Case("", 1, 128, 64, (9, 8), groups=2), {}, "more than one group"),
    "products": (Case("", 1, 1 << 17, 32, (8, 8), 1, padding=0), {}, "so many products of int8 may leave 32 bits"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    case, changed, words = REFUSED[name]
    x, w = (torch.zeros(n, c, *size, dtype=INT8) for n, c, *size in (
        (case.n, case.c, *case.size), (case.k, case.c // case.groups, case.kernel, case.kernel)))  # fmt: skip
    out = torch.empty(case.n, case.k, *case.size, dtype=changed.get("out", torch.float16))
    with pytest.raises(RuntimeError, match=words):
        ops().test_conv_wgmma_call(
            channels_last(x), channels_last(w), None, None, None, channels_last(out), 1, case.padding, 1,
            "transposed" in changed, case.groups, False,
        )  # fmt: skip


def test_refused_elsewhere():
    call = Call(Case("", 1, 64, 40, (9, 8)), INT8, torch.float16)
    with host_cuda.device(*host_cuda.A100), pytest.raises(RuntimeError, match="needs compute capability 9"):
        call.as_planned()
