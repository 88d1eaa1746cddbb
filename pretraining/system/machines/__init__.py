"""A run on several machines: their software, what srun sets, the network between, and where their processes meet."""
