"""Downstream tasks: read them from files, encode their texts, and score them with a model, also during training."""
