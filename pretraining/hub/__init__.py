"""Talking to the Hugging Face Hub: retries, repositories, the push queue of a run."""
