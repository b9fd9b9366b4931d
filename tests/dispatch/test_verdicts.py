"""A kernel of ours runs unasked on a GPU only with a passing verdict for that GPU, driver, torch and build."""

import json
import logging
import subprocess
import sys

import host_cuda
import pytest
import torch
from test_probe import H100, Properties

import atrousops as ao
import atrousops.functional as A
from atrousops.common.checks import DeviceError
from atrousops.common.conv_arguments import Arguments
from atrousops.dispatch import backends, choice, libraries, triton_library, verdicts
from atrousops.dispatch.planner import CallArguments
from atrousops.dispatch.verdicts import Finding, Rate
from atrousops.ops import _first_call
from atrousops.ops.conv import first_of_gradient

pytestmark = pytest.mark.skipif(libraries.planner is None, reason="the compiled planner is missing")

GPU, HALF = torch.device("cuda", 0), torch.bfloat16
PASSED = Finding(True, "", 3, (Rate("a call", 1e-3, 2e-3),))
WRONG = Finding(False, "error 1.0e-01, bound 2.0e-04")
# Where the planner's prediction for an H100 is ours, wgmma, forward and backward.
FORWARD = CallArguments("forward", (16, 2048, 33, 33), (256, 2048, 3, 3), (1, 1), (18, 18), (18, 18))
CALL = (FORWARD, HALF, True)
WGMMA = {name: PASSED for name in ("forward wgmma", "forward mma", "forward simt")}


def passed(*families, finding=PASSED, backend="cuda", device="cuda:0"):
    choice.forget()
    return verdicts.record(backend, device, dict.fromkeys(families, finding))


def runs(op, device=GPU):
    return backends.choose(op, device, torch.float32)


def test_without_a_file_pytorch_runs_and_one_line_says_so(machine, caplog):
    with caplog.at_level(logging.WARNING, "atrousops"):
        assert [runs(op) for op in ("max_pool", "max_unpool", "roi_align", "roi_pool")] == ["aten"] * 4
        assert not {"cuda", "triton"} & {runs("context_module"), runs("conv_branches")}
        assert choice.chosen(*CALL, device="cuda:0").kernel == "aten"
    assert [record.getMessage() for record in caplog.records] == [
        "atrousops: our cuda kernels have not been checked on NVIDIA H100: run `atrousops selfcheck`; PyTorch's "
        "operators run there until then, and backend('cuda') forces ours"
    ]


def test_each_family_runs_with_its_own_verdict(machine):
    passed("max_pool")
    assert [runs("max_pool"), runs("max_unpool"), runs("context_module")] == ["cuda", "aten", "reference"]
    passed("max_unpool", finding=WRONG)
    assert runs("max_unpool") == "aten"
    assert backends.unproved("max_unpool", GPU, HALF) == (
        "max_unpool failed its check on NVIDIA H100: error 1.0e-01, bound 2.0e-04"
    )
    assert "roi_pool has not been checked on NVIDIA H100: run `atrousops selfcheck`" in backends.unproved(
        "roi_pool", GPU, HALF
    )
    passed("conv_branches", "context_module")
    assert runs("conv_branches") == runs("context_module") == "cuda"


def test_a_convolution_is_held_to_the_verdict_of_its_kernel(machine):
    plan = lambda: choice.plan_call(*CALL, device="cuda:0")  # noqa: E731
    assert choice.predict_call(FORWARD, HALF, True, False, "cuda:0").kernel == "wgmma"
    assert plan().kernel == "aten"
    verdicts.record("cuda", "cuda:0", WGMMA)
    choice.forget()
    assert choice.chosen(*CALL, device="cuda:0").kernel == plan().kernel == "wgmma"
    # Its gradient has kernels of its own.
    gradient = (FORWARD._replace(kind="input_grad"), *CALL[1:])
    assert choice.chosen(*gradient, device="cuda:0").kernel == "aten"
    assert "input_grad wgmma has not been checked" in choice.plan_call(*gradient, device="cuda:0").reason


def test_a_gradient_with_uneven_padding_is_held_to_its_verdict_too(machine):
    """PyTorch would have to pad first, so no plan weighs it against ours."""
    pads = Arguments((1, 1), (17, 17, 18, 18), (18, 18), 1, ())
    with torch._subclasses.FakeTensorMode():
        dy = torch.empty(16, 256, 32, 32, dtype=HALF, device="cuda:0").to(memory_format=torch.channels_last)
        asked = lambda: first_of_gradient("input_grad", FORWARD.input_size, FORWARD.weight_size, pads, dy)  # noqa: E731
        assert asked() is None
        passed(*[name.replace("forward", "input_grad") for name in WGMMA])
        assert asked() == 0
        passed("input_grad simt", finding=WRONG)
        assert asked() is None


STRIDED = (FORWARD._replace(stride=(2, 2)), *CALL[1:])


@pytest.mark.parametrize("finding", [None, WRONG])
@pytest.mark.parametrize("kind", ["forward", "weight_grad"])
def test_copies_that_step_over_elements_have_a_verdict_of_their_own(machine, kind, finding):
    """Without it, or where it failed, the next kernel runs, which has no such copies."""
    call = (STRIDED[0]._replace(kind=kind), *STRIDED[1:])
    assert choice.predict_call(call[0], HALF, True, False, "cuda:0").kernel == "wgmma"
    passed(*[name.replace("forward", kind) for name in WGMMA])
    if finding is not None:
        passed(f"{kind} wgmma_strided", finding=finding)
    why = "failed its check" if finding else "has not been checked"
    plan = choice.plan_call(*call, device="cuda:0")
    assert plan.reason.startswith(f"mma: {kind} wgmma_strided {why} on NVIDIA H100")
    assert plan.seconds < plan.candidates[0].seconds
    assert plan.boxes is None
    # The operators are told to begin with it.
    assert choice.chosen(*call, device="cuda:0") == ("mma", 4)
    # Without tensor cores there is no weight gradient in 16 bits.
    assert [c.kernel for c in choice.proved(*call, "cuda:0")] == ["mma", "simt"][: 1 + (kind == "forward")]
    # Without strides nothing is in the way.
    assert choice.chosen(call[0]._replace(stride=(1, 1)), HALF, True, device="cuda:0") == ("wgmma", 0)
    passed(f"{kind} wgmma_strided")
    assert choice.chosen(*call, device="cuda:0") == ("wgmma", 0)


def test_where_the_next_kernel_would_be_slower_pytorch_runs(machine):
    passed("forward simt")
    passed("forward mma", finding=WRONG)
    assert choice.proved(*STRIDED, "cuda:0") == [("simt", 5)]
    plan = choice.plan_call(*STRIDED, device="cuda:0")
    assert plan.kernel == "aten"
    assert plan.seconds == plan.candidates[0].seconds


def test_gradients_with_strides_are_asked_about_with_their_strides(machine):
    passed(*[name.replace("forward", "weight_grad") for name in WGMMA])
    pads = Arguments((2, 2), (18, 18, 18, 18), (18, 18), 1, ())
    with torch._subclasses.FakeTensorMode():
        dy = torch.empty(16, 256, 17, 17, dtype=HALF, device="cuda:0").to(memory_format=torch.channels_last)
        assert first_of_gradient("weight_grad", FORWARD.input_size, FORWARD.weight_size, pads, dy) == 4


def test_what_takes_a_kernels_place_has_to_be_right_as_well(machine):
    verdicts.record("cuda", "cuda:0", WGMMA | {"forward mma": WRONG})
    plan = choice.plan_call(*CALL, device="cuda:0")
    assert plan.kernel == "aten"
    assert plan.reason == "aten: forward mma failed its check on NVIDIA H100: error 1.0e-01, bound 2.0e-04"
    assert plan.seconds == plan.candidates[0].seconds
    assert dict((c.kernel, c.reason) for c in plan.candidates)["wgmma"] == plan.reason.removeprefix("aten: ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: setattr(m, "release", "590.10, CUDA 13.1"), "driver 580.65.06, CUDA 13.0, now 590.10, CUDA 13.1"),
        (lambda m: setattr(m, "library", "feedfeedfeedfeed"), "library 0123456789abcdef, now feedfeedfeedfeed"),
        (lambda m: setattr(torch, "__version__", "2.14.9"), "torch 2.14.1, now 2.14.9"),
    ],
    ids=["driver", "library", "torch"],
)
def test_a_file_of_another_set_up_is_not_used(machine, monkeypatch, change, said):
    monkeypatch.setattr(torch, "__version__", "2.14.1")
    file = passed("max_pool")
    machine.restarted()
    assert runs("max_pool") == "cuda"
    change(machine)
    machine.restarted()
    assert runs("max_pool") == "aten"
    reason = backends.unproved("max_pool", GPU, HALF)
    assert said in reason
    assert "run `atrousops selfcheck` again" in reason
    # What is found now stands beside it, and neither is lost.
    passed("max_pool", "roi_pool")
    assert runs("max_pool") == "cuda"
    assert len(json.loads(file.read_text())["calls"]) == 3


def test_another_gpu_proves_nothing(machine):
    passed("max_pool")
    machine.gpus = [H100, Properties("NVIDIA L4", 89, 58), H100]
    assert [runs("max_pool", torch.device("cuda", i)) for i in range(3)] == ["cuda", "aten", "cuda"]


def test_a_file_that_is_none_is_said_and_not_used(machine, caplog):
    file = passed("max_pool")
    assert file.name.startswith("nvidia-h100-torch-2.")
    assert file.name.endswith("-selfcheck.json")
    file.write_text('{"format": 1, "calls": [{"family": "max_pool"}]}')
    machine.restarted()
    with caplog.at_level(logging.WARNING, "atrousops"):
        assert runs("max_pool") == "aten"
    assert f"verdicts in {file} are not used" in caplog.text
    assert "run selfcheck again, or remove the file" in caplog.text


def test_plans_none_keeps_verdicts_for_the_process(machine, monkeypatch):
    monkeypatch.setenv("ATROUSOPS_PLANS", "none")
    assert passed("max_pool") is None
    assert runs("max_pool") == "cuda"
    machine.restarted()
    assert runs("max_pool") == "aten"


def test_an_emulated_gpu_leaves_no_file_unless_a_folder_is_named(machine, monkeypatch, tmp_path):
    machine.gpus = [Properties("H100 EMULATED", 90, 132)]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ATROUSOPS_PLANS")
    assert passed("max_pool") is None
    assert runs("max_pool") == "cuda"
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv("ATROUSOPS_PLANS", str(tmp_path / "named"))
    assert passed("max_pool").parent == tmp_path / "named"


def test_forcing_asks_for_no_verdict(machine, monkeypatch):
    monkeypatch.setattr(triton_library, "force", lambda wanted: None)
    for name in ("cuda", "triton"):
        with ao.backend(name):
            assert [runs(op) for op in ("conv", "max_pool", "mean_field", "context_module")] == [name] * 4


def test_no_gpu_stands_in_the_way_of_plans(monkeypatch):
    monkeypatch.setattr(libraries, "cuda", libraries.Part("cuda", "", None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert verdicts.why_not("cuda", "forward wgmma", "cuda") == ""
    assert choice.plan_call(*CALL, device="cuda").kernel == "wgmma"


def test_explain_and_info_show_the_reason(machine):
    assert "have not been checked on NVIDIA H100" in ao.info()["operators"]["max_pool"]["cuda"]["why_not"]["cuda"]
    passed("roi_pool")
    assert ao.info()["operators"]["roi_pool"]["cuda"]["runs"] == "cuda"
    with torch._subclasses.FakeTensorMode():
        x, w = torch.empty(16, 2048, 33, 33, device="cuda", dtype=HALF), torch.empty(256, 2048, 3, 3, device="cuda")
        (row,) = ao.explain(lambda: A.conv2d(x, w.to(HALF), None, 1, 18, 18)).rows
        (pool,) = ao.explain(lambda: A.max_pool2d(x, 3, return_indices=True)).rows
    assert (row.kernel, row.reason) == (
        "aten", "aten: forward wgmma has not been checked on NVIDIA H100: run `atrousops selfcheck`"
    )  # fmt: skip
    assert "max_pool has not been checked on NVIDIA H100" in pool.reason


def test_explain_says_why_a_stack_and_branches_run_one_by_one(machine):
    passed("roi_pool")
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(1, 16, 64, 64, device="cuda", dtype=HALF)
        weights = [torch.empty(16, 16, 3, 3, device="cuda", dtype=HALF)] * 2
        stack = ao.explain(lambda: A.context_module(x, weights, None, (1, 2))).rows[0]
        branches = ao.explain(lambda: A.conv_branches(x, weights, None, (1, 2), (1, 2))).rows[0]
    assert stack.reason == (
        "layer by layer: context_module has not been checked on NVIDIA H100: run `atrousops selfcheck`"
    )
    assert branches.reason == (
        "branch by branch: conv_branches has not been checked on NVIDIA H100: run `atrousops selfcheck`"
    )


@pytest.fixture
def unseen_by_the_compiler(machine, monkeypatch):
    """The compiler asks a GPU for its state where torch says that there is one: only our own questions find it."""
    passed("max_pool")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(verdicts, "there_is", lambda device: True)


def test_compiled_graphs_have_the_answer_as_a_constant(unseen_by_the_compiler):

    @torch.compile(fullgraph=True, backend="eager")
    def answers(x):
        right = [verdicts.why_not("cuda", name, "cuda:0") == "" for name in ("max_pool", "max_unpool")]
        return x + (1 if right[0] else 0) + (10 if right[1] else 0)

    assert answers(torch.zeros(())).item() == 1


class FirstCall:
    """What a first call on the pretended GPU looks at, without a GPU."""

    def __init__(self, monkeypatch):
        self.problem, self.looks = "", []
        monkeypatch.setattr(_first_call, "look", lambda *asked: self.looks.append(asked) or self.problem)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def own(self, op="permutohedral"):
        return _first_call.own(op, GPU, torch.float32)


@pytest.fixture
def first(machine, monkeypatch):
    return FirstCall(monkeypatch)


def test_what_only_we_compute_is_looked_at_once_and_runs(first):
    assert all(first.own() for _ in range(3))
    assert first.own("mean_field")
    assert first.looks == [("permutohedral", "cuda:0"), ("mean_field", "cuda:0")]


def test_wrong_values_raise_and_name_the_remedy(first):
    first.problem = "error 1.0e-01, bound 2.0e-04, PyTorch's own error 1.0e-04"
    for _ in range(2):
        with pytest.raises(DeviceError, match="permutohedral: our cuda kernels are wrong on NVIDIA H100") as raised:
            first.own()
    assert 'atrousops.backend("reference")' in str(raised.value)
    assert len(first.looks) == 1
    # Whoever insists may.
    with ao.backend("cuda"):
        assert first.own()


def test_a_new_verdict_counts_for_more_than_what_was_seen(first):
    first.problem = "error 1.0e-01"
    with pytest.raises(DeviceError):
        first.own()
    passed("permutohedral")
    assert first.own()


def test_a_verdict_on_file_is_enough(first):
    passed("permutohedral")
    passed("mean_field", finding=WRONG)
    assert first.own()
    with pytest.raises(DeviceError, match=r"error 1\.0e-01"):
        first.own("mean_field")
    assert not first.looks


def test_nothing_is_looked_at_while_a_graph_is_captured_or_traced(first, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert first.own()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with torch._subclasses.FakeTensorMode():
        assert first.own()
    torch.func.vmap(lambda x: first.own() and x)(torch.zeros(2))
    assert not first.looks
    assert first.own()
    assert len(first.looks) == 1


def test_a_compiled_call_is_looked_at_when_it_is_traced(first, unseen_by_the_compiler):
    compiled = torch.compile(lambda x: x + first_call_answer(), fullgraph=True, backend="eager")
    assert compiled(torch.zeros(())).item() == 1
    assert first.looks == [("permutohedral", "cuda:0")]
    first.problem = "error 1.0e-01"
    choice.forget()
    torch.compiler.reset()
    with pytest.raises(Exception, match=r'wrong on NVIDIA H100 .*error 1\.0e-01.*backend\("reference"\)'):
        compiled(torch.zeros(()))


def first_call_answer() -> int:
    return 1 if _first_call.insist("cuda", "permutohedral", "cuda:0") else 0


@pytest.mark.parametrize("op", ["permutohedral", "mean_field"])
def test_the_look_sees_right_and_wrong_values_and_is_seen_by_nobody(op, monkeypatch):
    state = torch.get_rng_state()
    with torch.device("meta"), torch.autocast("cpu"):
        assert ao.explain(lambda: _first_call.look(op, "cpu")).rows == []
        assert _first_call.look(op, "cpu") == ""
    assert torch.equal(torch.get_rng_state(), state)
    step = {"permutohedral": "_filter", "mean_field": "_field"}[op]
    right = getattr(_first_call, step)
    monkeypatch.setattr(_first_call, step, lambda *args: right(*args) * (1 + 1e-4))
    assert _first_call.look(op, "cpu").startswith("error ")


@pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))
@pytest.mark.parametrize("op", ["permutohedral", "mean_field"])
def test_the_cuda_kernels_pass_the_look(op):
    with host_cuda.host_cuda():
        assert _first_call.look(op, "cpu") == ""


def test_a_process_without_a_gpu_reads_nothing(tmp_path):
    code = (
        "import torch, atrousops as ao\n"
        "from atrousops.dispatch import verdicts\n"
        "ao.DenseCRF(iterations=1)(torch.randn(1, 3, 8, 9), torch.rand(1, 3, 8, 9) * 255)\n"
        "ao.functional.max_pool2d(torch.randn(1, 3, 64, 64), 2)\n"
        "assert not verdicts._answers and not verdicts._verdicts._known and not verdicts._said\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
