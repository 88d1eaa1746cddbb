"""A run of pretrain.py that times saves and loads of its checkpoint, and plain writes and reads of the same bytes.

deepspeed --num_gpus=N --module benchmarks.save_speed_run RESULT --flags of pretrain.py. After each step but the first
there is one round of all methods on the same disk, every file with fsync; files are dropped from the page cache before
they are read. Seconds are those of the slowest process.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from transformers import Trainer
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from benchmarks.started_run import MeasuringCallback, measure_run
from pretraining.cli.program import run_program
from pretraining.runs.checksums import corruption_reason, read_complete
from pretraining.training.checkpoint import async_saver as checkpoint_saver
from pretraining.training.distributed.collectives import all_gather_objects, is_main_process
from pretraining.training.trainer.trainer import PretrainingTrainer

PIECE_BYTES = 1 << 24


class Rounds(MeasuringCallback):
    """One round of all methods after each step."""

    def __init__(self, trainer: PretrainingTrainer) -> None:
        self._trainer = trainer
        self._folder = trainer.run_config.run_dir / "measured"
        self._seconds: dict[str, list[float]] = {}
        self._num_bytes = 0

    def result(self) -> dict[str, Any]:
        """Bytes of a checkpoint, and seconds of each method."""
        return {"num_bytes": self._num_bytes, "seconds": self._seconds}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save, write, load and read."""
        if state.global_step == 1:
            return
        checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
        saver = self._trainer.saver
        started_at = time.perf_counter()
        self._time("ours, training is blocked", lambda: self._trainer._save_checkpoint(self._trainer.model, None))
        saver.wait()
        self._add("ours, until complete.json", time.perf_counter() - started_at)
        self._num_bytes = read_complete(checkpoint)["num_bytes"]
        self._time("plain write", self._write_plainly)
        self._time("plain read", lambda: self._read(self._folder))
        self._time("ours, hashes checked", lambda: self._check(checkpoint))
        self._forget(checkpoint)
        self._time("load", lambda: deepspeed_load_checkpoint(self._trainer.model_wrapped, str(checkpoint)))
        self._remove(checkpoint, self._folder)
        saver.saved_step = None  # it is saved again
        checkpoint_saver.MAX_COPY_FRACTION, room = 0.0, checkpoint_saver.MAX_COPY_FRACTION
        self._time("ours, without a copy", lambda: self._trainer._save_checkpoint(self._trainer.model, None))
        checkpoint_saver.MAX_COPY_FRACTION = room
        self._remove(checkpoint)
        self._time("Trainer and DeepSpeed", self._save_as_usual)
        self._remove(self._folder)

    def _time(self, name: str, work: Callable[[], Any]) -> None:
        torch.distributed.barrier()
        started_at = time.perf_counter()
        work()
        self._add(name, time.perf_counter() - started_at)

    def _add(self, name: str, seconds: float) -> None:
        self._seconds.setdefault(name, []).append(max(all_gather_objects(seconds)))

    def _write_plainly(self) -> None:
        self._folder.mkdir(exist_ok=True)
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        piece = os.urandom(PIECE_BYTES)
        with (self._folder / f"plain-{rank}").open("wb", buffering=0) as file:
            for _ in range(self._num_bytes // size // PIECE_BYTES + 1):
                file.write(piece)
            os.fsync(file.fileno())
        self._forget(self._folder)

    def _read(self, folder: Path) -> None:
        with (folder / f"plain-{torch.distributed.get_rank()}").open("rb", buffering=0) as file:
            while file.read(PIECE_BYTES):
                pass

    def _check(self, checkpoint: Path) -> None:
        self._forget(checkpoint)
        assert (
            corruption_reason(
                checkpoint, part=torch.distributed.get_rank(), num_parts=torch.distributed.get_world_size()
            )
            is None
        )

    def _forget(self, folder: Path) -> None:
        """Drop the files of a folder from the page cache."""
        torch.distributed.barrier()
        for path in folder.rglob("*") if is_main_process() else []:
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)
        torch.distributed.barrier()

    def _save_as_usual(self) -> None:
        """What Trainer._save_checkpoint does, and the fsync that it omits."""
        engine = self._trainer.model_wrapped
        engine.checkpoint_engine = TorchCheckpointEngine()
        Trainer.save_model(self._trainer, str(self._folder))
        engine.save_checkpoint(str(self._folder))
        self._forget(self._folder)

    def _remove(self, *folders: Path) -> None:
        torch.distributed.barrier()
        for folder in folders if is_main_process() else ():
            shutil.rmtree(folder)
        torch.distributed.barrier()


def main(argv: Sequence[str]) -> None:
    """Train, and write the seconds of each method."""
    measure_run(argv, Rounds)


if __name__ == "__main__":
    run_program(main)
    sys.exit()
