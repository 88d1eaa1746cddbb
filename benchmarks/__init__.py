"""Benchmarks; their results are in docs/benchmarks/. Not tests, and not imported by any program."""
