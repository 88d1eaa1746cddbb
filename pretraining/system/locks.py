"""File locks that the system releases when a process ends, however it ends."""

import errno
import fcntl
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretraining.system.files import private_dir

# Errors of file systems without locks, e.g. NFS without its lock daemon.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

logger = logging.getLogger(__name__)


def lock_file(descriptor: int, path: Path) -> bool:
    """Lock an open file until it is closed; False when another process holds it.

    Where the file system has no locks, a warning is logged and the file counts as locked.

    Raises:
        OSError: when it cannot be locked for another reason.
    """
    is_held = _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if is_held is None:
        logger.warning(
            "%s: this file system has no locks; make sure that no two programs write there at once", path.parent
        )
    return is_held is not False


@contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file, created if it is missing, and wait for whoever holds it now.

    Where the file system has no locks, a file in the temporary folder takes its place: that still serves the processes
    of one machine, and stays behind, empty.

    Raises:
        OSError: when it cannot be created or locked for another reason.
    """
    with path.open("w") as file:
        if _flock(file.fileno(), fcntl.LOCK_EX) is not None:
            yield
            return
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    with (private_dir("locks") / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    """Whether a process of this machine holds the lock of a file; False where that cannot be found out."""
    try:
        with path.open("rb") as file:
            return _flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB) is False
    except OSError:
        return False


def _flock(descriptor: int, operation: int) -> bool | None:
    """Whether the lock is held now; None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True
