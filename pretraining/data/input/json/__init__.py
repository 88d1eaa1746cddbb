"""JSON as input: lines by compiled loops, and files that are a list."""
