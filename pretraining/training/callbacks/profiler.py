"""--profile: a trace of some steps by torch.profiler, their largest costs, and a snapshot of memory that ran out.

Only rank 0 is traced. Reading and writing a trace takes seconds per million events, in which the other ranks wait;
neither counts as time of a step. Nothing is computed otherwise, so that losses stay the same to the last digit.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerControl, TrainerState

from pretraining.runs.run_folder import PROFILE_DIR_NAME
from pretraining.system.launchers import process_rank
from pretraining.training.config.run_config import RunConfig
from pretraining.training.distributed.process_group import has_gpu
from pretraining.training.trainer.hf_internals import RunCallback
from pretraining.training.trainer.trainer import PretrainingTrainer

NUM_COSTS = 10
NAME_COLUMNS = 60
MAX_ALLOCATIONS = 200_000  # of the memory history: some 20 steps of Llama-2-7B, and 100 MB of host memory

logger = logging.getLogger(__name__)


class Profiler(RunCallback):
    """Traces the steps of --profile on rank 0, from their first micro step to the end of the update."""

    def __init__(self, trainer: PretrainingTrainer, steps: range) -> None:
        self._trainer = trainer
        self._steps = steps
        self._folder = trainer.run_config.run_dir / PROFILE_DIR_NAME
        self._recording: profile | None = None  # on rank 0, while it records
        self._num_recorded = 0  # steps of each rank

    def train_begin(self, state: TrainerState, control: TrainerControl) -> None:
        """Warn when a resumed run is past these steps."""
        if state.global_step >= self._steps[0]:
            message = "--profile: step %d is done already, so nothing is profiled; use one after step %d"
            logger.warning(message, self._steps[0], state.global_step)
            stop_memory_history()

    def step_begin(self, state: TrainerState, control: TrainerControl) -> None:
        """Start with the first step."""
        is_first = state.is_world_process_zero and state.global_step + 1 == self._steps[0]
        if is_first and self._recording is None and self._num_recorded == 0:
            with self._trainer.meter.pause():
                os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # otherwise it prints two lines in another format
                gpu = [ProfilerActivity.CUDA] if has_gpu() else []
                self._recording = profile(activities=[ProfilerActivity.CPU, *gpu], acc_events=True)
                self._recording.start()

    def step_end(self, state: TrainerState, control: TrainerControl) -> None:
        """Write after the last step, counted, because a rollback goes back to earlier ones."""
        if self._num_recorded or state.global_step == self._steps[0]:
            self._num_recorded += 1
            if self._num_recorded == len(self._steps):
                self._finish()

    def train_end(self, state: TrainerState, control: TrainerControl) -> None:
        """Write the steps before a stop."""
        if 0 < self._num_recorded < len(self._steps):
            self._finish()

    def _finish(self) -> None:
        """Write trace and costs; an error of the disk is a warning, and the training continues."""
        stop_memory_history()
        recording, self._recording = self._recording, None
        if recording is None:
            return
        with self._trainer.meter.pause():
            recording.stop()
            first, last = self._steps[0], self._steps[0] + self._num_recorded - 1
            steps = f"step-{first}" if first == last else f"steps-{first}-{last}"
            try:
                trace, costs = write_profile(recording, self._folder, steps)
            except (OSError, RuntimeError) as error:  # of a full disk; the exporter raises the latter
                logger.warning("--profile: %s: cannot be written (%s); training continues", self._folder, error)
                return
        logger.info("profile: %s (open it at https://ui.perfetto.dev or chrome://tracing)", trace)
        logger.info("the %d largest costs: %s", NUM_COSTS, costs)


def write_profile(recording: profile, folder: Path, steps: str) -> tuple[Path, Path]:
    """Write the trace, for Chrome and Perfetto, and the table of the largest costs; return both paths."""
    folder.mkdir(exist_ok=True)
    trace, costs = folder / f"trace-{steps}.json.gz", folder / f"costs-{steps}.txt"
    recording.export_chrome_trace(str(trace))
    costs.write_text(cost_table(recording), encoding="utf-8")
    return trace, costs


def cost_table(recording: profile) -> str:
    """The operations and kernels with the most time, without what they call, on the GPU or else on the CPU."""
    column = "self_device_time_total" if has_gpu() else "self_cpu_time_total"
    averages = recording.key_averages()
    table = averages.table(sort_by=column, row_limit=NUM_COSTS, max_name_column_width=NAME_COLUMNS)
    return "\n".join(line.rstrip() for line in table.splitlines()) + "\n"


def stop_memory_history() -> None:
    """Stop recording allocations on this rank: it takes time at each of them."""
    if has_gpu():
        torch.cuda.memory._record_memory_history(enabled=None)


@contextmanager
def memory_snapshot(run: RunConfig) -> Iterator[None]:
    """With --profile on a GPU, write each allocation, with the stack that made it, when memory runs out.

    Recorded until the profiled steps are written; after them the snapshot has what is allocated, without stacks.
    """
    if run.arguments.observability.profiled_steps is None or not has_gpu():
        yield
        return
    torch.cuda.memory._record_memory_history(max_entries=MAX_ALLOCATIONS)
    try:
        yield
    except torch.OutOfMemoryError:
        path = run.run_dir / PROFILE_DIR_NAME / f"memory-rank-{process_rank()}.pickle"
        with suppress(OSError, RuntimeError):  # of a full disk: memory that ran out is the error
            path.parent.mkdir(exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(path))
        logger.error("out of memory: %s has all allocations (open it at https://docs.pytorch.org/memory_viz)", path)
        raise
