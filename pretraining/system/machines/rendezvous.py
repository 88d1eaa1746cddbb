"""The store in which the processes of several machines meet: at MASTER_ADDR, or where MPI places rank 0."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pretraining.errors import UserError
from pretraining.system.launchers import LOOPBACK, MPI_RANK_VARIABLES, free_port, process_rank
from pretraining.system.machines.network import own_addresses, wait_until_listening
from pretraining.system.supervision import TORCHRUN_ATTEMPT_VARIABLE, absence_exit_code

DEFAULT_PORT = "29500"  # of all launchers


@dataclass(frozen=True)
class StorePlace:
    """A store of torch, where it is, and the two ends of the connection to it: loopback where that is not known."""

    store: Any
    address: str
    port: int
    own_end: str = LOOPBACK
    other_end: str = LOOPBACK

    def __str__(self) -> str:
        """As launchers name it."""
        return f"MASTER_ADDR={self.address}, port {self.port}"


def find_store(*, seconds: float) -> StorePlace:
    """Connect to the store of the first process or of torchrun; the first process starts it if need be.

    Raises:
        UserError: when it does not answer within `seconds`, or the port is another run's.
    """
    addresses, port = _place_of_rank_0()
    if process_rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return StorePlace(_store(addresses[0], port, is_server=True, seconds=seconds), addresses[0], port)
    address, own_end, other_end = _reach(addresses, port, seconds=seconds)
    return StorePlace(_store(address, port, is_server=False, seconds=seconds), address, port, own_end, other_end)


def _place_of_rank_0() -> tuple[list[str], int]:
    """Addresses of the machine of rank 0, and the port there.

    Raises:
        UserError: when the launcher has set none.
    """
    if "MASTER_ADDR" in os.environ:
        port = os.environ.get("MASTER_PORT") or DEFAULT_PORT
        if not port.isdecimal():
            raise UserError(f"MASTER_PORT={port}: is not a port; set one, e.g. {DEFAULT_PORT}, on all machines")
        return [os.environ["MASTER_ADDR"]], int(port)
    if not any(os.environ.get(name) for name in MPI_RANK_VARIABLES):
        raise UserError("MASTER_ADDR: is not set; set it to the host of rank 0, or start with a launcher")
    from mpi4py import MPI

    addresses, port = MPI.COMM_WORLD.bcast((own_addresses(), free_port()))
    return addresses, port


def _reach(addresses: Sequence[str], port: int, *, seconds: float) -> tuple[str, str, str]:
    try:
        return wait_until_listening(addresses, port, seconds=seconds)
    except OSError as error:
        raise UserError(
            f"{socket.gethostname()}: MASTER_ADDR={', '.join(addresses)}, port {port}: process 0 does not answer "
            f"within {seconds:.0f} s ({error.strerror or error}); check that it is the host of process 0, that "
            "process 0 runs, and that no firewall is between",
            exit_code=absence_exit_code(),
        ) from None


def _store(address: str, port: int, *, is_server: bool, seconds: float) -> Any:
    """A client of the store; rank 0 starts the server, unless torchrun has.

    With `multi_tenant` the process group's store, at the same port of this process, is a client of the same server.
    """
    from torch.distributed import DistError, PrefixStore, TCPStore

    timeout, attempt = timedelta(seconds=seconds), os.environ.get(TORCHRUN_ATTEMPT_VARIABLE, "0")
    try:
        store = TCPStore(
            address, port, is_master=is_server, timeout=timeout, wait_for_workers=False, multi_tenant=is_server
        )
    except DistError as error:
        if "EADDRINUSE" in str(error):
            raise UserError(f"--master_port={port}: another run uses it; pass another one to the launcher") from None
        raise UserError(
            f"{socket.gethostname()}: MASTER_ADDR={address}, port {port}: process 0 does not answer; it must be an "
            "address of the machine of process 0"
        ) from None
    return PrefixStore(f"meeting/{attempt}", store)
