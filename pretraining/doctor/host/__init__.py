"""The host: processor, memory, limits, disk, stale processes."""
