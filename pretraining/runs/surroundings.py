"""What a run is started by and from: the command, the versions of its packages, the commit of its code."""

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretraining.cli.launchers import stat_words

PROJECT_DIR = Path(__file__).parents[2]
REQUIREMENTS = PROJECT_DIR / "requirements.txt"
BESIDES = ("tokenizers", "safetensors", "triton")  # come with others, and decide ids, files and kernels
# A flag; a variable, as in `mpirun -x HF_TOKEN=...` and `sudo WANDB_API_KEY=...`; a token of the Hub anywhere.
SECRET = re.compile(
    r"(--hub[_-]token[= ]|\b[A-Z0-9_]*(?:TOKEN|KEY|SECRET|PASSWORD)[A-Z0-9_]*=)('[^']*'|[^\s']+)|\bhf_\w{20,}"
)


def command() -> str:
    """What started this run, the launcher with it, and without secrets: the model card shows it to others."""
    words = _outermost_command(Path(sys.argv[0]).name) or [sys.executable, *sys.argv]
    if Path(words[0]).is_absolute() and len(words) > 1 and Path(words[1]).parent == Path(words[0]).parent:
        words = words[1:]  # a launcher that was installed beside its interpreter
    told = shlex.join([Path(words[0]).name, *words[1:]])
    return SECRET.sub(lambda found: f"{found[1] or ''}***", told)


def _outermost_command(program: str) -> list[str]:
    """The words of the first process above this one that was told to start the program; none where that is unseen."""
    found: list[str] = []
    for words in _commands_above():
        if program in (Path(word).name for word in words[1:]):
            found = words
    return found


def _commands_above() -> Iterator[list[str]]:
    pid = os.getpid()
    try:
        while pid > 1:
            yield Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            pid = int(stat_words(pid)[1])
    except OSError:  # of another user, or in another container
        return


def package_versions() -> dict[str, str | None]:
    """Those of requirements.txt and what it brings that matters; None for one that is not installed."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines if line[:1].isalpha()]
    return {name: _version(name) for name in (*names, *BESIDES)}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state() -> dict[str, Any] | None:
    """Commit of this checkout, and whether tracked files differ from it; None outside a repository."""
    commit = _git("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "is_dirty": bool(_git("status", "--porcelain", "-uno"))}


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(PROJECT_DIR), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
