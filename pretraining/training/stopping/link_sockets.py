"""TCP connections between the machines of a run: who connects proves it by a token, and the kernels check the line."""

import secrets
import socket
import time
from collections.abc import Collection
from contextlib import suppress

ANSWER_SECONDS = 30  # without any answer of the other kernel; shorter interruptions cost nothing
TCP_OPTIONS = {
    socket.TCP_KEEPIDLE: 10,  # seconds of silence before the first probe
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_USER_TIMEOUT: 1000 * ANSWER_SECONDS,  # it decides, whatever the number of probes
}
HANDSHAKE_SECONDS = 5.0
TOKEN_BYTES = 32
RANK_BYTES = 4


def accept(
    listener: socket.socket, token: bytes, ranks: Collection[int], *, seconds: float
) -> dict[int, socket.socket]:
    """Accept one connection of each rank, and close the port; those that do not come in time are missing."""
    links: dict[int, socket.socket] = {}
    deadline = time.monotonic() + seconds
    with listener:
        while len(links) < len(ranks) and (left := deadline - time.monotonic()) > 0:
            listener.settimeout(left)
            with suppress(OSError):
                link, _ = listener.accept()
                rank = _proven_rank(link, token)
                if rank is not None and rank in ranks and rank not in links:
                    links[rank] = keep_alive(link)
                else:
                    link.close()
    return links


def _proven_rank(link: socket.socket, token: bytes) -> int | None:
    """The rank at the other end; None of a stranger."""
    link.settimeout(HANDSHAKE_SECONDS)
    received = b""
    with suppress(OSError):
        while len(received) < TOKEN_BYTES + RANK_BYTES:
            more = link.recv(TOKEN_BYTES + RANK_BYTES - len(received))
            if not more:
                return None
            received += more
    return int.from_bytes(received[TOKEN_BYTES:]) if secrets.compare_digest(received[:TOKEN_BYTES], token) else None


def connect(address: str, port: int, token: bytes, rank: int, *, seconds: float) -> socket.socket:
    """Connect to whoever accepts, as this rank.

    Raises:
        OSError: when that cannot be reached.
    """
    link = socket.create_connection((address, port), timeout=seconds)
    link.sendall(token + rank.to_bytes(RANK_BYTES))
    return keep_alive(link)


def keep_alive(link: socket.socket) -> socket.socket:
    """Have the kernel break the connection when the other one does not answer."""
    link.settimeout(HANDSHAKE_SECONDS)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in TCP_OPTIONS.items():
        link.setsockopt(socket.IPPROTO_TCP, option, value)
    return link
