"""Exported models: a standard Hugging Face folder, written from a live run or from a checkpoint."""
