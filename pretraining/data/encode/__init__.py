"""Documents become token IDs, each in its split, without duplicates."""
