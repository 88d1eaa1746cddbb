"""DeepSpeed's C++ ops: what could be compiled here, what is done without, and locks that a killed build left."""

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pretraining.doctor.finding import Finding, failure, ok, warning
from pretraining.doctor.gpu.nvml import driver_gpus
from pretraining.system.private_dirs import cache_dir

COMPILERS = ("c++", "nvcc", "ninja")
VERSION_SECONDS = 2.0
INSTALL = "sudo apt-get install g++"


def deepspeed_ops(_: Sequence[Path]) -> Iterator[Finding]:
    """No run needs one: an offloaded optimizer is torch's. A C++ compiler is for --compile_layers."""
    compilers = {name: _compiler_version(name) for name in COMPILERS if shutil.which(name)}
    said = ", ".join(f"{name} {version}".strip() for name, version in compilers.items()) or "no compiler"
    facts = {"prebuilt": prebuilt_ops(), "compilers": compilers}
    if "c++" in compilers or not driver_gpus():
        yield ok("DeepSpeed ops", f"none is needed; {said}", **facts)
    else:
        yield warning("DeepSpeed ops", f"none is needed; {said}, so --compile_layers is refused", INSTALL, **facts)


def prebuilt_ops() -> list[str]:
    """Ops that were compiled when DeepSpeed was installed, read without importing it."""
    spec = importlib.util.find_spec("deepspeed")
    record = Path(spec.origin).with_name("git_version_info_installed.py") if spec and spec.origin else None
    if record is None or not record.is_file():
        return []
    return sorted(name for name, is_built in runpy.run_path(str(record))["installed_ops"].items() if is_built)


def _compiler_version(name: str) -> str:
    done = subprocess.run([name, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS, check=False)
    found = re.search(r"release (\d+\.\d+)|(\d+\.\d+(?:\.\d+)?)", done.stdout)
    return next((word for word in found.groups() if word), "") if found else ""


def extension_locks(_: Sequence[Path]) -> Iterator[Finding]:
    """A lock whose build was killed makes torch wait for ever, in every process, without a word."""
    folder = extensions_dir()
    locks = sorted(folder.rglob("lock")) if folder.is_dir() else []
    is_building = _runs("ninja")
    for path in locks:
        age_minutes = (time.time() - path.stat().st_mtime) / 60
        figure = f"{path}, {age_minutes:.0f} min old"
        if is_building:
            yield warning("extension locks", f"{figure}; a build is going on", "pgrep -a ninja", path=str(path))
        else:
            yield failure(
                "extension locks", f"{figure}; no build holds it", f"rm {shlex.quote(str(path))}", path=str(path)
            )
    if not locks:
        yield ok("extension locks", f"none in {folder}")


def extensions_dir() -> Path:
    """Where torch compiles extensions to."""
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    caches = cache_dir()
    return Path(chosen) if chosen else caches / "torch_extensions"


def _runs(program: str) -> bool:
    """Whether a process of this name runs on this machine."""
    for name in Path("/proc").glob("[0-9]*/comm"):
        try:
            if name.read_text().strip() == program:
                return True
        except OSError:  # it has just ended
            continue
    return False
