"""Room and speed of the disks that a run writes to."""

import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pretraining.doctor.finding import Finding, failure, gigabytes, ok, warning

TEST_BYTES = 256 * 2**20
PIECE_BYTES = 8 * 2**20
MOST_SECONDS = 3.0  # for writing, in each folder; a slow disk is measured by what it took until then
LEAST_FREE_BYTES = 20e9
LEAST_BYTES_PER_SECOND = 100e6
# fp32 master weights and AdamW's two moments, and the weights in bf16: 14 bytes of each of 6.74e9 parameters.
CHECKPOINT_BYTES = 14 * 6_738_415_616
TEMPORARY_BYTES, CACHE_BYTES = 2e9, 10e9
IN_MEMORY = ("tmpfs", "ramfs")
LEAST_FREE_INODES = 10_000


def run_folders(folders: Sequence[Path]) -> Iterator[Finding]:
    """Room in each folder, and how fast it is written and read."""
    for folder in folders:
        yield _room("disk", folder, LEAST_FREE_BYTES)
        if _file_system(existing(folder)) in IN_MEMORY:
            figure = f"{folder} is in memory: gone when the machine starts anew, and memory that a run will miss"
            yield warning("disk", figure, "deepspeed pretrain.py --output_dir /a/real/disk/run")
        yield _speed(folder)


def temporary_folder(_: Sequence[Path]) -> Iterator[Finding]:
    """Room for temporary files."""
    folder = Path(tempfile.gettempdir())
    yield _room("temporary folder", folder, TEMPORARY_BYTES, fix="export TMPDIR=/a/larger/disk")


def hub_cache(_: Sequence[Path]) -> Iterator[Finding]:
    """Room where models and data sets of the Hub are kept, and blocks that are read from a network disk."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    yield _room("Hub cache", Path(home).expanduser(), CACHE_BYTES, fix="export HF_HOME=/a/larger/disk")


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _room(name: str, folder: Path, least_bytes: float, *, fix: str = "") -> Finding:
    place = existing(folder)
    room, inodes = shutil.disk_usage(place), os.statvfs(place)
    figure = f"{place}: {gigabytes(room.free)} of {gigabytes(room.total)} free, {_file_system(place)}"
    figures = {"free_bytes": room.free, "total_bytes": room.total, "folder": str(place)}
    fix = fix or f"du -xh --max-depth=1 {shlex.quote(str(place))} | sort -h | tail"
    if inodes.f_files and inodes.f_favail < LEAST_FREE_INODES:
        return warning(name, f"{figure}, room for only {inodes.f_favail:,} more files", fix, **figures)
    if room.free < least_bytes:
        return warning(name, f"{figure}; {gigabytes(least_bytes)} are wanted", fix, **figures)
    return ok(name, figure, **figures)


def _file_system(folder: Path) -> str:
    """Kind of the file system: of all mounts that hold `folder`, the one nearest to it, and of those the last."""
    lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    mounts = [(Path(words[1].replace("\\040", " ")), words[2]) for words in map(str.split, lines)]
    holding = [(len(point.parts), kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    depth = max((depth for depth, _ in holding), default=0)
    return next((kind for at, kind in reversed(holding) if at == depth), "unknown")


def _speed(folder: Path) -> Finding:
    place, name = existing(folder), "disk speed"
    try:
        descriptor, path = tempfile.mkstemp(prefix=".doctor-", dir=place)
    except OSError as error:
        return failure(
            name,
            f"{place}: cannot be written ({error.strerror})",
            f"ls -ld {shlex.quote(str(place))}; df -h {shlex.quote(str(place))}; id",
        )
    try:
        num_bytes, writing = _write(descriptor)
        reading = _read(descriptor, num_bytes)
    except OSError as error:
        return failure(
            name, f"{place}: cannot be written ({error.strerror})", f"df -h {shlex.quote(str(place))}; quota -s"
        )
    finally:
        os.close(descriptor)
        Path(path).unlink()
    minutes = CHECKPOINT_BYTES / writing / 60
    figure = (
        f"{place}: writes {writing / 1e6:,.0f} MB/s, reads {reading / 1e6:,.0f} MB/s ({gigabytes(num_bytes)}, synced); "
    )
    figure += f"a checkpoint of Llama-2-7B, {gigabytes(CHECKPOINT_BYTES)}, takes {minutes:.0f} min"
    figures = {"write_bytes_per_second": writing, "read_bytes_per_second": reading, "num_bytes": num_bytes}
    if writing < LEAST_BYTES_PER_SECOND:
        return warning(name, figure, "deepspeed pretrain.py --output_dir /a/faster/disk/run", **figures)
    return ok(name, figure, **figures)


def _write(descriptor: int) -> tuple[int, float]:
    """Bytes written, and how many a second, synced; bytes that no file system can make smaller."""
    piece, num_bytes, began_at = os.urandom(PIECE_BYTES), 0, time.perf_counter()
    while num_bytes < TEST_BYTES and time.perf_counter() - began_at < MOST_SECONDS:
        num_bytes += os.write(descriptor, piece)
        os.fdatasync(descriptor)
    os.fsync(descriptor)
    return num_bytes, num_bytes / (time.perf_counter() - began_at)


def _read(descriptor: int, num_bytes: int) -> float:
    """Bytes read a second, from the disk where the system can be told to forget them."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(descriptor, 0, os.SEEK_SET)
    began_at = time.perf_counter()
    while os.read(descriptor, PIECE_BYTES):
        if time.perf_counter() - began_at > MOST_SECONDS:
            break
    return os.lseek(descriptor, 0, os.SEEK_CUR) / max(time.perf_counter() - began_at, 1e-9) if num_bytes else 0.0
