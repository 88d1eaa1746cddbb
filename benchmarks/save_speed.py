#!/usr/bin/env python3
"""Speed of saving and loading checkpoints, compared with plain sequential writes and reads of the same bytes.

    python3 -m benchmarks.save_speed --dataset blocks/quickstart --num_processes 2

One run alternates the methods (benchmarks/save_speed_run.py). Results: docs/benchmarks/save_speed.md.
"""

import json
import logging
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import command_line, hardware, spread, table, versions, write_section
from pretraining.cli.flags import flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.errors import UserError
from tools.resume_proof import ProofArguments, launch_command

logger = logging.getLogger("pretraining.benchmarks")

NOTES = """
"Training is blocked" is the cost of a save for the run: the weights are gathered, and every tensor is copied to host
memory; a thread of each process writes the copy. "Until complete.json" is the time until the checkpoint is complete,
here without training at the same time. "Without a copy" is a save when host memory has no space for one. Trainer and
DeepSpeed save the same without size and hash of each file; both include our fsync. A load reads every byte twice: once
for the hashes, shared by the processes, and once for the tensors.
"""


@dataclass(frozen=True)
class SaveSpeedArguments:
    """Flags of this comparison."""

    dataset: Path = flag(Path("blocks/quickstart"), "block store to train on")
    num_processes: int = flag(2, "processes of the run")
    num_rounds: int = flag(5, "saves of each kind")
    hidden_size: int = flag(1024, "width of the model, which determines the bytes")
    num_hidden_layers: int = flag(8, "layers of the model")
    work_dir: Path = flag(Path("runs/save_speed"), "folder of the run, removed at the end")
    output: Path = flag(Path("docs/benchmarks/save_speed.md"), "page to write")


def main(argv: Sequence[str]) -> None:
    """Measure, and write the page."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Comparison", SaveSpeedArguments)], argv)
    if arguments.work_dir.exists():
        raise UserError(f"--work_dir {arguments.work_dir}: exists already; remove it or choose another folder")
    found = _measure(arguments)
    num_bytes, seconds = found["num_bytes"], found["seconds"]
    rows = [
        [name, spread(values, 2), spread([num_bytes / value / 1e9 for value in values], 2)]
        for name, values in seconds.items()
    ]
    text = f"{hardware()}; {versions(['torch', 'deepspeed', 'transformers'])}.\n\n{command_line('save_speed')}\n\n"
    text += f"{num_bytes / 1e9:.2f} GB per checkpoint, {arguments.num_processes} processes, {arguments.num_rounds} "
    text += "rounds: median, minimum and maximum.\n\n"
    text += table(["", "seconds", "GB/s"], rows) + "\n" + NOTES
    write_section(arguments.output, "Saving and loading a checkpoint", text)
    logger.info("%s", text)
    shutil.rmtree(arguments.work_dir)


def _measure(arguments: SaveSpeedArguments) -> dict:
    arguments.work_dir.mkdir(parents=True)
    result = arguments.work_dir / "seconds.json"
    size = arguments.hidden_size
    words: list[object] = [*launch_command(ProofArguments(num_gpus=arguments.num_processes)), "--module"]
    words += ["benchmarks.save_speed_run", result, "--model", "quickstart", "--dataset", arguments.dataset]
    words += ["--model_overrides", f"hidden_size={size}", f"intermediate_size={size * 11 // 4}"]
    words += [f"num_hidden_layers={arguments.num_hidden_layers}", "--output_dir", arguments.work_dir / "run"]
    words += ["--max_steps", arguments.num_rounds + 1, "--per_device_train_batch_size", 1, "--save_strategy", "no"]
    words += ["--global_batch_tokens", "none", "--gradient_accumulation_steps", 1, "--eval_strategy", "no"]
    subprocess.run([str(word) for word in words], check=True)
    return json.loads(result.read_text())


if __name__ == "__main__":
    run_program(main)
