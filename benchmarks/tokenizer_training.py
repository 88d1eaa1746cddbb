#!/usr/bin/env python3
"""Cost of train_tokenizer.py next to the library `tokenizers` alone, with the same trainer on the same file.

    python3 -m benchmarks.tokenizer_training --data_files news.jsonl

The texts of the file are repeated up to the wanted size. Every run is a fresh process, timed from start to exit, and
the arms take turns. train_tokenizer.py also holds out every twentieth document and measures the tokenizer on those.
Results: docs/benchmarks/tokenizer_training.md.
"""

import logging
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.preprocess.measured_process import Usage, run_measured
from benchmarks.preprocess.sized_inputs import sized_inputs
from benchmarks.results import MEGABYTE, PROJECT_DIR, command_line, hardware, spread, table, versions, write_section
from pretraining.cli.arguments.preprocess import SAMPLE_CORPUS
from pretraining.cli.flags import flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.errors import UserError

logger = logging.getLogger("pretraining.benchmarks")

ALONE = """
import sys, orjson
from pretraining.data.tokenize.train import train_byte_level_bpe
lines = open(sys.argv[1], "rb")
tokenizer = train_byte_level_bpe((orjson.loads(line)["text"] for line in lines), vocab_size=int(sys.argv[2]))
tokenizer.save(sys.argv[3])
"""


@dataclass(frozen=True)
class TrainingArguments:
    """Flags of this measurement."""

    data_files: Path = flag(SAMPLE_CORPUS, "JSONL file whose texts are repeated")
    megabytes: int = flag(1000, "size of the input")
    vocab_size: int = flag(32000, "tokens in the vocabulary")
    repetitions: int = flag(2, "runs of each arm")
    output: Path = flag(Path("docs/benchmarks/tokenizer_training.md"), "page to write")


def main(argv: Sequence[str]) -> None:
    """Alternate the two, and write the page."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Measurement", TrainingArguments)], argv)
    found: dict[str, list[tuple[Usage, float]]] = {"train_tokenizer.py": [], "`tokenizers` alone": []}
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / "data.jsonl", Path(folder) / "tokenizer"
        made = next(sized_inputs(arguments.data_files, [arguments.megabytes], path))
        size = ["--vocab_size", str(arguments.vocab_size)]
        words = ["train_tokenizer.py", "--data_files", str(path), "--output_dir", str(output), *size]
        commands = [words, ["-c", ALONE, str(path), str(arguments.vocab_size), str(output)]]
        for number in range(1, arguments.repetitions + 1):
            for (title, runs), command in zip(found.items(), commands, strict=True):
                logger.info("run %d/%d: %s", number, arguments.repetitions, title)
                runs.append(measured([sys.executable, *command], Path(folder) / "log.txt"))
                shutil.rmtree(output) if output.is_dir() else output.unlink()
    rows = [
        [
            title,
            spread([usage.seconds for usage, _ in runs]),
            spread([cpu_seconds for _, cpu_seconds in runs]),
            spread([made.text_bytes / MEGABYTE / usage.seconds for usage, _ in runs]),
            spread([usage.peak_bytes / MEGABYTE for usage, _ in runs], 0),
        ]
        for title, runs in found.items()
    ]
    about = (
        f"{hardware()}. {versions(['tokenizers'])}.\n\n{arguments.vocab_size:,} tokens from "
        f"{made.text_bytes / MEGABYTE:,.0f} MB of text in {made.num_documents:,} documents."
    )
    text = table(["program", "time, s", "processor time, s", "MB/s of text", "memory, MB"], rows)
    write_section(
        arguments.output, "Training a tokenizer", f"{about}\n\n{command_line('tokenizer_training')}\n\n{text}"
    )
    logger.info("result: %s", arguments.output)


def measured(command: Sequence[str], log_path: Path) -> tuple[Usage, float]:
    """Run a command that has to succeed; its usage, and its seconds on all cores together."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    usage = run_measured(command, cwd=PROJECT_DIR, environment=dict(os.environ), log_path=log_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if usage.exit_code:
        raise UserError(f"{command[1]} failed: {log_path.read_text(errors='replace').strip().splitlines()[-1]}")
    return usage, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    run_program(main)
