"""The metrics of a run: metrics.jsonl, the console, the progress bar, TensorBoard and other trackers."""
