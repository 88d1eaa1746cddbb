"""preprocess.py against other programs that make token blocks, and alone as its input grows."""
