"""Connections between machines: only who knows the token gets in, and the port is closed after that."""

import socket
import threading
import time
from collections.abc import Collection

import pytest

from pretraining.system.launchers import LOOPBACK
from pretraining.system.machines.network import listen
from pretraining.training.stopping import link_sockets
from pretraining.training.stopping.link_sockets import ANSWER_SECONDS, TOKEN_BYTES, accept, connect

TOKEN = b"t" * TOKEN_BYTES


class Accepting:
    """`accept` in a thread."""

    def __init__(self, ranks: Collection[int], *, seconds: float) -> None:
        listener = listen()
        self.port = listener.getsockname()[1]
        self._found: list[dict[int, socket.socket]] = []
        self._thread = threading.Thread(
            target=lambda: self._found.append(accept(listener, TOKEN, ranks, seconds=seconds))
        )
        self._thread.start()

    def connect(self, token: bytes, rank: int) -> socket.socket:
        return connect(LOOPBACK, self.port, token, rank, seconds=10)

    def links(self) -> dict[int, socket.socket]:
        self._thread.join()
        return self._found[0]


def test_each_rank_is_connected_and_the_port_is_closed() -> None:
    accepting = Accepting([2, 7], seconds=60)
    others = {rank: accepting.connect(TOKEN, rank) for rank in (7, 2)}
    links = accepting.links()
    assert links.keys() == {2, 7}
    for rank, link in links.items():
        link.sendall(f"to {rank}".encode())
        assert others[rank].recv(100) == f"to {rank}".encode()
    with pytest.raises(ConnectionRefusedError):
        accepting.connect(TOKEN, 2)


def test_a_stranger_does_not_get_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither with another token, nor as a rank that is not expected, nor silent."""
    monkeypatch.setattr(link_sockets, "HANDSHAKE_SECONDS", 0.2)
    accepting = Accepting([1], seconds=60)
    strangers = [accepting.connect(b"x" * TOKEN_BYTES, 1), accepting.connect(TOKEN, 5)]
    strangers.append(socket.create_connection((LOOPBACK, accepting.port)))
    for stranger in strangers:
        stranger.settimeout(60)
        assert stranger.recv(1) == b""
    own = accepting.connect(TOKEN, 1)
    links = accepting.links()
    assert links.keys() == {1}
    assert links[1].getpeername()[1] == own.getsockname()[1]


def test_who_does_not_come_is_missing() -> None:
    started_at = time.monotonic()
    assert Accepting([1], seconds=0.2).links() == {}
    assert time.monotonic() - started_at > 0.2


def test_the_kernel_watches_the_connection() -> None:
    accepting = Accepting([1], seconds=60)
    ends = [accepting.connect(TOKEN, 1), *accepting.links().values()]
    for end in ends:
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * ANSWER_SECONDS
