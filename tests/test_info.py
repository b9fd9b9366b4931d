import json
import os
import subprocess
import sys

import pytest
import torch

import atrousops as ao
from atrousops.dispatch import backends, libraries

needs_library = pytest.mark.skipif(not libraries.has_operators, reason="the CPU library is not built")


def in_new_process(code: str, **environment: str) -> str:
    """What `code` prints in a fresh interpreter."""
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_facts_and_text():
    facts = ao.info()
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["cpu"]["threads"] == torch.get_num_threads()
    assert {part["name"] for part in facts["libraries"]} == {"cpu", "cuda", "triton", "_C"}
    json.dumps(facts)
    text = str(facts)
    assert text.startswith(f"atrousops {ao.__version__}, torch {torch.__version__}")
    for name, devices in facts["operators"].items():
        assert name in text
        assert devices["cpu"]["runs"] == backends.choose(name, torch.device("cpu"), torch.float32)
        # Whatever does not run has a reason, and what runs has none.
        assert devices["cuda"]["runs"] not in devices["cuda"]["why_not"]
        assert {"cuda", "triton"} <= devices["cpu"]["why_not"].keys()


@needs_library
def test_instruction_set_in_use_and_a_light_import():
    facts = ao.info()["cpu"]
    assert facts["isa"] in facts["compiled"]
    code = """if True:
        import sys, torch
        before = set(sys.modules)
        import atrousops
        heavy = {"torchvision", "sympy", "torch._dynamo"} & set(sys.modules) - before
        print(sorted(heavy), atrousops.info()["cpu"]["isa"])"""
    assert in_new_process(code, ATROUSOPS_ISA="plain") == "[] plain"


def test_says_what_is_missing_and_why():
    text = in_new_process("import atrousops; print(atrousops.info())", ATROUSOPS_LIBRARY="none")
    assert "our kernels are missing" in text
    assert "MISSING: switched off by ATROUSOPS_LIBRARY=none" in text
    assert "variable  ATROUSOPS_LIBRARY=none" in text
    assert "cpu: the CPU library is missing: switched off by ATROUSOPS_LIBRARY=none" in text


def test_a_forced_backend_that_cannot_run_is_shown_as_none():
    with ao.backend("cuda"):
        facts = ao.info()
    assert all(devices["cpu"]["runs"] is None for devices in facts["operators"].values())


def test_models_and_engine_are_imported_on_demand():
    code = "import sys, atrousops as ao; print('atrousops.models' in sys.modules, ao.models.__name__)"
    assert in_new_process(code) == "False atrousops.models"
    assert {"models", "engine"} <= set(dir(ao))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ao.nothing
