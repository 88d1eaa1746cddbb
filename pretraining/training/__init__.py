"""Train a model on token blocks: run.py has the story of a run, build.py its parts, finish.py its end.

Imports run downward: distributed, optim, data < model < metrics < checkpoint < config < trainer < callbacks, stopping,
dry_run < build, finish < run.
"""
