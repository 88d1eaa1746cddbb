"""Small commands around the programs, each started as `python3 -m tools.NAME`.

They answer questions about what is on the disk, and change nothing. They import the package, which never imports them.
"""
