"""Look after the checkpoints of a run.

    python3 -m tools.checkpoints export runs/llama2_7b/checkpoint-500 OUT   # one as a model for everybody's tools

`export` needs neither GPUs nor as many processes as the run had, and little more memory than one of the files it
writes, of 5 GB at most. `verify RUN` does what `python3 -m tools.verify RUN` does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretraining.cli.flags import check_all, flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from tools.verify import main as verify_folder

logger = logging.getLogger("pretraining.checkpoints")


@dataclass(frozen=True)
class CheckpointsArguments:
    """Flags of tools.checkpoints."""

    command: Literal["verify", "export"] | None = flag(None, "what to do; stands first, without --command")
    folder: Path | None = flag(None, "run folder to verify, or checkpoint to export; stands next")
    output_dir: Path | None = flag(None, "new folder for the exported model; stands next")
    dtype: Literal["bf16", "fp16", "fp32"] = flag("bf16", "precision of the exported weights")

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        check_all(
            {
                "--command: give verify or export": self.command is not None,
                "--folder: give a run folder to verify, or a checkpoint to export": self.folder is not None,
                "--output_dir: give the folder for the exported model, and none to verify": (
                    (self.command == "export") == (self.output_dir is not None)
                ),
            }
        )


def main(argv: Sequence[str]) -> None:
    """Do what the first word says."""
    groups = [dataclass_group("Checkpoints", CheckpointsArguments)]
    (arguments,) = parse_recipe(__doc__ or "", groups, argv, first=("command", "folder", "output_dir"))
    if arguments.command == "verify":
        verify_folder([str(arguments.folder)])
    else:
        export(arguments.folder, arguments.output_dir, dtype=arguments.dtype)


def export(checkpoint: Path, model_dir: Path, *, dtype: str) -> None:
    """Write a checkpoint's weights as a model."""
    from pretraining.runs.export.from_checkpoint import DTYPES, export_checkpoint

    export_checkpoint(checkpoint, model_dir, dtype=DTYPES[dtype])
    logger.info("exported model: %s (%s)", model_dir, dtype)


if __name__ == "__main__":
    run_program(main)
