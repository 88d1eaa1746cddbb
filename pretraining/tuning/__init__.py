"""Conversations -> a model that answers: an exported model goes on learning, from the answers alone.

This wing turns conversations into a block store that says which tokens are answers; the training itself is that of
pretrain.py.
"""
