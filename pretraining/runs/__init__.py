"""What survives a run: its record, metrics, checkpoints, and the exported model."""
