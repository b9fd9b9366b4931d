"""Whether each family of our kernels computes on a device what PyTorch does: cases, a process for them, verdicts."""
