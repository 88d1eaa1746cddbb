"""Token blocks become weights: the story of a run is in run.py, build.py and finish.py.

Imports run downward: distributed, optim, data < model < metrics < checkpoint < config < trainer < callbacks, stopping,
dry_run < build, finish < run.
"""
