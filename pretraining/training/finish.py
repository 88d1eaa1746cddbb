"""The end of a run: what is left when it was stopped, and when it is through."""

import logging
import shlex
from pathlib import Path
from typing import NoReturn

from pretraining.cli.logs import IN_ONE_LINE
from pretraining.errors import CRASH_EXIT_CODE, STOPPED_EXIT_CODE
from pretraining.runs.run_folder import METRICS_NAME, MODEL_DIR_NAME, checkpoint_step, complete_checkpoints
from pretraining.training.callbacks.export import export_at_end
from pretraining.training.callbacks.hub_push import push_model
from pretraining.training.callbacks.model_card import try_write_card
from pretraining.training.callbacks.report import ReportCallback
from pretraining.training.config.run_config import RunConfig
from pretraining.training.distributed.process_group import shutdown_process_group
from pretraining.training.trainer.trainer import PretrainingTrainer

logger = logging.getLogger(__name__)


def exit_stopped(trainer: PretrainingTrainer, report: ReportCallback) -> NoReturn:
    """End as somebody asked for."""
    trainer.reporters.end(trainer)
    report.finish(is_stopped=True)
    step = trainer.state.global_step
    shutdown_process_group(
        STOPPED_EXIT_CODE if step in (trainer.saver.saved_step, trainer.plan.start.step) else CRASH_EXIT_CODE
    )


def finish(trainer: PretrainingTrainer, report: ReportCallback) -> None:
    """After the last step: evaluate, export, and leave report, cards and what goes to the Hub."""
    evaluate_at_end(trainer)
    trainer.reporters.end(trainer)
    exported = export_at_end(trainer) if trainer.plan.arguments.durability.export else None
    report.finish()
    write_cards(trainer)
    log_outputs_and_next_steps(trainer.plan, exported)
    if trainer.args.push_to_hub:
        try:
            push_model(trainer)
        finally:
            report.finish_again()


def evaluate_at_end(trainer: PretrainingTrainer) -> None:
    """Loss on validation, unless these weights were just measured, and on test, which nothing has looked at before."""
    measured_at = [record["step"] for record in trainer.state.log_history if "eval_loss" in record]
    is_measured = trainer.state.global_step in measured_at and not _has_other_weights(trainer)
    if trainer.data.validation is not None and not is_measured:
        trainer.evaluate()
    if trainer.data.test is not None:
        trainer.evaluate(trainer.data.test, metric_key_prefix="test")


def _has_other_weights(trainer: PretrainingTrainer) -> bool:
    """Whether --load_best_model_at_end has put weights of an earlier step in the place of the last ones."""
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    return best is not None and checkpoint_step(Path(best)) != trainer.state.global_step


def write_cards(trainer: PretrainingTrainer) -> None:
    """The model card, in the run folder and with the exported model."""
    if trainer.is_world_process_zero():
        run_dir, step = trainer.plan.run_dir, trainer.state.global_step
        repository = trainer.hub_model_id if trainer.args.push_to_hub else None
        model_dirs = [run_dir / MODEL_DIR_NAME] if trainer.plan.arguments.durability.export else []
        for folder in (run_dir, *model_dirs):
            try_write_card(trainer.plan, folder, step, repository=repository)


def log_outputs_and_next_steps(plan: RunConfig, exported: str | None) -> None:
    """Log where things are, after the report, and what to do next; `exported` is the line of the model, if any."""
    if exported is not None:
        logger.info(exported)
    checkpoints = complete_checkpoints(plan.run_dir)
    if checkpoints:
        logger.info("checkpoints: %s, the newest of %d", checkpoints[-1], len(checkpoints))
    there = [name for name in ("README.md", METRICS_NAME, "tensorboard") if (plan.run_dir / name).exists()]
    logger.info("run folder: %s (%s)", plan.run_dir, ", ".join(there))
    stable = plan.run_dir / f"checkpoint-{plan.last_stable_step}"
    if stable.is_dir():
        logger.info("to train longer: --max_steps N --output_dir ANOTHER --resume %s", stable, extra=IN_ONE_LINE)
    if exported is not None:
        prompt = (plan.arguments.observability.sample_prompts or ["I wanna go"])[-1]
        command = shlex.join(["python3", "generate.py", "--model", str(plan.run_dir), "--prompt", prompt])
        logger.info("next: %s", command, extra=IN_ONE_LINE)
