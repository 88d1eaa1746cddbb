"""The processes of `mpirun`, on one machine or several; each writes its own slices."""

from collections.abc import Callable
from typing import Any, TypeVar

from pretraining.errors import UserError
from pretraining.system.launchers import num_processes, process_rank

T = TypeVar("T")


class Ranks:
    """This process among all of them, which must see the same files and output folder.

    `alone`: ignore the launcher.
    """

    def __init__(self, *, num_slices: int, alone: bool = False) -> None:
        self.rank, self.size = (0, 1) if alone else (process_rank(), num_processes())
        if self.size > num_slices:
            raise UserError(
                f"--num_slices {num_slices}: is less than the {self.size} processes that share them; use "
                f"{4 * self.size}, and keep it if the number of processes changes"
            )
        self._communicator: Any = None
        if self.size > 1:
            from mpi4py import MPI

            self._communicator = MPI.COMM_WORLD
            if self._communicator.Get_size() != self.size:
                raise UserError(
                    f"preprocess.py was started as one of {self.size} processes, but not by mpirun; use "
                    f"mpirun -n {self.size} python3 preprocess.py ..., or start one process"
                )

    @property
    def is_first(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, broadcast to all."""
        value = make() if self.is_first else None
        return value if self._communicator is None else self._communicator.bcast(value)  # type: ignore[return-value]

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self._communicator is not None:
            self._communicator.Barrier()
