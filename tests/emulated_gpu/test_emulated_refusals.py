"""What the emulated runtime refuses, as the manuals say that a device does: each refusal of csrc/fake_cuda, once at
least."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import every_refusal
import pytest
from every_refusal import CASES
from run import ROOT

pytestmark = [pytest.mark.gpu, pytest.mark.skipif("ATROUSOPS_EMULATED" not in os.environ, reason="of the emulation")]

# No call of these tests gets there.
WITHOUT_A_CASE = {"the range of addresses is taken": "something else would have to map memory at that address first"}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[str]]:
    """The error and the reason of each case."""
    library = Path(os.environ["ATROUSOPS_EMULATED"]) / "lib" / "libcudart.so.13"
    # Without what emulates a GPU under torch.
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD" and not k.startswith("ATROUSOPS_")}
    command = [sys.executable, every_refusal.__file__, str(library)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_a_refusal(name, outcomes):
    case = CASES[name]
    error, why = outcomes[name]
    assert error == case.error
    if case.error != "cudaSuccess":
        assert why == case.why


def test_every_refusal_has_a_case():
    """The reasons as the source spells them."""
    text = "".join(path.read_text() for path in sorted((ROOT / "csrc" / "fake_cuda").glob("*.cpp")))
    calls = r"\b(?:fail|fail_for_good|refuse|refuse_in_capture)\(\s*(?:[\w]+,\s*)?" + r'"([^"]+)"'
    written = set(re.findall(calls, text)) | set(re.findall(r'return ("tensor map[^"]+")', text))
    tried = {case.why for case in CASES.values()}
    assert {reason.strip('"') for reason in written} - tried == set(WITHOUT_A_CASE)
