"""A Hub on this machine: what the real clients ask of huggingface.co, answered or refused as it does.

repositories.py holds what is stored, api.py and files.py answer requests, server.py speaks HTTP and makes the faults
that a test asks for, xet.py reads what the Xet client stored.
"""

from tests.fakes.hub.server import LocalHub, local_hub, running_hub

__all__ = ["LocalHub", "local_hub", "running_hub"]
