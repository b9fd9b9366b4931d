"""Runs every case of refused_*.py: python every_refusal.py LIBRARY prints the errors and reasons as JSON."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from refusals import CASES, outcome

for module in sorted(Path(__file__).parent.glob("refused_*.py")):
    importlib.import_module(module.stem)

if __name__ == "__main__":
    print(json.dumps({name: outcome(sys.argv[1], chosen) for name, chosen in CASES.items()}))
