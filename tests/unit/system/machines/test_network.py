"""Addresses of this machine, and the interface that gloo takes."""

import os
import socket
import threading
import time

import pytest

from pretraining.system.machines import network
from pretraining.system.machines.network import (
    interface_of,
    is_local,
    listen,
    own_addresses,
    own_end,
    use_interface,
    wait_until_listening,
)


def test_addresses_that_others_do_not_reach() -> None:
    assert [is_local(address) for address in ("127.0.1.1", "::1", "fe80::1", "10.0.0.1")] == [
        *(True, True, True, False)
    ]
    assert not any(map(is_local, own_addresses()))


def test_the_loopback_interface_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_addresses", lambda: {"lo": ["127.0.0.1"], "eth7": ["10.0.0.5", "fd00::5"]})
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that the variable is restored
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    for address in ("127.0.0.1", "10.0.0.6", None):
        use_interface(address)
        assert "GLOO_SOCKET_IFNAME" not in os.environ
    use_interface("10.0.0.5")
    assert os.environ["GLOO_SOCKET_IFNAME"] == interface_of("fd00::5") == "eth7"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    use_interface("10.0.0.5")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0", "the user's"
    assert own_addresses() == ["10.0.0.5", "fd00::5"]


def test_a_listener_that_comes_late_is_found_at_any_of_its_addresses() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        threading.Timer(0.3, listener.listen).start()
        addresses = ["127.0.0.2", "127.0.0.1"]
        assert wait_until_listening(addresses, port, seconds=30) == ("127.0.0.1",) * 3


def test_nobody_listens() -> None:
    started = time.monotonic()
    with pytest.raises(OSError, match="refused"):
        wait_until_listening(["127.0.0.1"], 1, seconds=0.3)
    assert time.monotonic() - started < 10


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_a_port_is_reached_by_ipv4_and_ipv6() -> None:
    with listen() as listener:
        port = listener.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            assert wait_until_listening([address], port, seconds=30)[0] == address
            assert own_end(address) == address


def test_this_end_of_a_connection() -> None:
    assert own_end("localhost") in ("127.0.0.1", "::1")
    assert own_end("no such name") is None
