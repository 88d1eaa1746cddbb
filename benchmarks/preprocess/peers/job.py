"""The job of every program of the comparison, passed on its command line."""

import sys
from dataclasses import astuple, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One JSONL file to preprocess into token blocks; `parts_dir` holds the same lines in `num_workers` files."""

    data_file: Path
    parts_dir: Path
    tokenizer: Path
    eos_token: str
    block_length: int
    num_workers: int
    output_dir: Path

    def words(self) -> list[str]:
        """The job as the words of a command line."""
        return [str(value) for value in astuple(self)]


def job_of_command_line() -> Job:
    """The job on the command line of this program."""
    data_file, parts_dir, tokenizer, eos_token, block_length, num_workers, output_dir = sys.argv[1:]
    return Job(
        Path(data_file),
        Path(parts_dir),
        Path(tokenizer),
        eos_token,
        int(block_length),
        int(num_workers),
        Path(output_dir),
    )
