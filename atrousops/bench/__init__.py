"""`atrousops bench`: ours against what it replaces, row by row, each result checked before it is timed."""
