"""Checkpoints are written while the training goes on, from a copy in host memory where there is room for one.

DeepSpeed and the Trainer say what belongs into a checkpoint; this keeps it from being written at once, copies it, and
writes it in a thread of each process. When all of them are done, the first writes complete.json. An error of one
process is an error of the save, not of the run.

DeepSpeed's own ways to do this do not hold up (0.19.8): what its fast writer saved cannot be loaded again
(UnpicklingError of ZeroStageEnum under weights_only, DeepSpeed#8500), and its decoupled one lost the first rank's
optimizer shard of the last checkpoint and hung for 2.5 minutes at the end.
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from pretraining.cli.logs import LOGGED_AS_EVENT
from pretraining.runs.checksums import FileRecord, incomplete_reason, record_file, write_manifest
from pretraining.runs.run_folder import SUPERSEDED, SaveResult, quarantine
from pretraining.runs.untrusted import load_pickle
from pretraining.system.formatting import format_bytes
from pretraining.system.host import available_host_bytes
from pretraining.training.checkpoint.host_copy import as_saved, host_copy, num_tensor_bytes
from pretraining.training.distributed.collectives import all_gather_objects, broadcast_object, is_main_process

ROOM_FOR_COPY = 0.7  # of the host memory that is available; the rest is for data workers and the page cache
SPARE_DISK_BYTES = 64 << 20  # for what is small: random states, the Trainer's state, the log

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointPart:
    """A large file of a checkpoint, or several: its content, and what writes it and tells the paths.

    `is_copy` says that nothing else changes the content, so that it need not be copied.
    """

    content: Any
    write: Callable[[Any], list[Path]]
    is_copy: bool = False


class DeferredCheckpointEngine(TorchCheckpointEngine):
    """Takes from DeepSpeed what it would write, with the path; reads as DeepSpeed does."""

    def __init__(self, add: Callable[[CheckpointPart], None]) -> None:
        super().__init__()
        self._add = add

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: the folder is made when it is known that there is room."""

    def save(self, state_dict: Any, path: str) -> None:
        """Keep for later."""

        def write(content: Any) -> list[Path]:
            Path(path).parent.mkdir(exist_ok=True)
            torch.save(as_saved(content), path)
            load_pickle(Path(path), mmap=True)  # what a resume would refuse was not saved
            return [Path(path)]

        self._add(CheckpointPart(state_dict, write))


class CheckpointSaver:
    """Saves one checkpoint at a time, of a state that was found finite; every method is called on all processes alike.

    `on_result` is called on the first process when a checkpoint counts, or could not be saved.
    """

    def __init__(self, *, num_local_processes: int) -> None:
        self.saved_step: int | None = None  # of the last checkpoint that counts
        self.last_seconds = self.longest_seconds = 0.0  # that a save took until it counted
        self.is_found_finite = True  # whether all of the state that is saved was looked at
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
        """Stand between DeepSpeed and the disk."""
        engine.checkpoint_engine = DeferredCheckpointEngine(self.add)
        self.is_found_finite = not engine.zero_nvme_offload_optimizer()  # what is on NVMe was not looked at
        engine._copy_recovery_script = _copy_nothing

    def add(self, part: CheckpointPart) -> None:
        """Take in a part of the checkpoint that is being saved; its content must not change until `start`."""
        self._parts.append(part)

    def begin(self, folder: Path, step: int) -> bool:
        """Make the folder of a new checkpoint. False where that is not possible, which was then said.

        And where this run has saved this step before, and went back to it: going on from there comes to the same.
        """
        self.wait()
        if self.saved_step == step:
            return False
        self.saved_step = None
        self._folder, self._step, self._began_at = folder, step, time.monotonic()
        self._parts, self._files, self._problem, self._made_folder = [], [], None, False
        return self._agreed(self._make_folder() if is_main_process() else None)

    @contextmanager
    def noting(self, *errors: type[Exception]) -> Iterator[None]:
        """Take an error of the disk on this process for one of the save, and let the others go on to its end."""
        try:
            yield
        except errors as error:
            self._problem = self._problem or _said(error)

    def start(self) -> None:
        """Write what was added: in the background from a copy, or at once where memory has no room for one."""
        sizes = all_gather_objects([num_tensor_bytes(part.content) for part in self._parts])
        total = sum(sum(parts) for parts in sizes)
        if not self._agreed(self._problem or (self._room_problem(total) if is_main_process() else None)):
            self._parts = []
            return
        local = total * self._num_local_processes / len(sizes)
        has_room = all(all_gather_objects(local < ROOM_FOR_COPY * available_host_bytes()))
        if has_room and not self._agreed(self._copy_parts()):
            return
        self._thread = threading.Thread(target=self._write, name="checkpoint-writer", daemon=True)
        self._thread.start()
        if not has_room:
            self.wait()

    def _copy_parts(self) -> str | None:
        """Copy what the training changes; what went wrong, if anything."""
        with self.noting(RuntimeError, MemoryError):
            self._parts = [
                part if part.is_copy else CheckpointPart(host_copy(part.content), part.write) for part in self._parts
            ]
            return None
        self._parts = []
        return self._problem

    def finish_if_written(self) -> None:
        """Make the checkpoint count as soon as all processes have written their part; looks once and does not wait."""
        if self._thread is not None and not any(all_gather_objects(self._thread.is_alive())):
            self._finish()

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._finish()

    def _write(self) -> None:
        with self.noting(Exception):  # whatever it is, the training goes on
            while self._parts:
                part = self._parts.pop()
                self._files += [record_file(self._folder, path) for path in part.write(part.content)]
                del part  # and with it the memory of its copy
        self._parts.clear()

    def _finish(self) -> None:
        self._thread = None
        found = all_gather_objects((self._files, self._problem))
        problem = next((problem for _, problem in found if problem is not None), None)
        if is_main_process() and problem is None:
            problem = self._complete([file for files, _ in found for file in files], num_processes=len(found))
        if self._agreed(problem):
            self.saved_step = self._step
            self.last_seconds = broadcast_object(time.monotonic() - self._began_at)
            self.longest_seconds = max(self.longest_seconds, self.last_seconds)
            self._tell(None)

    def _complete(self, files: list[FileRecord], *, num_processes: int) -> str | None:
        """Record the small files too, and write complete.json; what went wrong, if anything."""
        try:
            recorded = {self._folder / file.path for file in files}
            small = [path for path in self._folder.rglob("*") if path.is_file() and path not in recorded]
            files = [*files, *(record_file(self._folder, path) for path in small)]
            found = True if self.is_found_finite else None
            write_manifest(self._folder, files, step=self._step, num_processes=num_processes, finite=found)
        except OSError as error:
            return _said(error)
        problem = incomplete_reason(self._folder)  # as where machines do not share the folder
        if problem is not None:
            return problem
        self._num_bytes, seconds = sum(file.num_bytes for file in files), time.monotonic() - self._began_at
        logger.info("%s: complete, %s in %.1f s", self._folder, format_bytes(self._num_bytes), seconds)
        return None

    def _room_problem(self, num_bytes: int) -> str | None:
        free = shutil.disk_usage(self._folder).free
        if free >= num_bytes + SPARE_DISK_BYTES:
            return None
        return f"it needs {format_bytes(num_bytes)} and the disk has {format_bytes(free)}"

    def _agreed(self, problem: str | None) -> bool:
        """Whether no process has a problem; otherwise what was written is removed, and the run goes on."""
        problem = next((found for found in all_gather_objects(problem) if found is not None), None)
        if problem is None:
            return True
        if is_main_process():
            logger.warning(
                "%s: COULD NOT BE SAVED (%s); the training goes on, and older checkpoints are whole; make room or "
                "mend it before the next save",
                self._folder,
                problem,
                extra=LOGGED_AS_EVENT,
            )
            if self._made_folder:
                shutil.rmtree(self._folder, ignore_errors=True)  # it would only keep the disk full
        self._tell(problem)
        return False

    def _make_folder(self) -> str | None:
        try:
            if self._folder.exists():
                quarantine(self._folder, SUPERSEDED)
            self._folder.mkdir()
        except OSError as error:
            return _said(error)
        self._made_folder = True
        return None

    def _tell(self, problem: str | None) -> None:
        if is_main_process() and self.on_result is not None:
            with suppress(OSError):  # a full disk takes no record of it either
                seconds = time.monotonic() - self._began_at if problem is not None else self.last_seconds
                self.on_result(SaveResult(self._step, self._folder, self._num_bytes, seconds, problem))


def _copy_nothing(_folder: str) -> None:
    """In place of DeepSpeed's scripts in each checkpoint; `tools.checkpoints export` does what they do."""


def _said(error: Exception) -> str:
    strerror = getattr(error, "strerror", None)
    return strerror or " ".join(str(error).split())[:200] or type(error).__name__
