"""What the Xet client stored in a `local://` folder: which files, and their bytes."""

import struct
import tempfile
from pathlib import Path

import hf_xet

SHARD_HEADER_BYTES = 48
RECORD_BYTES = 48
END_OF_FILES = b"\xff" * 32
HAS_VERIFICATION = 1 << 31
HAS_SHA256 = 1 << 30


class XetStore:
    """A content-addressed store that hf_xet itself reads and writes, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"local://{folder}"

    @property
    def num_bytes(self) -> int:
        """Bytes of file content that it holds, shared chunks once; each pack of chunks has a .tagset beside it."""
        return sum(path.stat().st_size for path in self.folder.rglob("xorbs/default.*[!t]"))

    def hashes(self) -> dict[str, str]:
        """The Xet hash of each file, by its sha256."""
        hashes: dict[str, str] = {}
        for path in self.folder.rglob("*.mdb"):
            hashes |= _hashes_in_shard(path.read_bytes())
        return hashes

    def read(self, xet_hash: str, num_bytes: int) -> bytes:
        """A file, put together from its chunks."""
        with tempfile.NamedTemporaryFile() as file:
            with hf_xet.XetSession().new_file_download_group(endpoint=self.url) as group:
                group.start_download_file(hf_xet.XetFileInfo(xet_hash, num_bytes), file.name)
            return Path(file.name).read_bytes()


def _hashes_in_shard(content: bytes) -> dict[str, str]:
    """sha256 to Xet hash of the files in a metadata shard: per file a header, its chunks, and optional records."""
    hashes = {}
    offset = SHARD_HEADER_BYTES
    while (xet_hash := content[offset : offset + 32]) != END_OF_FILES:
        flags, num_chunks = struct.unpack("<II", content[offset + 32 : offset + 40])
        offset += RECORD_BYTES * (1 + num_chunks)
        if flags & HAS_VERIFICATION:
            offset += RECORD_BYTES * num_chunks
        if flags & HAS_SHA256:
            hashes[_hex(content[offset : offset + 32])] = _hex(xet_hash)
            offset += RECORD_BYTES
    return hashes


def _hex(number: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", number))
