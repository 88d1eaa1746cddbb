"""One run of preprocess.py, which can be killed at any time and resumed."""
