"""The process group, small collectives, and DeepSpeed's internals."""
