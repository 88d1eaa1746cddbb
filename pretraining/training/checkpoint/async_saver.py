"""Write checkpoints in the background, from a copy in host memory where it has space for one.

DeepSpeed and the Trainer provide the parts of a checkpoint; a saver copies them and writes them in a thread of each
process. When all processes are done, the first writes complete.json. An error of one process fails the save, not the
run.

DeepSpeed's own background writers do not work (0.19.8): what the fast one saves cannot be loaded (UnpicklingError of
ZeroStageEnum under weights_only, DeepSpeed#8500), and the decoupled one lost the first rank's optimizer shard of the
last checkpoint and hung for 2.5 minutes at the end.
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch.distributed as dist
from deepspeed import DeepSpeedEngine

from pretraining.cli.logs import LOGGED_AS_EVENT
from pretraining.runs.checksums import FileRecord, incomplete_reason, record_file, write_manifest
from pretraining.runs.run_folder import SUPERSEDED, SaveResult, quarantine
from pretraining.system.formatting import format_bytes
from pretraining.system.host import available_host_bytes
from pretraining.training.checkpoint.parts import CheckpointPart, DeferredCheckpointEngine, host_copy, num_tensor_bytes
from pretraining.training.distributed.collectives import all_gather_objects, broadcast_object, is_main_process
from pretraining.training.distributed.deepspeed_checkpoints import set_checkpoint_engine

MAX_COPY_FRACTION = 0.7  # of the available host memory; the rest is for data workers and the page cache
# Of one process, beside its parts: random states, and what DeepSpeed copies from NVMe. Each process lists its own: in
# a folder that machines share, the first can see an old listing without those of another machine.
OWN_FILES = ("rng_state_{rank}.pth", "global_step*/offloaded_tensors/rank{rank:02d}/**/*")
SPARE_DISK_BYTES = 64 << 20  # for small files: random states, the Trainer's state, the log

logger = logging.getLogger(__name__)


class CheckpointSaver:
    """Saves one checkpoint at a time; every method is called on all processes alike.

    `on_result` is called on the first process when a checkpoint is complete, or could not be saved.
    """

    def __init__(self, *, num_local_processes: int) -> None:
        self.saved_step: int | None = None  # of the last complete checkpoint
        self.last_seconds = self.longest_seconds = 0.0  # of a save, until it was complete
        self.is_found_finite = True  # whether all of the saved state was checked
        self.on_result: Callable[[SaveResult], None] | None = None
        self._num_local_processes = num_local_processes
        self._parts: list[CheckpointPart] = []
        self._files: list[FileRecord] = []
        self._problem: str | None = None
        self._thread: threading.Thread | None = None
        self._made_folder = False
        self._num_bytes = 0

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is being written in the background."""
        return self._thread is not None

    def install(self, engine: DeepSpeedEngine) -> None:
        """Take over what DeepSpeed writes."""
        set_checkpoint_engine(engine, DeferredCheckpointEngine(self.add))
        self.is_found_finite = not engine.zero_nvme_offload_optimizer()  # state on NVMe is not checked

    def add(self, part: CheckpointPart) -> None:
        """Add a part of the checkpoint that is being saved; its content must not change until `start`."""
        self._parts.append(part)

    def begin(self, folder: Path, step: int) -> bool:
        """Create the folder of a new checkpoint; False where that failed, which is logged.

        Also False where this run has saved this step before and was rolled back to it: the state is the same.
        """
        self.wait()
        if self.saved_step == step:
            return False
        self.saved_step = None
        self._folder, self._step, self._started_at = folder, step, time.monotonic()
        self._parts, self._files, self._problem, self._made_folder = [], [], None, False
        return self._all_fine(self._make_folder() if is_main_process() else None)

    @contextmanager
    def collecting_errors(self, *errors: type[Exception]) -> Iterator[None]:
        """Turn an error on this process into one of the save, which all processes carry on to its end."""
        try:
            yield
        except errors as error:
            self._problem = self._problem or _reason(error)

    def start(self) -> None:
        """Write the parts: in the background from a copy, or at once where memory has no space for one."""
        sizes = all_gather_objects([num_tensor_bytes(part.content) for part in self._parts])
        total = sum(sum(parts) for parts in sizes)
        if not self._all_fine(self._problem or (self._disk_problem(total) if is_main_process() else None)):
            self._parts = []
            return
        local = total * self._num_local_processes / len(sizes)
        is_copied = all(all_gather_objects(local < MAX_COPY_FRACTION * available_host_bytes()))
        if is_copied and not self._all_fine(self._copy_parts()):
            return
        self._thread = threading.Thread(target=self._write, name="checkpoint-writer", daemon=True)
        self._thread.start()
        if not is_copied:
            self.wait()

    def _copy_parts(self) -> str | None:
        """Copy what training changes; return a problem, if any."""
        with self.collecting_errors(RuntimeError, MemoryError):
            self._parts = [
                part if part.is_copy else CheckpointPart(host_copy(part.content), part.write) for part in self._parts
            ]
            return None
        self._parts = []
        return self._problem

    def finish_if_written(self) -> None:
        """Complete the checkpoint if all processes have written their parts; does not wait."""
        if self._thread is not None and not any(all_gather_objects(self._thread.is_alive())):
            self._finish()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._finish()

    def _write(self) -> None:
        with self.collecting_errors(Exception):  # whatever it is, training continues
            while self._parts:
                part = self._parts.pop()
                self._files += [record_file(self._folder, path) for path in part.write(part.content)]
                del part  # and with it the memory of its copy
            self._files += [record_file(self._folder, path) for path in self._own_files()]
        self._parts.clear()

    def _own_files(self) -> list[Path]:
        found = (path for pattern in OWN_FILES for path in self._folder.glob(pattern.format(rank=dist.get_rank())))
        return [path for path in found if path.is_file()]

    def _finish(self) -> None:
        self._thread = None
        found = all_gather_objects((self._files, self._problem))
        problem = next((problem for _, problem in found if problem is not None), None)
        if is_main_process() and problem is None:
            problem = self._complete([file for files, _ in found for file in files], num_processes=len(found))
        if self._all_fine(problem):
            self.saved_step = self._step
            self.last_seconds = broadcast_object(time.monotonic() - self._started_at)
            self.longest_seconds = max(self.longest_seconds, self.last_seconds)
            self._report_result(None)

    def _complete(self, files: list[FileRecord], *, num_processes: int) -> str | None:
        """Record the first process's small files too, and write complete.json; return a problem, if any."""
        try:
            recorded = {self._folder / file.path for file in files}
            small = [path for path in self._folder.rglob("*") if path.is_file() and path not in recorded]
            files = [*files, *(record_file(self._folder, path) for path in small)]
            found = True if self.is_found_finite else None
            write_manifest(self._folder, files, step=self._step, num_processes=num_processes, finite=found)
        except OSError as error:
            return _reason(error)
        problem = incomplete_reason(self._folder)  # e.g. where machines do not share the folder
        if problem is not None:
            return problem
        self._num_bytes, seconds = sum(file.num_bytes for file in files), time.monotonic() - self._started_at
        logger.info("%s: complete, %s in %.1f s", self._folder, format_bytes(self._num_bytes), seconds)
        return None

    def _disk_problem(self, num_bytes: int) -> str | None:
        free = shutil.disk_usage(self._folder).free
        if free >= num_bytes + SPARE_DISK_BYTES:
            return None
        return f"it needs {format_bytes(num_bytes)}, and {format_bytes(free)} are free"

    def _all_fine(self, problem: str | None) -> bool:
        """Whether no process has a problem; otherwise remove what was written and log it."""
        problem = next((found for found in all_gather_objects(problem) if found is not None), None)
        if problem is None:
            return True
        if is_main_process():
            logger.warning(
                "%s: checkpoint not saved (%s); training continues, and earlier checkpoints are intact; fix that, e.g. "
                "free disk space, before the next save",
                self._folder,
                problem,
                extra=LOGGED_AS_EVENT,
            )
            if self._made_folder:
                shutil.rmtree(self._folder, ignore_errors=True)  # its files would only keep the disk full
        self._report_result(problem)
        return False

    def _make_folder(self) -> str | None:
        try:
            if self._folder.exists():
                quarantine(self._folder, SUPERSEDED)
            self._folder.mkdir()
        except OSError as error:
            return _reason(error)
        self._made_folder = True
        return None

    def _report_result(self, problem: str | None) -> None:
        if is_main_process() and self.on_result is not None:
            with suppress(OSError):  # a full disk may have no space for the record either
                seconds = time.monotonic() - self._started_at if problem is not None else self.last_seconds
                self.on_result(SaveResult(self._step, self._folder, self._num_bytes, seconds, problem))


def _reason(error: Exception) -> str:
    strerror = getattr(error, "strerror", None)
    return strerror or " ".join(str(error).split())[:200] or type(error).__name__
