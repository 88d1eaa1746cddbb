"""Loops in plain typed Python that Numba compiles once per machine: where they are cached, how they are called."""
