"""What measures speed, beside its results. Nothing here is a test, and no program imports it."""
