"""--push_to_hub: push the model of each checkpoint (--hub_strategy every_save) and the exported model at the end.

What is pushed is copied into a folder first, so that rotation cannot delete it meanwhile. Weights are hard links: they
take disk space only after their checkpoint is deleted.
"""

import logging
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from transformers import TrainerControl, TrainerState
from transformers.trainer_utils import HubStrategy

from pretraining.cli.logs import LOGGED_AS_EVENT
from pretraining.errors import UserError
from pretraining.hub.push_queue import PushQueue, UploadPayload
from pretraining.hub.repository import Repository, check_license, hash_files
from pretraining.hub.retry import error_message, with_retries
from pretraining.runs.checksums import incomplete_reason
from pretraining.runs.export.publish import finalize
from pretraining.runs.run_folder import CURVES_NAME, MODEL_DIR_NAME, REPORT_NAME
from pretraining.runs.tracking.metrics_log import MetricsLog
from pretraining.system.files import link_or_copy
from pretraining.training.callbacks.model_card import write_card_of
from pretraining.training.distributed.collectives import is_main_process, run_on_main, run_on_main_polling
from pretraining.training.trainer.hf_internals import RunCallback
from pretraining.training.trainer.trainer import PretrainingTrainer

PUSH_DIR_NAME = "push"
WEIGHTS = "model*.safetensors*"
# Files of a checkpoint that a model folder has beside its weights; `finalize` adapts them to other tools.
SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
REPORT_NAMES = (REPORT_NAME, CURVES_NAME)

logger = logging.getLogger(__name__)


class HubPushCallback(RunCallback):
    """Pushes from the main process, in the background while the training continues, and retries until it succeeds."""

    def __init__(self, trainer: PretrainingTrainer, metrics_log: MetricsLog) -> None:
        self._trainer = trainer
        self._run_config = trainer.run_config
        self._metrics_log = metrics_log
        self._folder = trainer.run_config.run_dir / PUSH_DIR_NAME
        self._queue = PushQueue(self._push, self._warn_not_pushed)
        self._repository = Repository(
            trainer.hub_model_id, "model", token=trainer.args.hub_token, revision=trainer.args.hub_revision
        )
        license_name = trainer.run_config.arguments.observability.license
        if license_name is not None:
            run_on_main(lambda: check_license(license_name))

    def train_begin(self, state: TrainerState, control: TrainerControl) -> None:
        """Push the checkpoint that the run resumes from: its push may have been interrupted."""
        if is_main_process():
            self._clear()
            self.enqueue_checkpoint(state.global_step)

    def enqueue_checkpoint(self, step: int) -> None:
        """Push the model of a checkpoint, if it is complete."""
        checkpoint = self._run_config.run_dir / f"checkpoint-{step}"
        if self._trainer.args.hub_strategy == HubStrategy.END or incomplete_reason(checkpoint) is not None:
            return
        try:
            paths = [*checkpoint.glob(WEIGHTS), *(checkpoint / name for name in SMALL_FILES)]
            payload = self._payload(paths, step)
        except Exception as error:  # a full disk above all
            payload = UploadPayload(step, f"model of step {step}", checkpoint, ())
            self._warn_not_pushed(payload, error_message(error), True)
        else:
            self._queue.put(payload)

    def train_end(self, state: TrainerState, control: TrainerControl) -> None:
        """Log what is not pushed yet when the run stops before its last step."""
        if state.global_step < state.max_steps:
            for payload in self._queue.unfinished:
                logger.warning("not pushed yet: %s; rerun to push it", payload.description)

    def push_at_end(self) -> str | None:
        """Push the exported model and verify the files on the Hub; returns what went wrong, None for success."""
        problem: str | None = None
        self._queue.close()
        step = self._trainer.state.global_step
        try:
            payload = self._payload((self._run_config.run_dir / MODEL_DIR_NAME).iterdir(), step)
            commit = with_retries(lambda: self._repository.push(payload))
            problem = self._repository.wrong_files(hash_files(payload.folder, payload.folder.iterdir()), commit)
            if problem is None:
                self._log_pushed(payload, commit)
        except Exception as error:  # whatever it is, the other processes wait for an answer
            problem = error_message(error)
        if problem is not None:
            self._record(step, f"model of step {step}", problem)
        self._clear()
        return problem

    def _payload(self, paths: Iterable[Path], step: int) -> UploadPayload:
        """A folder with the files of a model, its card and the report; it replaces the weights on the Hub."""
        folder = self._folder / f"step-{step}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in paths:
            (link_or_copy if path.match(WEIGHTS) else shutil.copyfile)(path, folder / path.name)
        finalize(folder)
        for name in REPORT_NAMES:
            if (self._run_config.run_dir / name).is_file():
                shutil.copyfile(self._run_config.run_dir / name, folder / name)
        write_card_of(self._run_config, folder, step, repository=self._repository.name)
        return UploadPayload(step, f"model of step {step}", folder, (WEIGHTS,))

    def _push(self, payload: UploadPayload) -> None:
        self._log_pushed(payload, self._repository.push(payload))

    def _log_pushed(self, payload: UploadPayload, commit: str) -> None:
        self._record(payload.step, payload.description, None)
        logger.info("pushed: %s at commit %s: %s", self._repository.url, commit, payload.description)

    def _warn_not_pushed(self, payload: UploadPayload, problem: str, is_over: bool) -> None:
        self._record(payload.step, payload.description, problem)
        logger.log(
            logging.INFO if is_over else logging.WARNING,
            "not pushed: %s to %s (%s)%s",
            payload.description,
            self._repository.name,
            problem,
            "" if is_over else "; retrying until a newer one replaces it",
            extra=LOGGED_AS_EVENT,
        )

    def _record(self, step: int, what: str, problem: str | None) -> None:
        event = {"event": "push", "what": what, "repository": self._repository.name, "problem": problem}
        self._metrics_log.write_event({"step": step, **event})

    def _clear(self) -> None:
        """Remove the folders of pushes, also those of a killed run, and nothing else."""
        for folder in self._folder.glob("step-*"):
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            self._folder.rmdir()


def push_model(trainer: PretrainingTrainer) -> None:
    """Push the exported model; called on every process, the main process pushes.

    Raises:
        UserError: on every process, when the push failed.
    """
    problem = run_on_main_polling(trainer.pop_callback(HubPushCallback).push_at_end)
    if problem is not None:
        model_dir: Path = trainer.run_config.run_dir / MODEL_DIR_NAME
        raise UserError(
            f"--push_to_hub: {model_dir} could not be pushed ({problem}); it is complete; rerun the command to push "
            "again"
        )
