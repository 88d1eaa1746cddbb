"""The model card of a run: its text and the metadata for the Hub."""
