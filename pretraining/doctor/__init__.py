"""Is this machine ready: installation, host, disk, Hub, GPUs, and how fast they are.

A check is a function that yields findings, each with the value found and a command that fixes it. Each runs in its own
process, which is ended when it takes too long; the doctor itself imports only the standard library, so that it works
where nothing is installed yet.
"""
