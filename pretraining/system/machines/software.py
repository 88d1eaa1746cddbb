"""The software of this machine: package versions and the commit of the code.

Standard library only: tools.doctor asks for it where nothing is installed.
"""

import os
import platform
import re
import subprocess
from importlib import metadata
from typing import Any

from pretraining import PROJECT_DIR

REQUIREMENTS = PROJECT_DIR / "requirements.txt"
COMMIT_VARIABLE = "PRETRAINING_COMMIT"  # of the code in a container image, which has no repository: "0123abcd-dirty"
EXTRA_PACKAGES = ("tokenizers", "safetensors", "triton")  # dependencies that determine ids, files and kernels
# With other versions of these a resumed run may compute other bits, or fail.
VERSIONS_THAT_MATTER = ("torch", "transformers", "deepspeed", "tokenizers")
SAME_ON_ALL_MACHINES = (*VERSIONS_THAT_MATTER, "accelerate", "triton")
GIT_SECONDS = 3.0  # of a checkout on a dead network disk
NONE = "none"
VERSION = re.compile(r"^Version: (\S+)", re.MULTILINE)


def package_versions() -> dict[str, str | None]:
    """Versions of the packages of requirements.txt and EXTRA_PACKAGES; None for one that is not installed."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines if line[:1].isalpha()]
    return {name: installed_version(name) for name in (*names, *EXTRA_PACKAGES)}


def versions_to_compare() -> dict[str, str]:
    """What must be the same on all machines of a run: Python and some packages; NONE for one that is not installed."""
    packages = {name: installed_version(name) or NONE for name in SAME_ON_ALL_MACHINES}
    return {"Python": platform.python_version(), **packages}


def installed_version(name: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    # metadata.version parses all headers and the description, four times as long as it takes to find the package.
    found = VERSION.search(package.read_text("METADATA") or "")
    return package.version if found is None else found[1]


def git_state() -> dict[str, Any] | None:
    """The commit of this code, and whether tracked files differ from it; None where neither git nor an image has it.

    They count as different if git does not answer in time.
    """
    commit = _git("rev-parse", "HEAD")
    if commit is not None:
        return {"commit": commit, "is_dirty": _git("status", "--porcelain", "-uno") != ""}
    built_from = os.environ.get(COMMIT_VARIABLE, "")
    commit = built_from.removesuffix("-dirty")
    return {"commit": commit, "is_dirty": commit != built_from} if commit else None


def commit() -> str | None:
    """The commit of `git_state`."""
    state = git_state()
    return None if state is None else state["commit"]


def _git(*words: str) -> str | None:
    """What git reports of the checkout, which may be another user's, as on a shared disk; None if it fails."""
    git = ["git", "-c", "safe.directory=*", "-C", str(PROJECT_DIR)]
    try:
        done = subprocess.run([*git, *words], capture_output=True, text=True, check=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
