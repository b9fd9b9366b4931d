"""Who computes a call: loaded libraries, backends, what is known of the machine, and the plan."""
