"""Decompress xz in bounded memory.

The standard library's LZMAFile takes a damaged second stream for the end of the file, and has no memory limit.
"""

import io
import lzma
from typing import Any, BinaryIO

from pretraining.data.input.documents import ExpandsTooFarError

READ_AT_ONCE_BYTES = 1 << 16  # copied for each stream that ends in it; a stream can have 32 bytes
MAX_DECODER_BYTES = 256 << 20  # xz -9 takes 65 MB; a header may ask for 4 GB


class XzReader(io.RawIOBase):
    """The decompressed bytes of a file of one or more streams, from its current position.

    Raises:
        EOFError: when a stream is cut off.
        lzma.LZMAError: when one is damaged.
        ExpandsTooFarError: when one takes too much memory.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._stream = lzma.LZMADecompressor(memlimit=MAX_DECODER_BYTES)
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
            rest = self._stream.unused_data.lstrip(b"\0")  # streams may be padded with zeros
            while not rest and (more := self._raw.read(READ_AT_ONCE_BYTES)):
                rest = more.lstrip(b"\0")
            self._at_end = not rest
            self._stream = lzma.LZMADecompressor(memlimit=MAX_DECODER_BYTES)
            return self._decompressed(rest, max_bytes) if rest else b""
        compressed = self._raw.read(READ_AT_ONCE_BYTES) if self._stream.needs_input else b""
        if self._stream.needs_input and not compressed:
            raise EOFError("the file ended before its end-of-stream marker")
        return self._decompressed(compressed, max_bytes)

    def _decompressed(self, compressed: bytes, max_bytes: int) -> bytes:
        try:
            return self._stream.decompress(compressed, max_bytes)
        except lzma.LZMAError as error:
            if "Memory usage limit" in str(error):
                raise ExpandsTooFarError(f"takes more than {MAX_DECODER_BYTES >> 20} MB to decompress") from None
            raise
