"""What the hardware can do: its GPUs, the arithmetic a model needs of it, and how much of it is used.

Plain arithmetic and NVML; nothing here imports torch. What is not known, such as the peak of an unlisted GPU, is None
and never a guess.
"""
