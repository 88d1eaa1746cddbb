"""The Trainer of this suite, and its use of private parts of transformers."""
