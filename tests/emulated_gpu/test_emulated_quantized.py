"""conv_quantized on a GPU, from the public function down to the PTX: every tile, dtype and layout has its kernels."""

import os
import re

import pytest
import torch
import torch.nn.functional as F
from emulated_cases import launched
from oracle import assert_close

import atrousops as ao
from atrousops.dispatch import backends
from atrousops.nn import FusedConv2d, QuantizedConv2d
from atrousops.ops.conv_quantized import conv_quantized
from atrousops.proof import check, registry
from atrousops.proof.cases import Family

pytestmark = [pytest.mark.gpu, pytest.mark.skipif("ATROUSOPS_EMULATED" not in os.environ, reason="of the emulation")]

INT8, E4M3 = torch.int8, torch.float8_e4m3fn
# A slice of 16 multiprocessors, which 17 tiles fill.
SLICE = "cuda:1"
LARGE, TALL, SMALL = "128, 128, 64, 64, 3, 2", "128, 64, 64, 32, 4, 2", "64, 64, 32, 32, 4, 3"
# The dtype, the tile, channels in and out, the size, and the dtype of inputs.
CASES = {
    "int8, 128 columns": (INT8, LARGE, 64, 256, (20, 30), torch.float16),
    "int8, 64 columns": (INT8, TALL, 64, 128, (20, 30), torch.bfloat16),
    "int8, 64 rows": (INT8, SMALL, 40, 21, (6, 5), torch.float32),
    "float8, 64 columns": (E4M3, "128, 64, 32, 32, 4, 1", 64, 128, (20, 30), torch.float16),
    "float8, 64 rows": (E4M3, SMALL, 40, 21, (6, 5), torch.float32),
    "float8 of bfloat16": (E4M3, SMALL, 64, 24, (6, 5), torch.bfloat16),
}


def whole(*shape: int) -> torch.Tensor:
    return torch.randint(-8, 9, shape).float()


@pytest.mark.parametrize("name", CASES)
def test_a_kernel(name):
    dtype, tile, c, k, size, wide = CASES[name]
    groups = 2 if k % 2 == 0 and k > 100 else 1
    x, w = whole(2 if k < 100 else 1, c, *size).to(wide), whole(k, c // groups, 1, 1)
    bias, scale = torch.randn(k).to(torch.float64 if wide == torch.float32 else wide), torch.rand(k) / 8
    residual = torch.randn(x.shape[0], k, *size).to(wide)

    def finished(kind: torch.dtype) -> torch.Tensor:
        sums = F.conv2d(x.double(), w.double(), None, groups=groups).to(kind) * scale.to(kind).view(-1, 1, 1)
        return (sums + bias.to(kind).view(-1, 1, 1) + residual.to(kind)).relu()

    ours: list[torch.Tensor] = []
    one = torch.ones(())
    tensors = [t.to(SLICE) for t in (x, w.to(dtype), bias, one, scale, residual)]

    def call() -> None:
        *operands, added = tensors
        ours.append(conv_quantized(*operands, groups=groups, residual=added, activation="relu").cpu())

    with ao.backend("cuda"):
        found = launched(call)
    math = "MmaS8" if dtype == INT8 else "MmaE4m3"
    assert any(re.search(rf"conv_mma_kernel<atrousops::cuda::{math}.*MmaTile<{tile}>", k) for k in found), found
    assert ours[0].dtype == wide
    assert_close(ours[0], finished(torch.float64), finished(torch.float32).to(wide))


@pytest.mark.parametrize("wide", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("dtype", "k"), [(INT8, 64), (INT8, 128), (INT8, 256), (E4M3, 64), (E4M3, 128)])
def test_wgmma(dtype, k, wide):
    """Where it can run it comes first; with channels that no 16 bytes hold, to which zeros are added."""
    # So many tiles that the widest are best.
    x, w = whole(1, 123, 40, 52).to(wide), whole(k, 123, 1, 1)
    scale, bias, residual = torch.rand(k) / 64, torch.randn(k).to(wide), torch.randn(1, k, 40, 52).to(wide)

    def finished(kind: torch.dtype) -> torch.Tensor:
        sums = F.conv2d(x.double(), w.double()).to(kind) * scale.to(kind).view(-1, 1, 1)
        return (sums + bias.to(kind).view(-1, 1, 1) + residual.to(kind)).relu()

    ours: list[torch.Tensor] = []
    tensors = [t.to(SLICE) for t in (x, w.to(dtype), bias, torch.ones(()), scale, residual)]

    def call() -> None:
        *operands, added = tensors
        ours.append(conv_quantized(*operands, residual=added, activation="relu").cpu())

    with ao.backend("cuda"):
        found = launched(call)
    of = "signed char" if dtype == INT8 else "c10::Float8_e4m3fn"
    pattern = rf"conv_wgmma_kernel<.*WgmmaInto<.*WgmmaTile<({of}|\w*), 128, {k},"
    assert any(re.search(pattern, kernel) for kernel in found), found
    assert_close(ours[0], finished(torch.float64), finished(torch.float32).to(wide))


@pytest.mark.parametrize("dtype", [INT8, E4M3])
def test_a_layer(dtype):
    """Without a bias and with one; `explain` names the operator, and a graph has the convolution of fp32."""
    for bias in (False, True):
        layer = QuantizedConv2d.of(FusedConv2d(37, 21, 3, padding=2, dilation=2, bias=bias), torch.tensor(0.25), dtype)
        x = whole(1, 37, 9, 8) / 4
        expected = layer(x)
        with ao.backend("cuda"):
            found = layer.to("cuda")(x.cuda())
            (row,) = ao.explain(layer, x.cuda()).rows
            compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)(x.cuda())
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(compiled.cpu(), expected, rtol=1e-5, atol=1e-5)
        assert (row.backend, row.kernel, row.reason) == ("cuda", "conv_quantized", "our kernel")


@pytest.mark.parametrize("dtype", [INT8, E4M3])
def test_it_waits_for_its_verdict(dtype):
    """Without that of `atrousops selfcheck` the convolution of fp32 runs, whose kernel has one of its own."""
    x, w = whole(1, 16, 5, 5).cuda(), whole(8, 16, 3, 3).to(dtype).cuda()
    one, ones = torch.ones((), device="cuda"), torch.ones(8, device="cuda")
    assert "selfcheck" in backends.unproved("conv_quantized", x.device, x.dtype)
    with ao.backend(None):
        assert not any("quant" in name for name in launched(lambda: conv_quantized(x, w, None, one, ones)))
    with ao.backend("cuda"):
        assert any("conv_quantize_kernel" in name for name in launched(lambda: conv_quantized(x, w, None, one, ones)))


def test_its_family_passes():
    """A few cases of what the first GPU is asked."""
    family = registry.families("cuda", "cuda")["conv_quantized"]
    found = check.check(Family(family.cases[1::7]), "cuda", "cuda", lambda case: None, lambda: 100.0)
    assert found.reason == ""
