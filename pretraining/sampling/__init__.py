"""Weights become text: find a model in whatever a run left behind, load it, continue prompts."""
