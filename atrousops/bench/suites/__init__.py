"""The rows, one module for each suite; its docstring's first line is its title, `rows()` gives its rows."""
