"""Encode documents as token ids, assign splits, remove duplicates."""
