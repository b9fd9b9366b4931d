"""Every operator stands in every place of CONTRIBUTING.md's list."""

import re
from pathlib import Path

import pytest
import samples
import torch
from every_operator import WITHOUT_GRADIENT, prepared

import atrousops.functional as A
from atrousops import reference
from atrousops.dispatch import libraries

ROOT = Path(__file__).resolve().parents[2]
OPERATORS = sorted(p.stem for p in (ROOT / "atrousops" / "ops").glob("[!_]*.py"))


def operator_of(schema: str) -> str:
    """The longest operator name that the schema's name is, or begins with."""
    named = [op for op in OPERATORS if schema == op or schema.startswith(op + "_")]
    return max(named, key=len, default="")


def related(op: str, stem: str) -> bool:
    return op == stem or op.startswith(stem + "_") or stem.startswith(op + "_")


def places() -> list[str]:
    """The paths in the numbered list of CONTRIBUTING.md, with <op> in them."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.split("## Adding an operator")[1].split("\n## ")[0]
    steps = re.findall(r"(?m)^\d\..*(?:\n {3}.*)*", section)
    return [re.search(r"`([^`]+)`", step)[1] for step in steps]


def test_the_list_is_the_one_held_here():
    assert places() == [
        "atrousops/dispatch/schemas.inc",
        "csrc/cpu/<op>.cpp",
        "csrc/cuda/<op>.cu",
        "atrousops/ops/<op>.py",
        "atrousops/triton/<op>.py",
        "atrousops/reference/<op>.py",
        "tests/test_<op>.py",
    ]


@pytest.mark.parametrize("schema", libraries.OPERATORS)
def test_every_schema_is_complete(schema):
    op = operator_of(schema)
    assert op, f"{schema}: no file in atrousops/ops bears its name"
    # A variant such as conv_transpose may share a C++ file, and a large operator may have several.
    for place in ("csrc/cpu/*.cpp", "csrc/cuda/*.cu"):
        sources = [p for p in ROOT.glob(place) if related(op, p.stem)]
        assert any(f'implement<"{schema}",' in p.read_text() for p in sources), f"{op}: not registered in {place}"
    for place in ("atrousops/ops", "atrousops/triton", "atrousops/reference"):
        assert (ROOT / place / f"{op}.py").exists()
    assert f"\ndef {schema}(" in (ROOT / "atrousops" / "triton" / f"{op}.py").read_text()
    called = re.compile(rf"(atrousops|ops)\.{schema}\b")
    tests = [p.read_text() for other in OPERATORS if (p := ROOT / "tests" / f"test_{other}.py").exists()]
    assert any("opcheck" in text and called.search(text) for text in tests), f"no tests/test_<op>.py opchecks {schema}"


@pytest.mark.skipif(not libraries.has_operators, reason="the CPU library is not built")
@pytest.mark.parametrize("schema", libraries.OPERATORS)
def test_every_schema_has_a_kernel_and_a_fake(schema):
    name = f"atrousops::{schema}"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
    entry = torch._library.simple_registry.singleton.find(name)
    assert entry.fake_impl.kernel is not None or torch._C._dispatch_has_kernel_for_dispatch_key(name, "Meta")


@pytest.mark.parametrize("name", sorted(A.__all__))
def test_every_function_has_a_sample_and_a_docstring(name):
    function = getattr(A, name)
    assert function.__doc__
    if not isinstance(function, type):
        assert name in samples.FUNCTIONS, f"tests/samples.py has no sample of {name}"


def test_reference_exports_every_module():
    modules = {p.stem for p in (ROOT / "atrousops" / "reference").glob("[!_]*.py")}
    assert modules >= set(OPERATORS)
    assert all(callable(getattr(reference, name)) for name in reference.__all__)


@pytest.mark.parametrize("name", sorted(set(A.__all__) & set(samples.FUNCTIONS)))
def test_inputs_are_never_modified(name):
    args, kwargs = samples.FUNCTIONS[name]()
    inputs = samples.tensors([args, *kwargs.values()])
    before = [t.clone() for t in inputs]
    samples.tensors(getattr(A, name)(*args, **kwargs))
    assert inputs
    assert all(torch.equal(a, b) for a, b in zip(inputs, before))


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
# mean_field keeps its result for the backward pass, as softmax does.
@pytest.mark.parametrize("name", sorted(set(samples.FUNCTIONS) - {*WITHOUT_GRADIENT, "mean_field"}))
def test_results_can_be_changed_in_place(name, channels_last, backend):
    """As an in-place ReLU behind a layer does; autograd forbids it where an operator returns a view."""
    call = prepared((name, samples.FUNCTIONS[name]), torch.float32, channels_last)
    outputs = [torch.relu_(y) for y in call.outputs() if y.requires_grad]
    assert outputs
    gradients = torch.autograd.grad(outputs, call.leaves, [torch.ones_like(y) for y in outputs], allow_unused=True)
    assert any(g is not None for g in gradients)
