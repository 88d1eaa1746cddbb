"""Runs of one command on one job, each from the same state: no output, no caches, the input in the page cache."""

import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from transformers import AutoTokenizer

from benchmarks.preprocess.measured_process import Usage, run_measured
from benchmarks.preprocess.peers.job import Job
from benchmarks.results import MEGABYTE, PROJECT_DIR, num_cores
from pretraining.errors import UserError

# A container may forbid Python to keep compiled modules, which costs each start 0.3 s: users keep them.
AS_USERS = {"PYTHONDONTWRITEBYTECODE": ""}

logger = logging.getLogger("pretraining.benchmarks")


@dataclass
class Series:
    """The runs so far, or the error."""

    usages: list[Usage] = field(default_factory=list)
    failure: str | None = None

    @property
    def seconds(self) -> list[float]:
        """Time of each run."""
        return [usage.seconds for usage in self.usages]

    @property
    def peak_megabytes(self) -> list[float]:
        """Memory of each run."""
        return [usage.peak_bytes / MEGABYTE for usage in self.usages]

    def megabytes_per_second(self, text_bytes: int) -> list[float]:
        """Speed of each run, in text."""
        return [text_bytes / MEGABYTE / seconds for seconds in self.seconds]


def prepare_job(data_file: Path, tokenizer: Path, block_length: int, work_dir: Path) -> Job:
    """The job of every run, in an empty folder below `work_dir`."""
    if not data_file.is_file():
        raise UserError(f"--data_files {data_file}: is not a file; check the path")
    if not (tokenizer / "tokenizer.json").is_file():
        raise UserError(f"--tokenizer {tokenizer}: has no tokenizer.json")
    own_dir = work_dir.absolute() / "preprocess"
    shutil.rmtree(own_dir, ignore_errors=True)
    own_dir.mkdir(parents=True)
    return Job(
        data_file=data_file.absolute(),
        parts_dir=own_dir / "parts",
        tokenizer=tokenizer.absolute(),
        eos_token=AutoTokenizer.from_pretrained(tokenizer).eos_token,
        block_length=block_length,
        num_workers=num_cores(),
        output_dir=own_dir / "output",
    )


def add_run(
    series: Series, command: Sequence[str], job: Job, variables: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Run `command` once more with these environment variables, unless it has failed before."""
    if series.failure is not None:
        return
    work_dir = job.output_dir.parent
    caches, log_path = work_dir / "hf_home", work_dir / "log.txt"
    for folder in (job.output_dir, caches):
        shutil.rmtree(folder, ignore_errors=True)
    os.sync()  # what the run before wrote does not slow down this one
    read_into_page_cache([job.data_file, *job.parts_dir.glob("*.jsonl")])
    environment = {**os.environ, **AS_USERS, "HF_HOME": str(caches), "HF_HUB_OFFLINE": "1", **variables}
    usage = run_measured(command, cwd=PROJECT_DIR, environment=environment, log_path=log_path)
    if usage.exit_code == 0:
        series.usages.append(usage)
    else:
        series.usages.clear()
        series.failure = _reason(usage.exit_code, log_path.read_text(encoding="utf-8", errors="replace"))
        logger.warning("%s: %s", " ".join(command[:3]), series.failure)


def read_into_page_cache(files: Sequence[Path]) -> None:
    """Read each file once."""
    for path in files:
        with path.open("rb") as file, Path(os.devnull).open("wb") as nowhere:
            shutil.copyfileobj(file, nowhere, 1 << 20)


def _reason(exit_code: int, output: str) -> str:
    if exit_code < 0:
        return f"ended by signal {-exit_code}"
    errors = re.findall(r"^(?:[\w.]*(?:Error|Exception)|error): .*", output, re.MULTILINE)
    return errors[-1] if errors else f"exit code {exit_code}"
