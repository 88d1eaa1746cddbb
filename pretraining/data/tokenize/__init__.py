"""Tokenizers: training, loading, and the fast backends with the same token IDs."""
