"""run.json: what was started, with what, on what, so that a run can be told and repeated."""

import importlib.metadata
import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining.runs.checkpoints import RUN_RECORD_NAME

RECORDED_PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "datasets", "tokenizers", "numpy")
SECRET_FLAG = re.compile(r"(--hub[_-]token[= ])\S+")
PROJECT_DIR = Path(__file__).parents[2]


@dataclass(frozen=True)
class RunRecord:
    """What a run was started with. Everything in it can be written as JSON."""

    arguments: Mapping[str, Any]
    ds_config: Mapping[str, Any]
    model_config: Mapping[str, Any]
    num_parameters: int
    manifest_sha256: str
    hardware: Mapping[str, Any]

    def write(self, run_dir: Path) -> None:
        """Write run.json, with the command, versions and commit of this process."""
        content = {
            "command": _command(sys.argv),
            **vars(self),
            "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in RECORDED_PACKAGES},
            "git": _git_state(),
        }
        text = json.dumps(content, indent=2, default=str, ensure_ascii=False)
        (run_dir / RUN_RECORD_NAME).write_text(text + "\n", encoding="utf-8")


def _command(argv: Sequence[str]) -> str:
    """The command line, without the secret of --hub_token."""
    return SECRET_FLAG.sub(r"\1***", shlex.join([Path(sys.executable).name, *argv]))


def _git_state() -> dict[str, Any] | None:
    """Commit of this checkout, and whether tracked files differ from it; None outside a repository."""
    commit = _git("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "is_dirty": bool(_git("status", "--porcelain", "-uno"))}


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", PROJECT_DIR, *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
