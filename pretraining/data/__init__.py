"""Text becomes token blocks: input < encode < store < build; tokenize, inspect and hub beside them.

The package owns the block store, from the first byte of a source to manifest.json. It imports no torch, so that
preprocess.py starts at once.
"""
