"""The command line: flags, recipes, the frame of every program and its one-line errors.

Nothing here imports torch, so `--help` prints at once and a wrong flag is rejected within a second.
"""
