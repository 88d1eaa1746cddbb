"""Small commands around the programs, each started as `python3 -m tools.NAME`.

They inspect what is on the disk, export it, or run the programs under supervision. They import the package, which never
imports them.
"""
