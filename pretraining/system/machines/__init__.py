"""A run on several machines: what srun sets, the network between them, and where their processes meet."""
