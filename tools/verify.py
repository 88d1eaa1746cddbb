"""Check every byte of data sets, checkpoints and exported models against what was recorded about them.

    python3 -m tools.verify blocks                         # block store: checksums, sizes, rows, ids, sums
    python3 -m tools.verify runs/llama2_7b                 # run folder: its checkpoints, exported models and blocks
    python3 -m tools.verify runs/llama2_7b/checkpoint-500  # one checkpoint; likewise one exported model

Prints one line per thing checked, and one per file that is missing, damaged or extra. Exit code 0 if all is as it was
written, 2 if not. No checksums are recorded for exported models: of these the files are opened, and each weight must be
in its place and finite.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.cli.flags import flag
from pretraining.cli.program import exit_process, run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.errors import USER_ERROR_EXIT_CODE, UserError
from pretraining.system.escapes import escape


@dataclass(frozen=True)
class VerifyArguments:
    """Flags of tools.verify."""

    folder: Path | None = flag(None, "block store, run folder, checkpoint or exported model; comes first")

    def __post_init__(self) -> None:
        """Check what needs no file."""
        if self.folder is None:
            raise UserError("--folder: pass a block store, run folder, checkpoint or exported model")


@dataclass(frozen=True)
class Finding:
    """What was checked, its bytes, what was looked at, and what is wrong, one line per file."""

    folder: Path
    num_bytes: int
    checked: str
    problems: list[str]


def main(argv: Sequence[str]) -> None:
    """Print what is found; exit code 2 if anything is wrong."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Verifying", VerifyArguments)], argv, first=("folder",))
    if not verify(arguments.folder):
        exit_process(USER_ERROR_EXIT_CODE)


def verify(folder: Path) -> bool:
    """Print one line per thing checked in `folder`; whether all are as they were written.

    Raises:
        UserError: when there is nothing to check.
    """
    if folder.is_dir():
        next(folder.iterdir(), None)  # a folder that we may not read is reported as that, not as an empty one
    is_fine, is_empty = True, True
    for finding in findings(folder):
        is_empty = False
        is_fine &= not finding.problems
        state = f"ok: {finding.checked}" if not finding.problems else f"NOT AS IT WAS WRITTEN: {len(finding.problems)}"
        sys.stdout.write(f"{escape(str(finding.folder)):<40} {finding.num_bytes / 1e9:>10.3f} GB  {state}\n")
        sys.stdout.writelines(f"    {escape(problem)}\n" for problem in finding.problems)
        sys.stdout.flush()
    if is_empty:
        raise UserError(
            f"--folder {folder}: has nothing to check; pass a block store, run folder, checkpoint or exported model"
        )
    return is_fine


def findings(folder: Path) -> Iterator[Finding]:
    """What there is to check in a folder, checked one after another."""
    from pretraining.data.store.manifest import MANIFEST_NAME
    from pretraining.runs.checksums import COMPLETE_NAME
    from pretraining.runs.run_folder import BLOCKS_DIR_NAME, MODEL_DIR_NAME, all_checkpoints, checkpoint_step

    if (folder / MANIFEST_NAME).exists():
        yield verify_store(folder)
    elif (folder / COMPLETE_NAME).exists() or checkpoint_step(folder) is not None:
        yield verify_checkpoint(folder)
    elif is_model(folder):
        yield verify_model(folder)
    else:
        for checkpoint in all_checkpoints(folder):
            finding = verify_checkpoint(checkpoint)
            if checkpoint.exists():  # the run that is training removes its oldest when a new one is complete
                yield finding
        for model in filter(is_model, [folder / MODEL_DIR_NAME, *sorted(folder.glob("exports/*"))]):
            yield verify_model(model)
        if (folder / BLOCKS_DIR_NAME / MANIFEST_NAME).exists():
            yield verify_store(folder / BLOCKS_DIR_NAME)


def is_model(folder: Path) -> bool:
    """Whether a folder is an exported model, complete or not."""
    is_partial = ".partial" in folder.suffixes
    return not is_partial and ((folder / "config.json").is_file() or any(folder.glob("*.safetensors")))


def verify_store(store: Path) -> Finding:
    """Check a block store."""
    from pretraining.data.store.integrity import store_problems
    from pretraining.data.store.manifest import read_manifest

    try:
        manifest = read_manifest(store, flag="--folder")
    except UserError as error:
        return Finding(store, 0, "", [str(error)])
    num_blocks = sum(split.num_blocks for split in manifest.splits.values())
    vocab_size = manifest.origin.tokenizer.vocab_size
    checked = f"{len(manifest.shards)} shards and the tokenizer by SHA-256; {num_blocks:,} blocks, ids < {vocab_size:,}"
    num_bytes = sum(shard.num_bytes for shard in manifest.shards)
    return Finding(store, num_bytes, checked, store_problems(store, manifest))


def verify_checkpoint(checkpoint: Path) -> Finding:
    """Check a checkpoint."""
    from pretraining.runs.verification import checkpoint_problems

    problems = checkpoint_problems(checkpoint)
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    return Finding(checkpoint, num_bytes_of(files), f"{len(files) - 1} files by XXH3 of complete.json", problems)


def verify_model(model_dir: Path) -> Finding:
    """Check an exported model."""
    from pretraining.runs.verification import model_problems

    problems = model_problems(model_dir)
    files = list(model_dir.glob("*.safetensors"))
    checked = f"{len(files)} files of weights, all finite and in place (no checksums are recorded for exported models)"
    return Finding(model_dir, num_bytes_of(files), checked, problems)


def num_bytes_of(files: Sequence[Path]) -> int:
    """The size of all files together; one that is removed meanwhile has none."""
    return sum(path.stat().st_size for path in files if path.is_file())


if __name__ == "__main__":
    run_program(main)
