"""Look after the checkpoints of a run.

    python3 -m tools.checkpoints verify runs/llama2_7b                      # which of them are whole
    python3 -m tools.checkpoints export runs/llama2_7b/checkpoint-500 OUT   # one as a model for everybody's tools

`verify` reads every byte and prints a line for each checkpoint; if one is damaged, the exit code is 1. `export` needs
neither GPUs nor as many processes as the run had, and little more memory than one of the files it writes, of 5 GB at
most.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretraining.cli.errors import UserError, leave, run_program
from pretraining.cli.flags import flag
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.system.escapes import escape

logger = logging.getLogger("pretraining.checkpoints")

DAMAGED_EXIT_CODE = 1


@dataclass(frozen=True)
class CheckpointsArguments:
    """Flags of tools.checkpoints."""

    command: Literal["verify", "export"] | None = flag(None, "what to do; stands first, without --command")
    folder: Path | None = flag(None, "run folder to verify, or checkpoint to export; stands next")
    output_dir: Path | None = flag(None, "new folder for the exported model; stands next")
    dtype: Literal["bf16", "fp16", "fp32"] = flag("bf16", "precision of the exported weights")

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        checks = {
            "--command: give verify or export": self.command is not None,
            "--folder: give a run folder to verify, or a checkpoint to export": self.folder is not None,
            "--output_dir: give the folder for the exported model, and none to verify": (
                (self.command == "export") == (self.output_dir is not None)
            ),
        }
        problems = [message for message, fine in checks.items() if not fine]
        if problems:
            raise UserError(*problems)


def main(argv: Sequence[str]) -> None:
    """Do what the first word says."""
    groups = [dataclass_group("Checkpoints", CheckpointsArguments)]
    (arguments,) = parse_recipe(__doc__ or "", groups, argv, first=("command", "folder", "output_dir"))
    if arguments.command == "verify":
        verify(arguments.folder)
    else:
        export(arguments.folder, arguments.output_dir, dtype=arguments.dtype)


def verify(run_dir: Path) -> None:
    """Say of each checkpoint of a run whether it is whole; one that the run removes meanwhile is none of them."""
    from pretraining.runs.checkpoints import all_checkpoints

    if run_dir.is_dir():
        next(run_dir.iterdir(), None)  # a folder that we may not read is reported as that, not as an empty one
    checkpoints = all_checkpoints(run_dir)
    if not checkpoints:
        raise UserError(f"--folder {run_dir}: has no checkpoints; give a run folder")
    is_damaged = False
    for checkpoint in checkpoints:
        try:
            num_bytes, problem = look_at(checkpoint)
        except OSError as error:
            num_bytes, problem = 0, f"cannot be read ({error.strerror})"
        if problem is not None and not checkpoint.exists():
            continue
        is_damaged |= problem is not None
        sys.stdout.write(f"{checkpoint.name:<20} {num_bytes / 1e9:>10.3f} GB  {escape(problem or 'ok')}\n")
    if is_damaged:
        leave(DAMAGED_EXIT_CODE)


def look_at(checkpoint: Path) -> tuple[int, str | None]:
    """The size of a checkpoint, and what is wrong with it.

    Raises:
        OSError: as when it is removed meanwhile.
    """
    from pretraining.runs.completeness import damage, incompleteness

    num_bytes = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    return num_bytes, incompleteness(checkpoint) or damage(checkpoint)


def export(checkpoint: Path, model_dir: Path, *, dtype: str) -> None:
    """Write a checkpoint's weights as a model."""
    from pretraining.runs.checkpoint_export import DTYPES, export_checkpoint

    export_checkpoint(checkpoint, model_dir, dtype=DTYPES[dtype])
    logger.info("exported model: %s (%s)", model_dir, dtype)


if __name__ == "__main__":
    run_program(main)
