"""Save in the background, load, reshard to another number of processes."""
