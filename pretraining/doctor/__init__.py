"""Preflight checks of this machine: installation, host, disk, Hub, GPUs, and measured speed.

A check is a function that yields findings, each with the value found and a command that fixes it. Each runs in a
separate process with a time limit. Check modules import only the standard library and this package at the top, and
everything else inside functions, so that the doctor also works where packages are missing or broken.
"""
