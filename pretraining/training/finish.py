"""The end of a run: final evaluation, export and exit, or exit after a stop."""

import logging
import shlex
from pathlib import Path
from typing import NoReturn

from pretraining.cli.logs import IN_ONE_LINE
from pretraining.errors import CRASH_EXIT_CODE, STOPPED_EXIT_CODE
from pretraining.runs.run_folder import (
    METRICS_NAME,
    MODEL_DIR_NAME,
    PROFILE_DIR_NAME,
    checkpoint_step,
    complete_checkpoints,
)
from pretraining.training.callbacks.export import export_at_end
from pretraining.training.callbacks.hub_push import push_model
from pretraining.training.callbacks.model_card import try_write_card
from pretraining.training.callbacks.report import ReportCallback
from pretraining.training.callbacks.timing import RunSummary
from pretraining.training.config.run_config import RunConfig
from pretraining.training.distributed.process_group import shutdown_process_group
from pretraining.training.trainer.trainer import PretrainingTrainer

logger = logging.getLogger(__name__)


def exit_stopped(trainer: PretrainingTrainer) -> NoReturn:
    """Exit after a stop; the exit code of a crash if its checkpoint could not be saved."""
    trainer.reporters.end(trainer)
    trainer.pop_callback(RunSummary).log()
    trainer.pop_callback(ReportCallback).finish(is_stopped=True)
    is_saved = trainer.state.global_step in (trainer.saver.saved_step, trainer.run_config.start.step)
    shutdown_process_group(STOPPED_EXIT_CODE if is_saved else CRASH_EXIT_CODE)


def finish(trainer: PretrainingTrainer) -> None:
    """After the last step: evaluate, export, write report and cards, and push to the Hub."""
    evaluate_at_end(trainer)
    report = trainer.pop_callback(ReportCallback)
    trainer.reporters.end(trainer)
    with trainer.meter.pause("save"):
        exported = export_at_end(trainer) if trainer.run_config.arguments.durability.export else None
    trainer.pop_callback(RunSummary).log()
    report.finish()
    write_cards(trainer)
    log_outputs_and_next_steps(trainer.run_config, exported)
    if trainer.args.push_to_hub:
        try:
            push_model(trainer)
        finally:
            report.finish(is_logged=False)


def evaluate_at_end(trainer: PretrainingTrainer) -> None:
    """Evaluate on all of validation, unless these weights just were, and on test, for the first time."""
    records = [record for record in trainer.state.log_history if "eval_loss" in record and "eval_blocks" not in record]
    is_evaluated = trainer.state.global_step in [record["step"] for record in records]
    if trainer.data.validation is not None and not (is_evaluated and not _has_best_weights(trainer)):
        trainer.evaluate(trainer.data.validation)
    if trainer.data.test is not None:
        trainer.evaluate(trainer.data.test, metric_key_prefix="test")


def _has_best_weights(trainer: PretrainingTrainer) -> bool:
    """Whether --load_best_model_at_end has loaded the weights of an earlier step."""
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    return best is not None and checkpoint_step(Path(best)) != trainer.state.global_step


def write_cards(trainer: PretrainingTrainer) -> None:
    """Write the model card into the run folder and the exported model."""
    if trainer.is_world_process_zero():
        run, step = trainer.run_config, trainer.state.global_step
        repository = trainer.hub_model_id if trainer.args.push_to_hub else None
        model_dirs = [run.run_dir / MODEL_DIR_NAME] if run.arguments.durability.export else []
        for folder in (run.run_dir, *model_dirs):
            try_write_card(run, folder, step, repository=repository)


def log_outputs_and_next_steps(run: RunConfig, exported: str | None) -> None:
    """Log where the results are and what to do next; `exported` is the line about the model, if any."""
    if exported is not None:
        logger.info(exported)
    checkpoints = complete_checkpoints(run.run_dir)
    if checkpoints:
        logger.info("checkpoints: %s, the newest of %d", checkpoints[-1], len(checkpoints))
    names = [
        name for name in ("README.md", METRICS_NAME, "tensorboard", PROFILE_DIR_NAME) if (run.run_dir / name).exists()
    ]
    logger.info("run folder: %s (%s)", run.run_dir, ", ".join(names))
    for stable in (run.run_dir / f"checkpoint-{step}" for step in run.schedule.stable_steps):
        if stable.is_dir():
            logger.info("to train longer: --max_steps N --output_dir ANOTHER --resume %s", stable, extra=IN_ONE_LINE)
    if exported is not None:
        prompt = (run.arguments.observability.sample_prompts or ["I wanna go"])[-1]
        use = ["--prompt", prompt] if run.mixture.origin.chat_template is None else ["--chat"]
        command = shlex.join(["python3", "generate.py", "--model", str(run.run_dir), *use])
        logger.info("next: %s", command, extra=IN_ONE_LINE)
