"""The programs of the comparison: preprocess.py, and the peers of benchmarks/preprocess/peers/."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.preprocess.peers.job import Job
from benchmarks.preprocess.runs import Series
from benchmarks.preprocess.token_counts import OutputCounts
from pretraining.cli.arguments.preprocess import SAMPLE_CORPUS, SAMPLE_TOKENIZER
from pretraining.cli.flags import flag

OURS = "preprocess.py"
HUGGING_FACE_FLAGS = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-hf-no-include-special-tokens"]


@dataclass(frozen=True)
class Arm:
    """A program that makes token blocks of a JSONL file."""

    name: str
    description: str
    command: Callable[[Job], list[str]]


@dataclass
class ArmResult:
    """The runs of a program on a few documents and on all of them, and its tokens."""

    arm: Arm
    trial: Series = field(default_factory=Series)
    series: Series = field(default_factory=Series)
    counts: OutputCounts | None = None


@dataclass(frozen=True)
class BenchmarkArguments:
    """Flags of the comparison."""

    data_files: Path = flag(SAMPLE_CORPUS, "one JSONL file with a text field, every line readable")
    tokenizer: Path = flag(Path(SAMPLE_TOKENIZER), "tokenizer folder")
    block_length: int = flag(4096, "tokens in a token block")
    repetitions: int = flag(5, "runs of each arm")
    megatron_dir: Path | None = flag(None, "checkout of NVIDIA/Megatron-LM; without it, its two arms are left out")
    work_dir: Path = flag(Path("build/benchmark"), "folder for what the arms write")
    results_dir: Path = flag(Path("docs/benchmarks"), "folder of preprocess.md and preprocess.svg")


def arms(megatron_dir: Path | None) -> list[Arm]:
    """All programs; those of Megatron-LM only with a checkout of it."""
    found = [
        Arm(
            OURS, "this project, as a user starts it: blocks in three splits, a table of documents, hashes", our_command
        ),
        Arm(
            "naive",
            "one list of texts, one call of the fast tokenizer, one list of ids",
            partial(peer_command, "naive"),
        ),
        Arm(
            "map_group",
            "load_dataset, map(tokenize), map(group_texts) with a process a core, as run_clm.py of Transformers does",
            partial(peer_command, "map_group"),
        ),
        Arm(
            "datatrove",
            "DocumentTokenizer a task a core, the file split beforehand (not timed); a stream, not yet blocks",
            partial(peer_command, "datatrove"),
        ),
    ]
    if megatron_dir is not None:
        stream = "a stream, not yet blocks"
        found += [
            Arm("megatron_fast", f"preprocess_data_fast.py; {stream}", partial(megatron_fast_command, megatron_dir)),
            Arm("megatron", f"preprocess_data.py, a worker a core; {stream}", partial(megatron_command, megatron_dir)),
        ]
    return found


def our_command(job: Job) -> list[str]:
    """preprocess.py with only the settings of the job."""
    flags = {
        "data_files": job.data_file,
        "tokenizer": job.tokenizer,
        "block_length": job.block_length,
        "output_dir": job.output_dir,
    }
    return [sys.executable, "preprocess.py", *(word for name in flags for word in (f"--{name}", str(flags[name])))]


def peer_command(name: str, job: Job) -> list[str]:
    """A program of benchmarks/preprocess/peers/."""
    return [sys.executable, "-m", f"benchmarks.preprocess.peers.{name}", *job.words()]


def megatron_command(megatron_dir: Path, job: Job) -> list[str]:
    """The slow tool of Megatron-LM."""
    return [*_megatron_tool(megatron_dir, "preprocess_data.py", job), "--workers", str(job.num_workers)]


def megatron_fast_command(megatron_dir: Path, job: Job) -> list[str]:
    """The fast tool of Megatron-LM."""
    return [*_megatron_tool(megatron_dir, "preprocess_data_fast.py", job), "--use-gigatoken"]


def _megatron_tool(megatron_dir: Path, tool: str, job: Job) -> list[str]:
    starter = [
        sys.executable,
        "-m",
        "benchmarks.preprocess.peers.megatron",
        job.output_dir,
        megatron_dir / f"tools/{tool}",
    ]
    places = ["--input", job.data_file, "--tokenizer-model", job.tokenizer, "--output-prefix", job.output_dir / "ids"]
    return [str(word) for word in (*starter, *HUGGING_FACE_FLAGS, "--append-eod", *places)]
