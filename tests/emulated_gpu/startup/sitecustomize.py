"""Python runs this at its start where run.py put the folder on its path: child processes are emulated as well."""

import os
import sys
from pathlib import Path

if "ATROUSOPS_EMULATED" in os.environ:
    _tests = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(_tests / "emulated_gpu"), str(_tests / "ptx")]
    import emulation

    emulation.start()
