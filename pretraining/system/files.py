"""Files that survive a crash: flushed to the disk, renamed into place when they are complete, and their checksums."""

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pretraining import PROJECT_DIR
from pretraining.errors import UserError

OTHERS = stat.S_IRWXG | stat.S_IRWXO

TEMPORARY_SUFFIX = ".tmp"
# At once, without Python's lock, for which a thread waits 5 ms twice per part while another runs Python. In 0.4 s
# it hashed 35 MB in parts of 1 MB, 160 MB in parts of 8 MB, 256 MB in parts of 32 MB. More would be memory for little.
HASHED_BYTES = 16 << 20
# Errors of file systems that have no fsync for folders (SMB, some FUSE): there a new name is durable at once, or never.
CANNOT_SYNC_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def check_new_file(path: Path, *, flag: str) -> None:
    """Reject a path that exists, or whose folder does not exist or is not writable.

    Raises:
        UserError: naming the flag and the path.
    """
    if path.exists():
        raise UserError(f"{flag} {path}: exists already; choose another file")
    if not path.parent.is_dir():
        raise UserError(f"{flag} {path}: the folder {path.parent} does not exist; create it or choose another file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path}: the folder {path.parent} is not writable; choose another file")


def fsync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk.

    Raises:
        OSError: when the disk failed to take them.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in CANNOT_SYNC_FOLDERS:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Where to write a file that replaces `path` at the end: whoever opens `path` finds the old file or the new one.

    This holds for kills and power cuts, too. An error leaves `path` as it was, and no temporary file, which could fill
    the disk.

    Raises:
        OSError: when the disk does not take it.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    fsync(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is complete or not there at all, whenever the process or the machine dies.

    Raises:
        OSError: when the disk does not take it; `path` is then as it was.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, which takes no space; copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hex: 1 to 2 GB/s per core; no two files with the same one can be constructed."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        content = memoryview(bytearray(min(HASHED_BYTES, file.seek(0, os.SEEK_END) + 1)))
        file.seek(0)
        while count := file.readinto(content):
            digest.update(content[:count])
    return digest.hexdigest()


class HashedFile:
    """A new file, or a new content of one, that is appended to and hashed meanwhile.

    Raises:
        OSError: when it cannot be created; as all methods do when the disk does not take it.
    """

    closed = False  # what pyarrow asks before it writes

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, content: bytes | memoryview) -> int:
        """Append bytes."""
        num_bytes = memoryview(content).nbytes
        self._file.write(content)
        self._digest.update(content)
        self.num_bytes += num_bytes
        return num_bytes

    def tell(self) -> int:
        """The bytes so far."""
        return self.num_bytes

    def flush(self) -> None:
        """Wait until all of it is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush, and write nothing after that."""
        self.flush()
        self._file.close()

    @property
    def sha256(self) -> str:
        """The SHA-256 of what was written, in hex."""
        return self._digest.hexdigest()


def code_hash() -> str:
    """The SHA-256 over the modules of this project, in hex: a checkout can have changes, and an image has no commit."""
    digest = hashlib.sha256()
    for path in sorted([*PROJECT_DIR.glob("*.py"), *PROJECT_DIR.glob("pretraining/**/*.py")]):
        digest.update(f"{path.relative_to(PROJECT_DIR)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def xxh3_of(path: Path) -> str:
    """The XXH3 of 128 bits of a file in hex: 5 GB/s per core; finds damage, not forgery."""
    import xxhash  # here: tools.doctor uses this module where nothing is installed

    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def cache_dir() -> Path:
    """Where libraries and this suite keep what can be created again: that of XDG, unless HF_HOME or others move theirs.

    Raises:
        UserError: when this user has no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise UserError("HOME: is not set, and this user has no home folder; set XDG_CACHE_HOME to a folder") from None


def private_dir(name: str) -> Path:
    """The folder of this name and this user, created if it is missing; processes that agree on a name meet there.

    Others can guess the name and create it first, so what is found there is used only if it is a folder (no link) of
    this user that nobody else can open. Whoever creates it removes it at the end.

    Raises:
        UserError: when it is not, or cannot be created.
    """
    folder = Path(tempfile.gettempdir()) / f"pretraining-{os.getuid()}-{name}"
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError as error:
        raise UserError(f"{folder}: cannot be created ({error.strerror}); set TMPDIR to another folder") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & OTHERS:
        raise UserError(
            f"{folder}: is not a folder that only this user can open (owner {found.st_uid}, mode "
            f"{stat.filemode(found.st_mode)}), so nothing in it is trusted; remove it, or set TMPDIR to another folder"
        )
    return folder
