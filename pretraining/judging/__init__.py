"""Texts that a model wrote -> what they are like: how likely, and how much of them is copied from its training data."""
