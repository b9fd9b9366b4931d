"""What is done to a model that exists: convert, optimize, autotune, explain."""
