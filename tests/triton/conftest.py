"""These tests need Triton's compiler: without it, or interpreted, they are left out, and the run says so."""

import pytest

from atrousops import _library, _triton

collect_ignore = [] if _library.triton.problem is None and not _triton.interpreted() else ["test_ahead.py", "test_graphs.py"]
