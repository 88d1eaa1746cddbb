"""Python and the installed packages, against requirements.txt and requirements.lock."""

import platform
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from pretraining import PROJECT_DIR
from pretraining.doctor.finding import Finding, failure, ok, warning, warning_if

MIN_PYTHON = (3, 11)
INSTALL = "python3 -m pip install -c requirements.lock --no-build-isolation -r requirements.txt"
INSTALL_TORCH = (
    "python3 -m pip install -c requirements.lock setuptools wheel torch && "  # DeepSpeed's build looks for it
)
# Each installs its own module pynvml: as the same file as nvidia-ml-py, so that the last one installed wins and
# removing one breaks the other, or as a folder that hides it. From version 12 on `pynvml` only depends on nvidia-ml-py.
NVML_RIVALS = {"nvidia-ml-py3": 10**6, "pynvml": 12}


def python_version(_: Sequence[Path]) -> Iterator[Finding]:
    """Whether this Python is new enough for the suite."""
    version, needed = platform.python_version(), ".".join(map(str, MIN_PYTHON))
    figure = f"{version}, {sys.executable}"
    fix = f"rm -rf .venv && python{needed} -m venv .venv"
    is_new = sys.version_info >= MIN_PYTHON
    yield ok("python", figure) if is_new else failure("python", f"{figure}; needs {needed} or newer", fix)


def requirements(_: Sequence[Path]) -> Iterator[Finding]:
    """Whether every direct dependency is installed, in a version that requirements.txt allows."""
    lines = (PROJECT_DIR / "requirements.txt").read_text(encoding="utf-8").splitlines()
    plain = [line.partition("#")[0].strip() for line in lines]
    wanted = {re.split(r"[<>=!~\[; ]", line)[0]: line for line in plain if line}
    missing = [name for name in wanted if _version(name) is None]
    if missing:
        figure = f"{len(missing)} of {len(wanted)} are missing: {', '.join(missing)}"
        fix = INSTALL_TORCH + INSTALL if "torch" in missing else INSTALL
        yield failure("requirements.txt", figure, fix, missing=missing)
    wrong = {name: found for name, line in wanted.items() if (found := _other_version(name, line))}
    if wrong:
        figure = ", ".join(f"{name} {found} (needs {wanted[name][len(name) :]})" for name, found in wrong.items())
        yield failure("requirements.txt", figure, INSTALL, other=wrong)
    if not missing and not wrong:
        yield ok("requirements.txt", f"all {len(wanted)} are installed")


def launcher(_: Sequence[Path]) -> Iterator[Finding]:
    """Whether the command `deepspeed` is that of this environment, not of another one in PATH."""
    found, own = shutil.which("deepspeed"), Path(sys.executable).parent
    is_other = found is None or Path(found).parent.resolve() != own.resolve()
    figure = (found or "not found in PATH") + (f", but this Python is in {own}" if is_other else "")
    fix = f"export PATH={shlex.quote(str(own))}:$PATH" if (own / "deepspeed").exists() else INSTALL
    yield warning_if(is_other, "deepspeed", figure, fix, path=found)


def lock(_: Sequence[Path]) -> Iterator[Finding]:
    """Whether the installed versions are those that the suite was tested with; others of the lock are not needed."""
    lines = (PROJECT_DIR / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    installed = {name: found.partition("+")[0] for name in locked if (found := _version(name))}
    other = {name: found for name, found in installed.items() if found != locked[name]}
    named = ", ".join(f"{name} {found} (tested with {locked[name]})" for name, found in other.items())
    figure = named or f"{len(installed)} packages in the versions tested"
    yield warning_if(bool(other), "requirements.lock", figure, INSTALL, packages=len(installed), other=other)


def pynvml_owner(_: Sequence[Path]) -> Iterator[Finding]:
    """Whether NVIDIA's own package is the only one that installs the module `pynvml`."""
    found = {name: version for name in NVML_RIVALS if (version := _version(name))}
    fighting = {name: version for name, version in found.items() if int(version.split(".")[0]) < NVML_RIVALS[name]}
    remedy = f"python3 -m pip uninstall -y {' '.join(found)} && python3 -m pip install --force-reinstall nvidia-ml-py"
    named = ", ".join(f"{name} {version}" for name, version in found.items())
    if fighting:
        figure = f"{named} shares the module pynvml with nvidia-ml-py {_version('nvidia-ml-py')}"
        yield failure("pynvml", figure, remedy, found=found)
    elif found:
        yield warning("pynvml", f"{named} is installed, a deprecated name of nvidia-ml-py", remedy, found=found)
    elif _version("nvidia-ml-py") is None:
        yield warning("pynvml", "nvidia-ml-py is missing: GPUs cannot be queried", INSTALL)
    else:
        yield ok("pynvml", f"nvidia-ml-py {_version('nvidia-ml-py')} alone")


def _other_version(name: str, line: str) -> str | None:
    """The installed version, if `line` does not allow it."""
    found = _version(name)
    if found is None:
        return None
    from packaging.requirements import Requirement

    return None if Requirement(line).specifier.contains(found, prereleases=True) else found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
