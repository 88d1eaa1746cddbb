"""run.json: what was started, with what, on what, so that a run can be told and repeated."""

import dataclasses
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

from pretraining.cli.errors import UserError
from pretraining.runs.checkpoints import RUN_RECORD_NAME

RECORDED_PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "datasets", "tokenizers", "numpy")
SECRET_FLAG = re.compile(r"(--hub[_-]token[= ])\S+")
PROJECT_DIR = Path(__file__).parents[2]


@dataclass(frozen=True)
class RunIdentity:
    """What must stay the same for a resumed run to be the run it goes on with."""

    data: Sequence[Mapping[str, Any]]
    model_config: Mapping[str, Any]
    global_batch_tokens: int
    order_seed: int
    isolate_documents: bool
    mask_document_starts: bool
    optimizer: str
    weight_decay_on_norms: bool


@dataclass(frozen=True)
class RunRecord:
    """What a run was started with. Everything in it can be written as JSON."""

    identity: RunIdentity
    schedule: Mapping[str, Any]
    arguments: Mapping[str, Any]
    ds_config: Mapping[str, Any]
    num_parameters: int
    hardware: Mapping[str, Any]

    def write(self, run_dir: Path) -> None:
        """Write run.json, with the command, versions and commit of this process, and the earlier starts if any."""
        path = run_dir / RUN_RECORD_NAME
        earlier = read_run_record(run_dir) if path.is_file() else {}
        content = {
            "command": _command(sys.argv),
            **dataclasses.asdict(self),
            "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in RECORDED_PACKAGES},
            "git": _git_state(),
            "earlier_starts": [*earlier.pop("earlier_starts", []), *([earlier] if earlier else [])],
        }
        text = json.dumps(content, indent=2, default=str, ensure_ascii=False)
        partial = path.with_suffix(".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)


def read_run_record(run_dir: Path) -> dict[str, Any]:
    """The content of run.json.

    Raises:
        UserError: when it cannot be read.
    """
    path = run_dir / RUN_RECORD_NAME
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); start a new run in another --output_dir") from None


def check_same_run(run_dir: Path, identity: RunIdentity) -> None:
    """Refuse to go on with a run as another one.

    Raises:
        UserError: naming what differs, with both values where they are short.
    """
    recorded = read_run_record(run_dir).get("identity", {})
    ours = json.loads(json.dumps(dataclasses.asdict(identity), default=str))
    problems = []
    for name, value in ours.items():
        if recorded.get(name) != value:
            values = "" if isinstance(value, dict | list) else f" (it was {recorded.get(name)}, now {value})"
            problems.append(
                f"--resume_from_checkpoint: {name} differs from that of {run_dir}{values}; give the same flags"
            )
    if problems:
        raise UserError(*problems)


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
