"""Free space and speed of the disks that a run uses."""

import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pretraining.doctor.finding import Finding, failure, warning, warning_if
from pretraining.system.formatting import format_bytes

TEST_BYTES = 256 * 2**20
WRITE_BYTES = 8 * 2**20
MAX_SECONDS = 3.0  # of writing, in each folder; a slow disk is measured by what it wrote until then
MIN_FREE_BYTES = 20e9
MIN_BYTES_PER_SECOND = 100e6
# fp32 master weights, AdamW's two moments and the bf16 weights: 14 bytes for each of 6.74e9 parameters.
CHECKPOINT_BYTES = 14 * 6_738_415_616
MIN_TEMPORARY_BYTES, MIN_CACHE_BYTES = 2e9, 10e9
IN_MEMORY = ("tmpfs", "ramfs")


def run_folders(folders: Sequence[Path]) -> Iterator[Finding]:
    """Free space of each folder, and how fast it is written and read."""
    for folder in folders:
        yield _free_space("disk", folder, MIN_FREE_BYTES)
        if _file_system(existing(folder)) in IN_MEMORY:
            figure = f"{folder} is in memory: lost when the machine restarts, and memory that a run will lack"
            yield warning("disk", figure, "deepspeed pretrain.py --output_dir /a/real/disk/run")
        yield _speed(folder)


def temporary_folder(_: Sequence[Path]) -> Iterator[Finding]:
    """Space for temporary files."""
    folder = Path(tempfile.gettempdir())
    yield _free_space("temporary folder", folder, MIN_TEMPORARY_BYTES, fix="export TMPDIR=/a/larger/disk")


def hub_cache(_: Sequence[Path]) -> Iterator[Finding]:
    """Space for models and data sets of the Hub, and for blocks that are read from a network disk."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    yield _free_space("Hub cache", Path(home).expanduser(), MIN_CACHE_BYTES, fix="export HF_HOME=/a/larger/disk")


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _free_space(name: str, folder: Path, min_bytes: float, *, fix: str = "") -> Finding:
    place = existing(folder)
    space = shutil.disk_usage(place)
    figure = f"{place}: {format_bytes(space.free)} of {format_bytes(space.total)} free, {_file_system(place)}"
    figures = {"free_bytes": space.free, "total_bytes": space.total, "folder": str(place)}
    is_small = space.free < min_bytes
    figure += f"; {format_bytes(min_bytes)} are needed" if is_small else ""
    fix = fix or f"du -xh --max-depth=1 {shlex.quote(str(place))} | sort -h | tail"
    return warning_if(is_small, name, figure, fix, **figures)


def _file_system(folder: Path) -> str:
    """Type of the file system: of all mounts that contain `folder`, the nearest to it, and of those the last."""
    lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    mounts = [(Path(words[1].replace("\\040", " ")), words[2]) for words in map(str.split, lines)]
    holding = [(len(point.parts), kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    depth = max((depth for depth, _ in holding), default=0)
    return next((kind for at, kind in reversed(holding) if at == depth), "unknown")


def _speed(folder: Path) -> Finding:
    place = existing(folder)
    try:
        with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=place) as file:
            num_bytes, writing = _write(file.fileno())
            reading = _read(file.fileno(), num_bytes)
    except OSError as error:
        fix = "ls -ld {0}; df -h {0}; quota -s; id".format(shlex.quote(str(place)))
        return failure("disk speed", f"{place}: cannot be written ({error.strerror})", fix)
    minutes = CHECKPOINT_BYTES / writing / 60
    figure = f"{place}: writes {writing / 1e6:,.0f} MB/s, reads {reading / 1e6:,.0f} MB/s ({format_bytes(num_bytes)}, "
    figure += f"synced); a checkpoint of Llama-2-7B, {format_bytes(CHECKPOINT_BYTES)}, takes {minutes:.0f} min"
    figures = {"write_bytes_per_second": writing, "read_bytes_per_second": reading, "num_bytes": num_bytes}
    fix = "deepspeed pretrain.py --output_dir /a/faster/disk/run"
    return warning_if(writing < MIN_BYTES_PER_SECOND, "disk speed", figure, fix, **figures)


def _write(descriptor: int) -> tuple[int, float]:
    """Bytes written, and bytes per second with fsync; random bytes, which no file system can compress."""
    content, num_bytes, started_at = os.urandom(WRITE_BYTES), 0, time.perf_counter()
    while num_bytes < TEST_BYTES and time.perf_counter() - started_at < MAX_SECONDS:
        num_bytes += os.write(descriptor, content)
        os.fdatasync(descriptor)
    os.fsync(descriptor)
    return num_bytes, num_bytes / (time.perf_counter() - started_at)


def _read(descriptor: int, num_bytes: int) -> float:
    """Bytes per second, read from the disk where the system drops its cache."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(descriptor, 0, os.SEEK_SET)
    started_at = time.perf_counter()
    while os.read(descriptor, WRITE_BYTES):
        if time.perf_counter() - started_at > MAX_SECONDS:
            break
    return os.lseek(descriptor, 0, os.SEEK_CUR) / max(time.perf_counter() - started_at, 1e-9) if num_bytes else 0.0
