"""Documents become token blocks: read, encoded, split, packed, written.

This wing owns the block store from the first byte of a source to manifest.json. It imports no torch, so preprocess.py
starts at once; training meets it only in the block store.
"""
