"""GPUs: their state, the links between them, and their speed."""
