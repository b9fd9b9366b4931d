"""In place of the package of that name, where it is missing: torch.library.opcheck imports it, for this alone."""

import unittest


class TestCase(unittest.TestCase):
    """A base of PyTorch's own test cases, none of which runs here."""
