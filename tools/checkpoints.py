"""Export or verify the checkpoints of a run.

    python3 -m tools.checkpoints export runs/llama2_7b/checkpoint-500 OUT   # as a standard Hugging Face model
    python3 -m tools.checkpoints verify runs/llama2_7b                      # like python3 -m tools.verify

`export` needs no GPU, only one process, and little more memory than one of its output files, of 5 GB at most.
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

    command: Literal["verify", "export"] | None = flag(None, "verify or export; comes first, without --command")
    folder: Path | None = flag(None, "run folder to verify, or checkpoint to export; comes next")
    output_dir: Path | None = flag(None, "new folder for the exported model; comes next")
    dtype: Literal["bf16", "fp16", "fp32"] | None = flag(
        None, "precision of the exported weights; none: that of the run, as in its own model"
    )

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        checks = {
            "--command: pass verify or export": self.command is not None,
            "--folder: pass a run folder to verify, or a checkpoint to export": self.folder is not None,
            "--output_dir: pass the folder of the exported model; verify takes none": (
                (self.command == "export") == (self.output_dir is not None)
            ),
        }
        check_all(checks)


def main(argv: Sequence[str]) -> None:
    """Verify or export."""
    groups = [dataclass_group("Checkpoints", CheckpointsArguments)]
    (arguments,) = parse_recipe(__doc__ or "", groups, argv, first=("command", "folder", "output_dir"))
    if arguments.command == "verify":
        verify_folder([str(arguments.folder)])
    else:
        export(arguments.folder, arguments.output_dir, dtype=arguments.dtype)


def export(checkpoint: Path, model_dir: Path, *, dtype: str | None) -> None:
    """Write a checkpoint's weights as a model."""
    from pretraining.runs.export.from_checkpoint import DTYPES, export_checkpoint

    written = export_checkpoint(checkpoint, model_dir, dtype=None if dtype is None else DTYPES[dtype])
    logger.info("exported model: %s (%s)", model_dir, next(name for name in DTYPES if DTYPES[name] == written))


if __name__ == "__main__":
    run_program(main)
