"""The arithmetic of a run before it starts: memory, disk, time and cost, and what would make it fit.

Nothing here imports torch. What is not known, such as the peak of an unlisted GPU, is None and never a guess.
"""
