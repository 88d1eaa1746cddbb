"""The Trainer of this suite and what it logs."""
