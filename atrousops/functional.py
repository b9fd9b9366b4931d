"""The stateless operators, with the signatures of the functions they replace."""

from atrousops.ops import *  # noqa: F403
from atrousops.ops import __all__ as __all__
