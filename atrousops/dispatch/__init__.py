"""The choice of the kernel for a call: loaded libraries, backends, properties of the machine, and the plan."""
