"""From text to token blocks: input < encode < store < build, with tokenize, inspect and hub.

The package owns the block store, from the first byte of a source to manifest.json. It imports no torch, so that
preprocess.py starts at once.
"""
