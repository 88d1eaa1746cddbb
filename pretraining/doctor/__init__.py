"""What could spoil a run, seen before its first hour: installation, host, disk, Hub, GPUs, and how fast they are.

A check is a function that yields findings, each with the figure seen and a command that mends it. Each runs in a
process of its own, which is ended when it takes too long; the doctor's own process imports nothing but the standard
library, so that it speaks where nothing is installed yet.
"""
