"""Forged files of torch.save: any pickle in an archive as torch writes it, or in one as it does not."""

import io
import os
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def touching(canary: Path, protocol: int = 2) -> bytes:
    """The plainest attack: a pickle that runs a shell."""
    return pickle.dumps(Calls(os.system, f"touch {canary}"), protocol)


def calling(module: str, name: str, *arguments: Any, protocol: int = 2) -> bytes:
    """A pickle that calls what a GLOBAL finds under any name, which from protocol 4 on may have dots in it."""
    words = pickle.dumps(arguments, 2).removeprefix(b"\x80\x02").removesuffix(b".")
    return b"\x80" + bytes([protocol]) + b"c" + f"{module}\n{name}\n".encode() + words + b"R."


def write_archive(path: Path, pickled: bytes, **records: bytes) -> None:
    """As torch.save writes it."""
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.write_record("data.pkl", pickled, len(pickled))
    writer.write_record("byteorder", b"little", 6)
    for name, content in records.items():
        writer.write_record(name.replace("_", "/"), content, len(content))
    writer.write_end_of_file()


def write_zip(path: Path, *records: tuple[str, bytes], deflated: bool = False) -> None:
    """As any other program writes one, but with the end that torch writes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        for name, record in records:
            archive.writestr(name, record)
    plain, start = content.getvalue(), zipfile.ZipFile(content).start_dir
    path.write_bytes(plain[:-22] + zip64_end(len(plain) - 22, start, len(records)) + plain[-22:])


def zip64_end(at: int, start: int, count: int) -> bytes:
    """The record that says where the directory is, and the one that says where that record is."""
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, at - start, start)
    return record + struct.pack("<4sIQI", b"PK\6\7", 0, at, 1)


def declare(path: Path, name: str, *, num_bytes: int) -> None:
    """Have the directory of an archive claim another size of a record."""
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\1\2", 0, content.rindex(name.encode()))  # in the directory, which comes last
    struct.pack_into("<II", content, at + 20, num_bytes, num_bytes)
    path.write_bytes(content)


def hide(hidden: Path, shown: Path, path: Path) -> None:
    """One archive before another, whose end points at the first: torch reads that, zipfile the other."""
    content = bytearray(hidden.read_bytes() + shown.read_bytes())
    struct.pack_into("<Q", content, len(content) - 34, hidden.stat().st_size - 98)
    path.write_bytes(content)


def names_in(path: Path) -> set[str]:
    """All that the pickle of an archive names."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        found = pickletools.genops(archive.read(name))
        return {str(argument).replace(" ", ".") for op, argument, _ in found if op.name == "GLOBAL"}
