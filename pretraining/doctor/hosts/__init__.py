"""Preflight checks of several machines: the hostfile, ssh, the same software everywhere, folders, and the network.

`check` runs here and starts `inspection` on every host through ssh; the two exchange lines of JSON.
"""
