"""Comparison of a result with an oracle, and timing of several implementations."""

from atrousops.common.testing import SHORT as SHORT
from atrousops.common.testing import Clock as Clock
from atrousops.common.testing import Comparison as Comparison
from atrousops.common.testing import Outputs as Outputs
from atrousops.common.testing import Ready as Ready
from atrousops.common.testing import Run as Run
from atrousops.common.testing import Timing as Timing
from atrousops.common.testing import clock_of as clock_of
from atrousops.common.testing import compare as compare
from atrousops.common.testing import differs as differs
from atrousops.common.testing import disagreement as disagreement
from atrousops.common.testing import host_seconds as host_seconds
from atrousops.common.testing import interleaved as interleaved
