"""Folders of this user: the cache, and those in the shared temporary folder that only this user can read and write."""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from pretraining.errors import UserError

OTHERS = stat.S_IRWXG | stat.S_IRWXO


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
