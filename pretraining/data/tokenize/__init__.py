"""Tokenizers: training, loading and converting them, and the fast backends with the same token IDs."""
