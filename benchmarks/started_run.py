"""Start a run of pretrain.py for a benchmark, up to the training itself, or with a callback that measures it."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from pretrain import find_data
from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.training.build import make_trainer
from pretraining.training.config.run_config import resolve_run_config
from pretraining.training.config.run_identity import claim_output_dir
from pretraining.training.distributed.collectives import is_main_process
from pretraining.training.distributed.process_group import init_process_group, shutdown_process_group
from pretraining.training.run import quiet_libraries, start_run_folder
from pretraining.training.stopping.request import StopRequest
from pretraining.training.trainer.trainer import PretrainingTrainer


class MeasuringCallback(TrainerCallback, ABC):
    """Measures a run. It is the last callback, so that the step includes the work of the others at its end."""

    @abstractmethod
    def result(self) -> Any:
        """What was measured, as JSON."""


def measure_run(argv: Sequence[str], make_callback: Callable[[PretrainingTrainer], MeasuringCallback]) -> None:
    """Train with a measuring callback, and write its result."""
    result_path, trainer = start_run(argv)
    callback = make_callback(trainer)
    trainer.add_callback(callback)
    trainer.train()
    if is_main_process():
        result_path.write_text(json.dumps(callback.result()))
    shutdown_process_group()


def start_run(argv: Sequence[str]) -> tuple[Path, PretrainingTrainer]:
    """The path of the result (the first word of the command line) and the trainer for the flags after it."""
    result_path, *flags = [word for word in argv if not word.startswith("--local_rank")]
    return Path(result_path), started_trainer(flags)


def started_trainer(flags: Sequence[str]) -> PretrainingTrainer:
    """The trainer of a run whose folder and process group exist."""
    arguments = parse_pretrain_arguments("", flags)
    quiet_libraries()
    run = resolve_run_config(arguments, find_data(arguments.data))
    claim_output_dir(run)
    init_process_group(timeout_seconds=600)
    trainer = make_trainer(run, StopRequest())
    if is_main_process():
        start_run_folder(run, trainer)
    return trainer
