"""Releases written down as tables of layers, and what runs a table on PyTorch's own functions."""
