"""Addresses and ports of this machine, and the interface by which it reaches another one.

Gloo takes the interface of the machine's own name. On Debian that is often 127.0.1.1, which no other machine reaches.
"""

import ipaddress
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress

GLOO_VARIABLE = "GLOO_SOCKET_IFNAME"
POLL_SECONDS = 0.2
BACKLOG = 1024  # machines that connect at once
CONNECT_SECONDS = 5.0  # of one attempt; a firewall may drop the packets without an answer


def own_addresses() -> list[str]:
    """Addresses of this machine that others may reach, IPv4 first."""
    found = [address for addresses in _addresses().values() for address in addresses]
    return sorted((address for address in found if not is_local(address)), key=lambda address: ":" in address)


def is_local(address: str) -> bool:
    """Whether an address is of the loopback interface, or of one link only."""
    parsed = ipaddress.ip_address(address)
    return parsed.is_loopback or parsed.is_link_local


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has the address; None where none has."""
    return next((name for name, addresses in _addresses().items() if address in addresses), None)


def use_interface(address: str | None) -> None:
    """Have gloo use the interface of an address; a setting of the user's own stays."""
    interface = None if address is None or is_local(address) else interface_of(address)
    if interface is not None:
        os.environ.setdefault(GLOO_VARIABLE, interface)


def own_end(address: str) -> str | None:
    """The address of this machine from which it reaches another one, by address or name; nothing is sent."""
    with suppress(OSError):  # of a name that is not known
        for family, kind, _, _, place in socket.getaddrinfo(address, 1, type=socket.SOCK_DGRAM):
            with suppress(OSError), socket.socket(family, kind) as probe:
                probe.connect(place)
                return str(probe.getsockname()[0])
    return None


def listen() -> socket.socket:
    """Listen on a free port of all interfaces, at addresses of IPv4 and IPv6."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG)
    return socket.create_server(("", 0), backlog=BACKLOG)


def wait_until_listening(addresses: Sequence[str], port: int, *, seconds: float) -> tuple[str, str, str]:
    """Wait until one of the addresses accepts a connection: the address, this end's and the other end's.

    Raises:
        OSError: of the last attempt, when none does in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        for address in addresses:
            try:
                with socket.create_connection((address, port), timeout=CONNECT_SECONDS) as connection:
                    return address, connection.getsockname()[0], connection.getpeername()[0]
            except OSError as error:
                last = error
        if time.monotonic() > deadline:
            raise last
        time.sleep(POLL_SECONDS)


def _addresses() -> dict[str, list[str]]:
    """The addresses of each interface."""
    import psutil  # here: tools.doctor names the machine even if nothing is installed

    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [entry.address.partition("%")[0] for entry in entries if entry.family in families]
        for name, entries in psutil.net_if_addrs().items()
    }
