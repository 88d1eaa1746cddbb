"""Decompress files in bounded memory, whatever they contain, and open the members of zip archives.

Of a zip archive only members that are stored or deflated are read: the standard library decompresses the others without
a limit of memory.
"""

import bz2
import errno
import functools
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa

from pretraining.data.input.documents import ExpandsTooFarError
from pretraining.errors import UserError

Compression = Literal["gzip", "zstd", "xz", "bzip2"]
STREAM_READ_BYTES = 1 << 16  # copied for each stream that ends in it; a stream can have 32 bytes
MAX_XZ_BYTES = 256 << 20  # xz -9 takes 65 MB; a header may ask for 4 GB
READ_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 0x61  # of a member's flags: encrypted, patched, strongly encrypted
KEPT_ERRORS = (errno.ENOENT, errno.EACCES, errno.EIO)  # a damaged archive leads to others
OF_MACOS = "__MACOSX/"  # attributes of files that its archiver adds


class StreamsReader(io.RawIOBase):
    """The decompressed bytes of an xz or bzip2 file of one or more streams, from its current position, bounded.

    The standard library's LZMAFile and BZ2File take a damaged second stream for the end of the file, and the former has
    no memory limit.

    Raises:
        EOFError: when a stream is cut off.
        lzma.LZMAError, OSError: when one is damaged.
        ExpandsTooFarError: when one takes too much memory.
    """

    def __init__(self, raw: BinaryIO, new_stream: Callable[[], Any], *, padding: bytes) -> None:
        self._raw = raw
        self._new_stream = new_stream
        self._padding = padding
        self._stream = new_stream()
        self._at_end = False

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read up to `len(buffer)` bytes; 0 at the end."""
        content = b""
        while not content and not self._at_end:
            content = self._read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _read(self, max_bytes: int) -> bytes:
        if self._stream.eof:
            rest = self._stream.unused_data.lstrip(self._padding)
            while not rest and (more := self._raw.read(STREAM_READ_BYTES)):
                rest = more.lstrip(self._padding)
            self._at_end = not rest
            self._stream = self._new_stream()
            return self._decompressed(rest, max_bytes) if rest else b""
        compressed = self._raw.read(STREAM_READ_BYTES) if self._stream.needs_input else b""
        if self._stream.needs_input and not compressed:
            raise EOFError("the file ended before its end-of-stream marker")
        return self._decompressed(compressed, max_bytes)

    def _decompressed(self, compressed: bytes, max_bytes: int) -> bytes:
        try:
            content: bytes = self._stream.decompress(compressed, max_bytes)
        except lzma.LZMAError as error:
            if "Memory usage limit" in str(error):
                raise ExpandsTooFarError(f"takes more than {MAX_XZ_BYTES >> 20} MB to decompress") from None
            raise
        return content


def _xz_reader(raw: BinaryIO) -> StreamsReader:
    """Streams of xz may be padded with zeros."""
    return StreamsReader(raw, lambda: lzma.LZMADecompressor(memlimit=MAX_XZ_BYTES), padding=b"\0")


DECOMPRESSORS: dict[Compression, Callable[[BinaryIO], Any]] = {
    "gzip": lambda raw: gzip.GzipFile(fileobj=raw),
    "xz": _xz_reader,
    "bzip2": lambda raw: StreamsReader(raw, bz2.BZ2Decompressor, padding=b""),
    # Of the readers for zstd, pyarrow's reports a truncated file, and reads all frames.
    "zstd": lambda raw: pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"),
}


def zip_members(path: Path) -> dict[str, int]:
    """The decompressed size of each file in a zip archive by its name, sorted by name.

    Raises:
        UserError: what is wrong with the archive, without its path: it is damaged, or has members that are not read.
    """
    members = _members(path)
    sizes = {info.filename: info.file_size for info in sorted(members, key=lambda info: info.filename)}
    if len(sizes) < len(members):
        raise UserError("has a file twice; unzip it, and pass the folder")
    for info in members:
        if not info.filename.isprintable():
            raise UserError("has a file whose name has control characters; unzip it, and pass the folder")
        if info.flag_bits & ENCRYPTED:
            raise UserError(f"{info.filename} in it is encrypted; unzip it with its password, and pass the folder")
        if info.compress_type not in READ_METHODS:
            raise UserError(f"{info.filename} in it is not deflated; unzip it, and pass the folder")
    return sizes


def zip_names(path: Path) -> tuple[list[str], bool]:
    """The names of the files in a zip archive, also of those that are not read, and whether one is encrypted.

    Raises:
        UserError: when the archive is damaged, without its path.
    """
    members = _members(path)
    return [info.filename for info in members], any(info.flag_bits & ENCRYPTED for info in members)


def _members(path: Path) -> list[zipfile.ZipInfo]:
    try:
        members = [info for info in _archive(path, path.stat().st_mtime_ns).infolist() if not info.is_dir()]
    except Exception as error:
        if isinstance(error, OSError) and error.errno in KEPT_ERRORS:
            raise
        raise UserError(f"is not a readable zip archive ({error}); unzip it, and pass the folder") from None
    return [info for info in members if not info.filename.startswith(OF_MACOS)]


def open_member(path: Path, name: str) -> BinaryIO:
    """Open a file in a zip archive; its checksum is verified at its end.

    Raises:
        zipfile.BadZipFile: when it is damaged.
    """
    try:
        return _archive(path, path.stat().st_mtime_ns).open(name)  # type: ignore[return-value]
    except Exception as error:
        if isinstance(error, OSError) and error.errno in KEPT_ERRORS:
            raise
        raise zipfile.BadZipFile(str(error)) from None


@functools.lru_cache(maxsize=1)
def _archive(path: Path, _modified_at: int) -> zipfile.ZipFile:
    """The archive, whose directory is read once: it can have a million members."""
    return zipfile.ZipFile(path)
