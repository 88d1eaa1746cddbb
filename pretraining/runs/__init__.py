"""What a run leaves behind: its folder, checkpoints and their checksums, record, metrics, report, card and model."""
