"""Weights become text: find a model in what a run saved, load it, and complete prompts."""
