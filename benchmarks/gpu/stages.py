"""What --slot runs beside the rows: a small model from start to text, a profiled micro step, the decoder, the tests."""

import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.measure import error_of, run_logged, seconds_until
from benchmarks.gpu.rows import GpuArguments
from pretraining.errors import UserError
from pretraining.runs.compare import GPU_TOLERANCE, difference_of_metrics
from pretraining.runs.run_folder import MODEL_DIR_NAME, PROFILE_DIR_NAME
from pretraining.system.launchers import DEEPSPEED, free_port

logger = logging.getLogger("pretraining.benchmarks")

SMOKE_STEPS = 6
PROMPT = "The council"
SMOKE = ("--model", "quickstart", "--global_batch_tokens", "2048", "--per_device_train_batch_size", "4")
SMOKE_RUN = ("--max_steps", SMOKE_STEPS, "--save_steps", SMOKE_STEPS // 2, "--logging_steps", "1", "--report", "false")
SMOKE_SCHEDULE = ("--eval_strategy", "no", "--warmup_steps", "2", "--learning_rate", "1e-3")
PROFILED = 4  # the step; earlier ones compile and allocate
# Four of the 32 layers: all their kernels in a trace of a few megabytes, and an exported model of 2 GB.
PROFILE_7B = ("--recipe", "recipes/benchmark_llama2_7b.yaml", "--model_overrides", "num_hidden_layers=4")
PROFILE_7B_TOKENS, PROFILE_SMALL_TOKENS = 4096, 1024  # a micro step
PROFILE_SMALL = ("--recipe", "recipes/benchmark_quickstart.yaml", "--compile_layers", "false")
# Options of the decoder, and whether cuDNN's attention may be chosen, which builds a plan for each length.
DECODERS: dict[str, tuple[dict[str, Any], bool]] = {
    "decoder as it is": ({}, False),
    "exact lengths, no CUDA graphs": ({"multiple": 1}, False),
    "exact lengths, no CUDA graphs, cuDNN's attention": ({"multiple": 1}, True),
}
MAX_SECONDS = {"step": 240.0, "tests": 560.0}
TEST_PACKAGES = ("pytest", "pytest_timeout")


@dataclass(frozen=True)
class Stage:
    """A part of the slot: the minutes that it takes on an H100, and a function of its folder that returns metrics."""

    name: str
    minutes: float
    run: Callable[["Workplace"], dict[str, Any]]


@dataclass(frozen=True)
class Workplace:
    """The folder of a stage, the flags of the benchmark, and when it is ended, on the monotonic clock."""

    folder: Path
    arguments: GpuArguments
    ends_at: float

    def execute(self, *words: object, seconds: float = MAX_SECONDS["step"]) -> str:
        """Run a program in the checkout; its output.

        Raises:
            UserError: with its error or last line, when it fails.
        """
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        seconds = min(seconds, seconds_until(self.ends_at))
        code = run_logged([sys.executable, *words], log, os.environ, seconds=seconds)
        text = log.read_text(errors="replace")
        if code:
            raise UserError(error_of(text))
        return text

    def train(self, run_dir: Path, *flags: object) -> str:
        """Run pretrain.py on one GPU under the deepspeed launcher."""
        launcher = [*DEEPSPEED[1:], f"--master_port={free_port()}", "--num_gpus=1"]
        return self.execute(*launcher, "pretrain.py", *flags, "--output_dir", run_dir)


def is_done(figures: dict[str, Any]) -> bool:
    """Whether a stage and all its parts were successful."""
    parts = (figures, *figures.values())
    return bool(figures) and not any("failed" in part for part in parts if isinstance(part, dict))


def run_stage(stage: Stage, arguments: GpuArguments, *, ends_at: float) -> dict[str, Any]:
    """The metrics of a stage, or its error; it is killed at `ends_at` of the monotonic clock."""
    logger.info("%s ...", stage.name)
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = stage.run(Workplace(Path(folder), arguments, ends_at))
        except (UserError, OSError) as error:
            found = {"failed": str(error)}
    logger.info("%s: %s", stage.name, found.get("failed", "done"))
    return {**found, "seconds": time.monotonic() - started_at}


def smoke(place: Workplace) -> dict[str, Any]:
    """From text to text: preprocess, train, save, resume, export, generate; a resumed run must equal the first."""
    blocks, run_dir, first = (place.folder / name for name in ("blocks", "run", "first"))
    place.execute("preprocess.py", "--block_length", 64, "--output_dir", blocks)
    flags = [*SMOKE, *SMOKE_RUN, *SMOKE_SCHEDULE, "--dataset", blocks]
    place.train(run_dir, *flags)
    shutil.copytree(run_dir, first)
    for name in (f"checkpoint-{SMOKE_STEPS}", MODEL_DIR_NAME):
        shutil.rmtree(run_dir / name)
    log = place.train(run_dir, *flags)
    if f"checkpoint-{SMOKE_STEPS // 2}" not in log:
        raise UserError("the second start did not resume from the checkpoint")
    difference = difference_of_metrics(first, run_dir, relative=GPU_TOLERANCE)
    if difference is not None:
        raise UserError(f"the resumed run differs: {difference}")
    words = ("--prompt", PROMPT, "--max_new_tokens", 8, "--greedy")
    lines = place.execute("generate.py", "--model", run_dir, *words).splitlines()
    return {"text": next((line for line in lines if line.startswith(PROMPT)), "")}


def profiled_step(place: Workplace) -> dict[str, Any]:
    """One micro step with torch.profiler, its trace beside the page; then the decoder with and without its levers."""
    is_small, run_dir = place.arguments.small, place.folder / "run"
    recipe, tokens = (PROFILE_SMALL, PROFILE_SMALL_TOKENS) if is_small else (PROFILE_7B, PROFILE_7B_TOKENS)
    steps = ("--global_batch_tokens", tokens, "--max_steps", PROFILED, "--profile", PROFILED, "--warmup_steps", 1)
    place.train(run_dir, *recipe, *steps, "--export", "true")
    page, profile = place.arguments.output, run_dir / PROFILE_DIR_NAME
    shutil.copy(profile / f"trace-step-{PROFILED}.json.gz", page.with_name(f"{page.stem}-trace.json.gz"))
    found: dict[str, Any] = {"costs": (profile / f"costs-step-{PROFILED}.txt").read_text(encoding="utf-8")}
    for name, (options, has_cudnn) in DECODERS.items():
        if options and is_small:
            continue  # they are for GPUs
        words = (run_dir, json.dumps({"options": options, "has_cudnn": has_cudnn}))
        try:
            found[name] = json.loads(place.execute("-m", "benchmarks.gpu.decode_run", *words).splitlines()[-1])
        except UserError as error:
            found[name] = {"failed": str(error)}
    return found


def gpu_tests(place: Workplace) -> dict[str, Any]:
    """The tests that need a GPU; the last line of pytest."""
    missing = [name.replace("_", "-") for name in TEST_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"not run: this Python has no {' and no '.join(missing)}; install them, or add their wheels")
    words = ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu")
    lines = place.execute(*words, seconds=MAX_SECONDS["tests"]).splitlines()
    return {"result": lines[-1]}


STAGES = (
    Stage("a small model: save, resume, export, generate", 2.0, smoke),
    Stage("a profiled micro step of four layers, and the decoder", 2.5, profiled_step),
    Stage("the tests that need a GPU", 5.0, gpu_tests),
)
