"""`python -m atrousops`: the command line."""

import sys

from atrousops.cli import main

sys.exit(main())
