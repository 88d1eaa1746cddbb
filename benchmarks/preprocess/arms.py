"""The programs of the comparison: preprocess.py, and the peers of benchmarks/preprocess/peers/."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.preprocess.peers.job import Job
from benchmarks.preprocess.runs import Series
from benchmarks.preprocess.token_counts import OutputCounts
from benchmarks.results import PROJECT_DIR
from pretraining.cli.arguments.preprocess import SAMPLE_CORPUS, SAMPLE_TOKENIZER
from pretraining.cli.flags import flag
from pretraining.errors import UserError

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
    arms: list[str] | None = flag(None, f"arms beside {OURS}; all by default")
    before: str | None = flag(None, "commit of this project, e.g. of its last version, as one more arm")
    megatron_dir: Path | None = flag(None, "checkout of NVIDIA/Megatron-LM; without it, its two arms are left out")
    work_dir: Path = flag(Path("build/benchmark"), "folder for what the arms write")
    results_dir: Path = flag(Path("docs/benchmarks"), "folder of preprocess.md and preprocess.svg")


def arms(megatron_dir: Path | None, before_dir: Path | None) -> list[Arm]:
    """All programs; those of Megatron-LM, and the version of this project before, only with a folder of them."""
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
    if before_dir is not None:
        description = f"{OURS} of commit {before_dir.name}"
        found.insert(1, Arm("before", description, lambda job: our_command(job, before_dir / OURS)))
    if megatron_dir is not None:
        stream = "a stream, not yet blocks"
        found += [
            Arm("megatron_fast", f"preprocess_data_fast.py; {stream}", partial(megatron_fast_command, megatron_dir)),
            Arm("megatron", f"preprocess_data.py, a worker a core; {stream}", partial(megatron_command, megatron_dir)),
        ]
    return found


def chosen(found: list[Arm], names: Sequence[str] | None) -> list[Arm]:
    """The arms of these names, and the first one.

    Raises:
        UserError: when there is none of a name.
    """
    if names is None:
        return found
    known = [arm.name for arm in found]
    if missing := [name for name in names if name not in known]:
        raise UserError(f"--arms {' '.join(missing)}: not an arm of this run; use some of {', '.join(known)}")
    return [arm for arm in found if arm.name in (OURS, *names)]


def checkout(commit: str, folder: Path) -> Path:
    """The files of a commit of this project, in a folder of its name in `folder`."""
    target = folder / commit
    packed = subprocess.run(["git", "archive", commit], cwd=PROJECT_DIR, capture_output=True, check=False)
    if packed.returncode:
        raise UserError(f"--before {commit}: {packed.stderr.decode().strip()}; use a commit of this checkout")
    target.mkdir(parents=True, exist_ok=True)
    # The filters of Python's tarfile came with 3.11.4.
    subprocess.run(["tar", "-x", "-C", str(target)], input=packed.stdout, check=True)
    return target


def our_command(job: Job, program: Path = Path(OURS)) -> list[str]:
    """preprocess.py with only the settings of the job."""
    flags = {
        "data_files": job.data_file,
        "tokenizer": job.tokenizer,
        "block_length": job.block_length,
        "output_dir": job.output_dir,
    }
    return [sys.executable, str(program), *(word for name in flags for word in (f"--{name}", str(flags[name])))]


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
