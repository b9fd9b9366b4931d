"""Helpers for every folder: errors, atomic file writes, formats."""
