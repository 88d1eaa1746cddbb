"""Blocks become batches, in an order that is computed from the seed."""
