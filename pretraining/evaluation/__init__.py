"""How good a model and its text are: likelihood of held-out text, statistics, text copied from training data."""
