"""One family's check sees what may be wrong with a kernel, on fakes; and the real kernels pass it, run on the CPU."""

import re

import host_cuda
import pytest
import torch
import torch.nn.functional as F

from atrousops.dispatch import libraries, verdicts
from atrousops.proof import check, conv_cases, registry, worker
from atrousops.proof.cases import Case, Family

LEFT = lambda: 100.0  # noqa: E731


@pytest.fixture(autouse=True)
def one_thread():
    """Threads would only wait for each other in calls as small as these."""
    torch.set_num_threads(1)


def pooled(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 3)


def case(ours, dtype=torch.float32) -> Case:
    return Case("avg_pool2d 3", lambda tensor: [tensor((2, 3, 9, 9))], ours, pooled, dtype)


def off_by(error: float):
    return lambda x: pooled(x) * (1 + error)


def unwritten(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(pooled(x))
    out[:, 1:] = pooled(x)[:, 1:]
    return out


class Wavering:
    """Right twice, and with other bits the second time."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return pooled(x) * (1 + (self.calls % 2) * torch.finfo(x.dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_what_is_right_passes(dtype):
    assert check.wrong(case(pooled, dtype), "cpu", "cpu") == ""


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (off_by(1e-4), "^error .*, bound .*, PyTorch's own error"),
        (unwritten, "^NaN in different places$"),
        (lambda x: pooled(x)[:1], "^shape "),
        (lambda x: pooled(x).double(), "^dtype torch.float64, expected torch.float32$"),
        (Wavering(), "^other bits in a second run$"),
    ],
    ids=["values", "unwritten", "shape", "dtype", "bits"],
)
def test_what_is_wrong_is_named(ours, said):
    assert re.search(said, check.wrong(case(ours), "cpu", "cpu"))


def test_a_changed_argument_is_named():
    def clears(x):
        x.zero_()
        return torch.ones(2)

    changed = Case("", lambda tensor: [tensor((2, 3))], clears, lambda x: x.new_ones(2))
    assert check.wrong(changed, "cpu", "cpu") == "argument 0 was changed"


def test_the_first_wrong_case_ends_a_family_and_is_named():
    told = []
    family = Family((case(pooled), case(off_by(0.1))._replace(what="the second"), case(pooled)))
    found = check.check(family, "cpu", "cpu", told.append, LEFT)
    assert not found.ok
    assert found.cases == 1
    assert found.reason.startswith("the second: error ")
    assert told == ["avg_pool2d 3", "the second"]


def test_nothing_is_left_set_behind_a_check():
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.mkldnn.enabled, torch.get_rng_state()
    check.wrong(case(pooled), "cpu", "cpu")
    after = torch.are_deterministic_algorithms_enabled(), torch.backends.mkldnn.enabled, torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def raising(*args):
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported ...")


def test_an_error_is_a_verdict_and_leaves_the_device_in_doubt(monkeypatch):
    families = {"good": Family((case(pooled),)), "bad": Family((case(pooled), case(raising)))}
    monkeypatch.setattr(registry, "families", lambda backend, device: families)
    question = {"backend": "cpu", "seconds": 60.0}
    said = worker.answer("cpu", question | {"family": "bad"}, lambda case: None)
    assert (said["ok"], said["over"]) == (False, True)
    assert said["reason"] == "avg_pool2d 3: RuntimeError: CUDA error: an illegal memory access was encountered"
    assert worker.answer("cpu", question | {"family": "good"}, lambda case: None) == {
        "ok": True, "reason": "", "cases": 1, "rates": []
    }  # fmt: skip


def test_a_backend_that_cannot_run_says_why():
    said = worker.answer("cpu", {"backend": "cuda", "family": ""}, lambda case: None)
    assert not said["ok"]
    assert said["reason"]


@pytest.mark.skipif(libraries.planner is None, reason="the compiled planner is missing")
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_every_kernel_of_the_planner_has_a_family_in_every_direction(backend):
    from atrousops.dispatch import planner

    kinds = ("forward", "input_grad", "weight_grad", "transposed")
    wanted = {f"{kind} {kernel}" for kind in kinds for kernel in planner.kernels(backend) if kernel != "aten"}
    found = registry.families(backend, "cuda")
    assert wanted <= found.keys()
    assert {name for name in wanted if not found[name].timed} == set()
    # A kernel runs only with the verdicts of those that take its place.
    instead = {f"forward {other}" for others in verdicts._INSTEAD.values() for other in others}
    assert backend != "cuda" or instead <= found.keys()


@pytest.mark.skipif(libraries.planner is None, reason="the compiled planner is missing")
def test_copies_that_step_over_elements_are_a_family_apart():
    """From coordinates below 0, in each dtype of wgmma; those that do not are judged without them."""
    found = registry.families("cuda", "cuda")
    for kind, dtypes in (("forward", 3), ("weight_grad", 2)):
        strided = [c.call.arguments for c in found[f"{kind} wgmma_strided"].cases]
        assert {max(a.stride) for a in strided} == {2, 3, 8}
        assert min(*(min(a.padding) for a in strided)) > 0
        assert len({(c.dtype, c.tf32) for c in found[f"{kind} wgmma_strided"].cases}) == dtypes
        assert found[f"{kind} wgmma_strided"].larger
        assert {max(c.call.arguments.stride) for c in found[f"{kind} wgmma_strided"].timed} == {2}
    for name, family in found.items():
        if name in ("forward wgmma", "weight_grad wgmma"):
            assert {max(c.call.arguments.stride) for c in family.cases} == {1}, name
    assert not {"input_grad wgmma_strided", "transposed wgmma_strided"} & found.keys()


def test_every_operator_has_a_family():
    from atrousops.info import operator_names

    found = registry.families("triton", "cuda").keys()
    assert {name for name in operator_names() if not name.startswith("conv")} <= found
    assert {"conv_branches", "conv_epilogue"} <= found


# A family's kernels in csrc/cuda; those of convolutions as tests/cuda/test_planned_kernels.py has them.
KERNELS = {
    "forward wgmma": "conv_wgmma_kernel",
    "forward wgmma_strided": "conv_wgmma_kernel",
    "forward depthwise": "conv_depthwise_kernel",
    "input_grad grouped": "conv_grouped_kernel",
    "input_grad simt": "conv_simt_kernel",
    "weight_grad wgmma": "conv_wgmma_weight_kernel",
    "weight_grad wgmma_strided": "conv_wgmma_weight_kernel",
    "weight_grad mma": "conv_mma_weight_kernel",
    "weight_grad depthwise": "conv_grouped_weight_kernel",
    "max_pool": "max_pool_kernel",
    "max_unpool": "place_windows_kernel",
    "roi_pool": "roi_pool_forward",
    "permutohedral": "lattice_blur",
    "mean_field": "mean_field_step",
}


@pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))
@pytest.mark.skipif(libraries.planner is None, reason="the compiled planner is missing")
@pytest.mark.parametrize("name", KERNELS)
def test_the_cuda_kernels_pass_and_each_family_runs_its_own(name):
    """As on an H100, with the CUDA source executed on the CPU; the others take longer, and hold as well."""
    before = {c.name: c.runs for c in host_cuda.coverage()}
    family = registry.families("cuda", "cuda")[name]
    with host_cuda.host_cuda(), host_cuda.device(*host_cuda.H100):
        found = check.check(family, "cpu", "cpu", lambda case: None, LEFT)
    assert found.reason == ""
    ran = " ".join(c.name for c in host_cuda.coverage() if c.runs > before.get(c.name, 0))
    assert f"::{KERNELS[name]}" in ran


@pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))
def test_the_kernels_of_8_bits_pass(monkeypatch):
    """A few: all take a minute. What the family is called is what its verdict is looked up by."""
    from atrousops.ops import conv_quantized as module

    host_cuda.load()
    monkeypatch.setattr(module, "_kernel", torch.ops.atrousops_host_cuda.conv_quantized.default)
    monkeypatch.setattr(module, "_body", lambda *_: module._by_kernel)
    family = registry.families("cuda", "cuda")["conv_quantized"]
    # Of int8 and of float8, by mma.sync and by wgmma, which takes the case of whole tiles.
    kernels = (
        "conv_mma_kernel<MmaS8",
        "conv_wgmma_kernel<WgmmaInto<WgmmaTile<signed char",
        "conv_mma_kernel<MmaE4m3",
        "conv_wgmma_kernel<WgmmaInto<WgmmaTile<c10::Float8_e4m3fn",
    )
    before = [host_cuda.runs(kernel) for kernel in kernels]
    few = Family(family.cases[1::5])
    assert check.check(few, "cpu", "cpu", lambda case: None, LEFT).reason == ""
    mma, wgmma, *of_float8 = [host_cuda.runs(kernel) - runs for kernel, runs in zip(kernels, before)]
    assert mma + wgmma == 2 * len(few.cases)
    assert of_float8 == [mma, wgmma]
    assert wgmma > 0
    assert mma > 0
    assert "conv_quantized" not in registry.families("triton", "cuda").keys() | registry.families("cpu", "cpu").keys()


@pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))
@pytest.mark.skipif(libraries.planner is None, reason="the compiled planner is missing")
def test_planning_asks_for_the_dtype_it_says():
    shape, _ = conv_cases.SHAPES[0]
    a = shape.arguments("forward")
    asked = {
        (torch.bfloat16, False): "wgmma",
        (torch.float32, False): "mma",
        (torch.float32, True): "wgmma",
        (torch.float64, False): "simt",
    }
    for (dtype, tf32), kernel in asked.items():
        assert conv_cases.planned(a, conv_cases.Numbers(dtype, tf32=tf32), "cuda", "cuda") == kernel
