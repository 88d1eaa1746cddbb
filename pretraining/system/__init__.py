"""This machine and this process: files that survive a crash, locks, launchers, signals, GPUs, host memory.

Imports no torch, and nothing of this suite but its errors, so that every other package can rely on it.
"""
