"""A run of pretrain.py that a benchmark looks into: everything but the training itself has happened."""

from collections.abc import Sequence
from pathlib import Path

from pretrain import find_data
from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.training.build import make_trainer
from pretraining.training.config.run_config import resolve_run_config
from pretraining.training.config.run_identity import claim_output_dir
from pretraining.training.distributed.collectives import is_main_process
from pretraining.training.distributed.process_group import init_process_group
from pretraining.training.run import quiet_libraries, start_run_folder
from pretraining.training.stopping.request import StopRequest
from pretraining.training.trainer.trainer import PretrainingTrainer


def start_run(argv: Sequence[str]) -> tuple[Path, PretrainingTrainer]:
    """Where the result goes, the first word of the command line, and the trainer that the flags after it make."""
    result_path, *flags = [word for word in argv if not word.startswith("--local_rank")]
    arguments = parse_pretrain_arguments("", flags)
    quiet_libraries()
    plan = resolve_run_config(arguments, find_data(arguments.data))
    claim_output_dir(plan)
    init_process_group(timeout_seconds=600)
    trainer = make_trainer(plan, StopRequest())
    if is_main_process():
        start_run_folder(plan, trainer)
    return Path(result_path), trainer
