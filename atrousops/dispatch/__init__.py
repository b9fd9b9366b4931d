"""Who may run a call on a device: what was probed of it, and what was proved and measured on it."""
